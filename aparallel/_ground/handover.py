"""Chunks that pass between a thread and the event loop, with back-pressure.

An :class:`Outflow` goes from the thread to the loop through a short queue; the thread waits while it is full.
An :class:`Inflow` goes from the loop to the thread, one chunk when the thread asks for one. Either can be
closed by the loop at any moment, which ends a waiting thread with :class:`~aparallel._ground.stoppable.Stopped`.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from typing import TYPE_CHECKING

from aparallel._ground.loops import running_loop
from aparallel._ground.stoppable import Stopped

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

# Chunks that wait for the loop. Two keep both sides busy; four bridge a pause of either.
_DEPTH = 4


class Outflow:
    """From a thread to the loop.

    All state is guarded by ``_changed``, whose lock is only ever held for a few operations, so the loop may
    take it. Invariant: no more than :data:`_DEPTH` chunks wait.
    """

    def __init__(self) -> None:
        self._loop = running_loop()
        self._changed = threading.Condition()
        self._chunks: deque[bytes] = deque()
        self._ready = asyncio.Event()
        self._finished = self._closed = False

    def put(self, chunk: bytes) -> None:
        """Hand a chunk over, waiting while the queue is full. In the thread.

        Raises:
            Stopped: the loop wants no more.
        """
        with self._changed:
            while len(self._chunks) >= _DEPTH and not self._closed:
                self._changed.wait()
            if self._closed:
                raise Stopped
            self._chunks.append(chunk)
        self._loop.call_soon_threadsafe(self._ready.set)

    def finish(self) -> None:
        """Say that no more will come. On the loop."""
        self._finished = True
        self._ready.set()

    def close(self) -> None:
        """Want no more. On the loop."""
        with self._changed:
            self._closed = True
            self._chunks.clear()
            self._changed.notify_all()

    async def get(self) -> bytes | None:
        """Return the next chunk, or None after the last one. On the loop."""
        while not self._chunks:
            if self._finished:
                return None
            self._ready.clear()
            await self._ready.wait()
        with self._changed:
            chunk = self._chunks.popleft()
            self._changed.notify_all()
        return chunk


class Inflow:
    """From the loop to a thread, which asks for each chunk.

    Invariant: at most one request is under way, between the thread's ``_answered.clear()`` and the loop's ``set()``.
    """

    def __init__(self) -> None:
        self._loop = running_loop()
        self._asked = asyncio.Event()
        self._answered = threading.Event()
        self._wanted = 0
        self._chunk: bytes = b""
        self._finished = self._closed = False

    def ask(self, size: int) -> bytes:
        """Ask the loop for about *size* bytes and wait for them; none at the end. In the thread.

        Raises:
            Stopped: the loop has closed this.
        """
        self._answered.clear()
        if self._closed:
            raise Stopped
        self._wanted = size
        self._loop.call_soon_threadsafe(self._asked.set)
        self._answered.wait()
        if self._closed:
            raise Stopped
        return self._chunk

    def finish(self) -> None:
        """Say that the thread will ask no more. On the loop."""
        self._finished = True
        self._asked.set()

    def close(self) -> None:
        """Give no more. On the loop."""
        self._closed = True
        self._answered.set()

    async def serve(self, read: Callable[[int], Awaitable[bytes]]) -> None:
        """Answer each request with what *read* gives, until :meth:`finish`. On the loop, in the caller's task."""
        while True:
            await self._asked.wait()
            self._asked.clear()
            if self._finished:
                return
            self._chunk = await read(self._wanted)
            self._answered.set()
