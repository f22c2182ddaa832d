"""Threads that functions are computed in: ours, or anyio's where a function may call back by ``anyio.from_thread``.

Ours cost no import, which would hold the GIL for tens of milliseconds, and less for each call.
"""

from __future__ import annotations

import asyncio
import functools
import math
import sys
import weakref
from typing import TYPE_CHECKING, Any, Final, TypeVar

from aparallel._ground.notebooks import kept_awake
from aparallel._ground.shield import has_anyio, import_anyio
from aparallel._ground.threads import Threads
from aparallel._memory.bytecode import imports_made
from aparallel._memory.callables import unbind

if TYPE_CHECKING:
    from collections.abc import Callable

    import anyio

T = TypeVar("T")

COMPUTING_THREADS: Final = 32
"""For each loop. Those of nested calls are not counted: they would wait for threads that wait for them."""

_threads = Threads(COMPUTING_THREADS)
_nested_threads = Threads(sys.maxsize, idle=4)
_limiters: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, anyio.CapacityLimiter] = weakref.WeakKeyDictionary()


class ComputingThreads:
    """The threads that compute *fn*."""

    def __init__(self, fn: Callable[..., Any]) -> None:
        self._fn = fn

    async def run(self, step: Callable[[], T], *, is_nested: bool) -> T:
        """Run *step* in one of them and return its result.

        Cancellation: at once. What has begun runs on to its end, and what has not never begins.
        """
        if not self._may_call_back():
            with kept_awake():
                return await (_nested_threads if is_nested else _threads).start(step)
        await import_anyio()
        from anyio import CapacityLimiter, to_thread

        limiter = CapacityLimiter(math.inf) if is_nested else _limiter()
        with kept_awake():
            return await to_thread.run_sync(step, limiter=limiter, abandon_on_cancel=True)

    def has_free(self) -> bool:
        """Whether one could begin now."""
        if not self._may_call_back():
            return _threads.has_free()
        return has_anyio() and _limiter().available_tokens > 0

    def _may_call_back(self) -> bool:
        """Whether the function can have ``anyio.from_thread``: somebody imported it, or the function will."""
        return "anyio" in sys.modules or self._imports_anyio

    @functools.cached_property
    def _imports_anyio(self) -> bool:
        code = getattr(unbind(self._fn)[0], "__code__", None)
        return code is not None and any(module.partition(".")[0] == "anyio" for _, module, _ in imports_made(code))


def _limiter() -> anyio.CapacityLimiter:
    from anyio import CapacityLimiter

    loop = asyncio.get_running_loop()
    limiter = _limiters.get(loop)
    if limiter is None:
        limiter = _limiters[loop] = CapacityLimiter(COMPUTING_THREADS)
    return limiter
