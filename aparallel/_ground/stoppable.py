"""Long work in a thread that stops when its caller is cancelled, and is never left running.

The thread looks at a :class:`Stop` between slices of its work. Whoever cancels the caller, natively or by an
anyio scope, the thread has cleaned up and ended before the cancellation goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, TypeVar

from aparallel._ground.notebooks import kept_awake
from aparallel._ground.shield import outlast
from aparallel._ground.threads import Threads, start_apart

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

# Threads that read and write files wait for the disk more than they compute.
_threads = Threads(16)

_EVERY = 0.05  # seconds


class Stopped(Exception):
    """The work was told to stop. Never seen by users: their own cancellation or error goes on instead."""


class WaitsLong(Exception):
    """The work may wait for others without end, and is to have a thread of its own. Never seen by users."""


class Stop:
    """Tells a thread to stop: set once, by anyone, and looked at by the thread between slices of its work.

    Attributes:
        has_own_thread: nobody else waits for the thread that looks at it.
    """

    __slots__ = ("has_own_thread", "is_set")

    def __init__(self, *, has_own_thread: bool = True) -> None:
        self.is_set = False
        self.has_own_thread = has_own_thread

    def set(self) -> None:
        self.is_set = True

    def check(self) -> None:
        """Raise if the work is to stop.

        Raises:
            Stopped: it is.
        """
        if self.is_set:
            raise Stopped

    def may_wait_long(self) -> None:
        """Take note, before anything is done, that the work may wait for others without end.

        Raises:
            WaitsLong: it is to begin again in a thread of its own.
        """
        if not self.has_own_thread:
            raise WaitsLong


async def in_stoppable_thread(
    fn: Callable[[], T],
    stop: Callable[[], object],
    *,
    meanwhile: Callable[[], object] | None = None,
    apart: bool = False,
) -> T:
    """Run *fn* in a thread, calling *meanwhile* on the loop every 50 ms.

    Args:
        apart: in a thread of its own, as it may wait without end, perhaps for others that would wait for a thread.

    Cancellation, and an error of *meanwhile*: *stop* is called, which must make *fn* end soon, and the
    cancellation or error goes on when it has.
    """
    running = start_apart(fn) if apart else _threads.start(fn)
    try:
        try:
            with kept_awake():
                while not running.done():
                    await asyncio.wait([running], timeout=None if meanwhile is None else _EVERY)
                    if meanwhile is not None and not running.done():
                        meanwhile()
        except BaseException:
            stop()
            await ended(running)
            raise
        return running.result()
    finally:
        del running  # an error that it holds refers to this frame


async def ended(running: asyncio.Future[Any]) -> None:
    """Wait until *running* is done, whatever is cancelled meanwhile, and whatever came of it."""
    with contextlib.suppress(asyncio.CancelledError):
        await outlast([running])
    if not running.cancelled():
        running.exception()  # looked at, so that nobody reports it as never retrieved
