"""One hop to a thread and back, for work that would hold the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import sys
import threading
import time
import weakref
from typing import TYPE_CHECKING, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    import anyio

P = ParamSpec("P")
T = TypeVar("T")

_ANYIO = "anyio._backends._asyncio"

# Hops are short and CPU-bound: more threads at a time would only fight over the GIL. The limiter is
# our own because anyio's default one belongs to the user's code.
_THREADS = 4
_limiters: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, anyio.CapacityLimiter] = weakref.WeakKeyDictionary()


async def in_thread(fn: Callable[..., T], *args: object) -> T:
    """Run ``fn(*args)`` in a thread and return its result.

    Cancellation: by an anyio scope, after *fn* is done; natively, at once, and *fn* runs on to its end.
    """
    await import_anyio()
    from anyio import CapacityLimiter, to_thread

    loop = asyncio.get_running_loop()
    limiter = _limiters.get(loop)
    if limiter is None:
        limiter = _limiters[loop] = CapacityLimiter(_THREADS)
    return await to_thread.run_sync(fn, *args, limiter=limiter)


async def import_anyio() -> None:
    """Import it in a thread: here it would hold the loop for 70 ms, and most programs never get here."""
    if _ANYIO in sys.modules:
        return
    loop = asyncio.get_running_loop()
    imported: asyncio.Future[None] = loop.create_future()

    def tell() -> None:
        if not imported.done():
            imported.set_result(None)

    def load() -> None:
        try:
            importlib.import_module(_ANYIO)
        finally:
            with contextlib.suppress(RuntimeError):  # the loop has closed
                loop.call_soon_threadsafe(tell)

    threading.Thread(target=load, name="aparallel-import", daemon=True).start()
    await imported


def pause() -> None:
    """Let other threads run: to be called between slices of C code that holds the GIL.

    Releasing the GIL is not enough (``os.write`` does): the waiting thread must get a chance to take it.
    """
    time.sleep(0)
