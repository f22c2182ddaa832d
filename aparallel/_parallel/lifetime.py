"""How far the life of a pool has come, and what ties it to its loop: when that ends, in whichever way, so does it."""

from __future__ import annotations

import contextlib
import enum
from typing import TYPE_CHECKING

from aparallel._ground.loops import LoopEnd

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncGenerator, Awaitable, Callable


class Phase(enum.IntEnum):
    """How far the life of a pool has come. It only goes forward."""

    NEW = 0
    """Not used yet: it belongs to no loop, and there is nothing to end."""
    OPEN = 1
    """It belongs to a loop and admits calls."""
    CLOSING = 2
    """It admits no more. What was admitted may finish, and may still start workers for that."""
    CUT_OFF = 3
    """What was admitted has been ended: only the workers are waited for."""
    CLOSED = 4
    """Nothing of it is left."""


class LoopTie:
    """Ends a pool with its loop.

    ``asyncio.run`` and ``uvloop.run`` finish the loop's async generators before they close it, so one that
    is suspended here shuts the pool in good order. ``loop.close()`` alone does not: then the workers are killed, and
    at the interpreter's exit, too.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, shut: Callable[[], Awaitable[None]], kill: Callable[[], None]
    ) -> None:
        self._generator = _until_loop_ends(shut)
        with contextlib.suppress(StopIteration):
            self._generator.__anext__().send(None)  # runs to its yield; the loop has it now
        self._end = LoopEnd(loop, kill)

    def release(self) -> None:
        """The pool is shut: nothing is left to end."""
        self._end.release()


async def _until_loop_ends(shut: Callable[[], Awaitable[None]]) -> AsyncGenerator[None, None]:
    try:
        yield
    finally:
        await shut()
