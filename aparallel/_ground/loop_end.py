"""Notices that an event loop has ended, in whichever way."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

_YEAR = 365 * 86400.0


class LoopEnd:
    """Calls *do* once, when the loop is closed or nobody has it any more, or at the interpreter's exit.

    A loop that is closed drops its timers: *do* is called when the one that refers to our keeper is dropped. It runs
    in whichever thread that happens in, so it must not wait.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, do: Callable[[], object]) -> None:
        keeper = _Keeper()
        self._finalizer = weakref.finalize(keeper, do)
        # Only the loop may hold the timer: asyncio drops it at its close, but does not empty it.
        self._timer = weakref.ref(loop.call_later(_YEAR, keeper.stay))

    def release(self) -> None:
        """Call nothing any more."""
        self._finalizer.detach()
        timer = self._timer()
        if timer is not None:
            timer.cancel()


class _Keeper:
    def stay(self) -> None:
        """Do nothing: being referred to by a timer is all that this is for."""
