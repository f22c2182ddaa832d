"""One hop to a thread and back, for work that would hold the event loop."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

from aparallel._ground.shield import has_anyio, shielded
from aparallel._ground.threads import Threads

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable, Iterator

T = TypeVar("T")

# Seconds between pauses: shorter than the 5 ms after which the interpreter itself would let others in.
_AT_ONCE = 0.0008

# Hops are short and CPU-bound: more threads at a time would only fight over the GIL.
_threads = Threads(4)


async def in_thread(fn: Callable[..., T], *args: object) -> T:
    """Run ``fn(*args)`` in a thread and return its result.

    Cancellation: by an anyio scope, after *fn* is done; natively, at once. If *fn* has begun, it runs on to its end.
    """
    if not has_anyio():  # nobody can have one of its scopes
        return await _threads.start(fn, *args)
    import anyio.lowlevel

    # Hops alone, one after the other, would never see that the scope is cancelled.
    await anyio.lowlevel.checkpoint_if_cancelled()
    result = _threads.start(fn, *args)
    try:
        with shielded():
            await result
        return result.result()
    finally:
        del result  # an error that it holds refers to this frame


def hop(fn: Callable[[], T]) -> asyncio.Future[T]:
    """Have a thread run *fn* for the running loop, where nobody awaits it; return the future of its result."""
    return _threads.start(fn)


def pause() -> None:
    """Let other threads run: to be called between slices of C code that holds the GIL.

    Releasing the GIL is not enough (``os.write`` does): the waiting thread must get a chance to take it.
    """
    time.sleep(0)


class Pauses:
    """Pauses for many short steps of Python code: one when the last is a while ago, as each takes 60 µs."""

    __slots__ = ("_due",)

    def __init__(self) -> None:
        self._due = time.monotonic() + _AT_ONCE

    def when_due(self) -> None:
        if time.monotonic() > self._due:
            pause()
            self._due = time.monotonic() + _AT_ONCE


def pausing(items: Iterable[T]) -> Iterator[T]:
    """Give *items* on, with pauses between them."""
    pauses = Pauses()
    for item in items:
        pauses.when_due()
        yield item
