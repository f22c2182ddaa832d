"""Fills memory from a source; if that is large and the source allows it, with several threads."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from aparallel._ground.cores import Helped
from aparallel._ground.hop import pause
from aparallel._persist.sources import Source

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Future, ThreadPoolExecutor

# One thread reads so much and, while it is in the cache, has it taken.
_SLICE = 1 << 20
# Several read so much at a time, and begin where NumPy's memory has a huge page, if it has them: the kernel clears each
# when it is first written to, and two threads in one page would wait for each other. 100 MB take 6.5 ms and not 7.2.
_PIECE = 2 << 20
# Less is read as soon by one: 8 MB take 0.30 ms either way, 16 MB 0.73 with two threads and 0.86 with one.
_WORTH = 16 << 20
# More threads than this do not make memory faster.
_MOST_THREADS = 4


class Filling:
    """Fills memory with what comes next in a source. To be closed.

    Args:
        threads: that read at a time.
    """

    def __init__(self, source: Source, threads: int) -> None:
        self._source = source
        self._others = min(threads, _MOST_THREADS) - 1 if source.reads_anywhere else 0
        self._executor: ThreadPoolExecutor | None = None

    def fill(self, view: memoryview, take: Callable[[memoryview], object] | None = None) -> None:
        """Fill *view*, and give *take* all of it, in order, while it is in the cache.

        Raises:
            TruncatedFileError: there are fewer bytes.
            Stopped: the source's stop was set. No thread reads any more.
        """
        if self._others > 0 and len(view) >= _WORTH:
            self._fill_together(view, take)
            return
        for start in range(0, len(view), _SLICE):
            part = view[start : start + _SLICE]
            self._source.read_into(part)
            if take is not None:
                take(part)
            if not self._source.reads_anywhere:  # copied with the GIL held
                pause()

    def array(
        self, size: int, take: Callable[[memoryview | bytes], object] | None = None, *, first: memoryview | None = None
    ) -> Any:
        """Return *size* bytes as an array; give *take* those that come, in order. Memory is taken as they do.

        If the source believes the size, all memory is taken at the beginning, which is faster.

        Args:
            first: the first of the bytes, which were read before.

        Raises:
            TruncatedFileError: there are fewer bytes.
            Stopped: the source's stop was set. No thread reads any more.
        """
        first = memoryview(b"") if first is None else first
        if self._source.believes(size):
            memory: Any = np.empty(size, np.uint8)
            view = memoryview(memory)
            view[: len(first)] = first
            self.fill(view[len(first) :], take)
            return memory
        grown = bytearray(first)
        while len(grown) < size:
            part = self._source.read(min(_SLICE, size - len(grown)))
            grown += part
            if take is not None:
                take(part)
            pause()
        return np.frombuffer(grown, np.uint8)

    def close(self) -> None:
        """End the threads. None of them is reading any more."""
        if self._executor is not None:
            self._executor.shutdown()

    def _fill_together(self, view: memoryview, take: Callable[[memoryview], object] | None) -> None:
        pieces = _Pieces(self._source, view, take)
        helped = Helped()
        helpers = list(self._start(lambda: pieces.read(helped.by_this_thread())))
        try:
            pieces.read(helped.give_way)
        finally:
            pieces.drop()
            for helper in helpers:
                # One that has not begun yet would only be waited for.
                if not helper.cancel():
                    helper.result()
        pieces.finish()

    def _start(self, read: Callable[[], None]) -> Iterator[Future[None]]:
        if self._executor is None:
            from concurrent.futures import ThreadPoolExecutor

            self._executor = ThreadPoolExecutor(self._others, "aparallel-read")
        with contextlib.suppress(RuntimeError):  # no more threads can be had, so those that are there do it
            for _ in range(self._others):
                yield self._executor.submit(read)


class _Pieces:
    """The pieces of some memory, read by several threads and taken in order.

    A thread that has read a piece takes all that are due, unless another one is at it. So none waits for another, and
    what is taken was read a moment ago.

    Invariants: ``_unread`` has the numbers of the pieces that no thread has begun with. ``_taken`` pieces were taken,
    and the source stands behind them; both change only under ``_taking``. When no thread reads any more, some may
    be left to take: they were read while the thread that took others was about to let go of the lock.
    """

    def __init__(self, source: Source, view: memoryview, take: Callable[[memoryview], object] | None) -> None:
        self._source = source
        self._view = view
        self._take = take
        self._begin = source.position
        self._edges = _edges(view)
        count = len(self._edges) - 1
        self._unread = deque(range(count))
        self._is_read = [False] * (count + 1)  # the last is never read: it ends the search for what is due
        self._taken = 0
        self._taking = threading.Lock()
        self._failures: list[tuple[int, BaseException]] = []

    def read(self, give_way: Callable[[], object]) -> None:
        """Read pieces, in a thread, until there are no more or one has failed, giving way to other threads between."""
        while True:
            try:
                piece = self._unread.popleft()
            except IndexError:
                return
            try:
                self._read(piece)
                self._is_read[piece] = True
                self._take_due()
                give_way()
            except BaseException as error:
                self._failures.append((piece, error))
                self.drop()

    def drop(self) -> None:
        """Have no thread begin with another piece."""
        self._unread.clear()

    def finish(self) -> None:
        """Take what is left. No thread reads any more.

        Raises:
            Exception: what the first piece, in the order of the file, failed with.
        """
        try:
            if self._failures:
                raise min(self._failures, key=lambda failure: failure[0])[1]
        finally:
            self._failures = []  # an error that is raised here refers to this object
        self._take_due()

    def _read(self, piece: int) -> None:
        start, end = self._edges[piece], self._edges[piece + 1]
        while start < end:
            start += self._source.read_at(self._view[start:end], self._begin + start)

    def _take_due(self) -> None:
        while self._is_read[self._taken] and self._taking.acquire(blocking=False):
            try:
                while self._is_read[self._taken]:
                    part = self._view[self._edges[self._taken] : self._edges[self._taken + 1]]
                    if self._take is not None:
                        self._take(part)
                    self._source.go_past(part)
                    self._taken += 1
            finally:
                self._taking.release()


def _edges(view: memoryview) -> list[int]:
    """Where pieces of *view* begin, in memory at multiples of their size but for the first, and where the last ends."""
    address: Any = np.frombuffer(view, np.uint8).ctypes.data
    first = -address % _PIECE or _PIECE
    return [0, *range(first, len(view), _PIECE), len(view)]
