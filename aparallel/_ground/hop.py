"""One hop to a thread and back, for work that would hold the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import sys
import threading
import time
from typing import TYPE_CHECKING, TypeVar

from aparallel._ground.threads import Threads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

T = TypeVar("T")

_ANYIO = "anyio._backends._asyncio"

# Hops are short and CPU-bound: more threads at a time would only fight over the GIL.
_threads = Threads(4)


async def in_thread(fn: Callable[..., T], *args: object) -> T:
    """Run ``fn(*args)`` in a thread and return its result.

    Cancellation: by an anyio scope, after *fn* is done; natively, at once. If *fn* has begun, it runs on to its end.
    """
    if _ANYIO not in sys.modules:  # nobody can have an anyio scope
        return await _threads.start(fn, *args)
    import anyio.lowlevel

    # Hops alone, one after the other, would never see that the scope is cancelled.
    await anyio.lowlevel.checkpoint_if_cancelled()
    result = _threads.start(fn, *args)
    with anyio.CancelScope(shield=True):
        await result
    return result.result()


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


def pausing(items: Iterable[T], every: int) -> Iterator[T]:
    """Give *items* on, with a pause after so many."""
    for number, item in enumerate(items, 1):
        if number % every == 0:
            pause()
        yield item
