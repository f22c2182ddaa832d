"""Event loops: which one runs here, tasks that begin there in their turn, and when one has ended, in whichever way."""

from __future__ import annotations

import asyncio
import sys
import weakref
from typing import TYPE_CHECKING, Any, TypeVar

from aparallel.errors import WrongLoopError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

T = TypeVar("T")

_YEAR = 365 * 86400.0


def running_loop() -> asyncio.AbstractEventLoop:
    """Return the running asyncio loop.

    Raises:
        WrongLoopError: none is running, or trio is.
    """
    try:
        return asyncio.get_running_loop()
    except RuntimeError:  # none: say below what runs instead
        pass
    if "trio" in sys.modules and "sniffio" in sys.modules:
        import sniffio

        try:
            library = sniffio.current_async_library()
        except sniffio.AsyncLibraryNotFoundError:
            library = "no event loop"
        if library != "no event loop":
            raise WrongLoopError(
                f"aparallel runs on asyncio (and uvloop), and this task runs on {library}. "
                f"Start the program with asyncio.run() or anyio.run(..., backend='asyncio')."
            )
    raise WrongLoopError("No asyncio event loop is running here. Await this inside asyncio.run(main()).")


def task_in_turn(loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
    """Return a task that takes its first step in the loop's next turn, also where tasks begin at once.

    With ``asyncio.eager_task_factory`` that step would come in the middle of what its maker does.
    """
    if loop.get_task_factory() is None:
        return loop.create_task(coroutine, name=name)
    return asyncio.Task(coroutine, loop=loop, name=name)


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
