"""Giving other threads a turn at this one's core."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

from aparallel._ground.hop import pause

if TYPE_CHECKING:
    from collections.abc import Callable


def _found() -> Callable[[], object]:
    try:
        sched_yield: Callable[[], object] = ctypes.CDLL(None).sched_yield
    except (AttributeError, OSError, TypeError):  # Windows
        return pause
    return sched_yield


_sched_yield = _found()


def offer_core() -> None:
    """Offer this thread's core to others that want it, with the GIL let go. It costs nothing if nobody does.

    With as many threads at work as there are cores, an event loop that wakes up waits for one of them: up to 4 ms, as
    the kernel lets each go on for as long. So each offers its core every 0.1 ms or so: while two threads read, 99 of
    100 wake-ups were at most 1.1 ms late and not 3.9. A lower priority alone does not help (3.6).

    ``os.sched_yield`` keeps the GIL (at least up to Python 3.11): whoever takes the core then, for 4 ms, has the event
    loop wait for the GIL as well.
    """
    _sched_yield()
