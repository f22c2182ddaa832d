"""Sharing the cores with other threads: giving them a turn, and keeping out of their way."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from typing import TYPE_CHECKING

from aparallel._ground.hop import pause

if TYPE_CHECKING:
    from collections.abc import Callable


def _found(name: str) -> Callable[[], int] | None:
    try:
        function: Callable[[], int] = getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError, TypeError):  # not every system has it; Windows has no such library
        return None
    return function


_sched_yield: Callable[[], object] = _found("sched_yield") or pause
_sched_getcpu = _found("sched_getcpu") if sys.platform == "linux" else None


def offer_core() -> None:
    """Offer this thread's core to others that want it, with the GIL let go. It costs nothing if nobody does.

    With as many threads at work as there are cores, an event loop that wakes up waits for one of them: up to 4 ms, as
    the kernel lets each go on for as long. So each offers its core every 0.1 ms or so: while two threads read, 99 of
    100 wake-ups were at most 1.1 ms late and not 3.9. A lower priority alone does not help (3.6).

    ``os.sched_yield`` keeps the GIL (at least up to Python 3.11): whoever takes the core then, for 4 ms, has the event
    loop wait for the GIL as well.
    """
    _sched_yield()


def current_core() -> int | None:
    """The number of the core that this thread is on; None where nobody tells."""
    core = -1 if _sched_getcpu is None else _sched_getcpu()
    return core if core >= 0 else None


class Helped:
    """A thread that others help, which keep off its core, wherever it goes. To be made in that thread.

    The kernel often has a helper begin on the core of the thread that it helps, though another one is idle, or moves
    that thread to the helper's, and leaves both there for 10 ms: as long as the work would take.
    """

    __slots__ = ("_core", "_usable")

    def __init__(self) -> None:
        self._core = current_core()
        self._usable: set[int] = set()
        if sys.platform == "linux":
            with contextlib.suppress(OSError):  # a sandbox may refuse the call: then helpers stay where they are
                self._usable = os.sched_getaffinity(0)

    def give_way(self) -> None:
        """Offer the core, as the thread that is helped should every 0.1 ms or so, and tell the helpers of it."""
        offer_core()
        self._core = current_core()

    def by_this_thread(self) -> Callable[[], None]:
        """Leave the core of the thread that is helped, and return what this one, which helps, calls as often."""
        left = self._leave(None)

        def give_way() -> None:
            nonlocal left
            offer_core()
            left = self._leave(left)

        return give_way

    def _leave(self, left: int | None) -> int | None:
        """Leave the core of the thread that is helped, unless it is the one that we *left*; return which that is."""
        core = self._core
        others = self._usable - {core}
        if core != left and others:
            with contextlib.suppress(OSError):  # we may not, or the cores that we may use have just changed
                os.sched_setaffinity(0, others)  # of this thread alone
        return core
