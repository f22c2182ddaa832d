"""The checksum of what is being written, computed by a second thread where that is worth it."""

from __future__ import annotations

import _thread
import math
from collections import deque
from queue import SimpleQueue
from typing import TYPE_CHECKING, Self

from xxhash import xxh3_64

from aparallel._ground.cores import offer_core
from aparallel._ground.helping import Helper

if TYPE_CHECKING:
    from types import TracebackType

# Less is summed up as soon by the thread that writes it.
_WORTH = 16 << 20
# The helper offers its core after so much: 0.2 ms from memory. It takes the GIL as often, which the writer wants, too.
_SLICE = 4 << 20
# How far what is summed up may be behind what is written before the writer sums up as well. Up to there the second of
# the two to read it finds it in the cache that the cores share.
_MOST_BEHIND = 16 << 20


class Checksum:
    """The xxh3 (64 bits) of a record. To be entered, and used by one thread, which writes the record.

    A helper sums up what the writer has announced while that writes it, and may run ahead of it: what it has read, the
    writer finds in the cache. Without a helper each piece is summed up when it has been written, and is in the cache of
    its core. (100 MB: 19.4 ms to write, as much with a helper, 23.2 without one, and 6 to sum up alone.)

    Invariants: only the thread that holds ``_summing`` takes from ``_due``, so what comes first is summed up first, and
    only that thread changes ``_summed``.

    Args:
        head: what the record begins with.
        seed: of the hash.
        size: bytes that follow.
        threads: that may work at a time.
    """

    def __init__(self, head: bytes, seed: int, size: int, threads: int) -> None:
        self._hash = xxh3_64(head, seed)
        self._size = size
        self._may_have_helper = threads > 1 and size >= _WORTH
        self._helper: Helper | None = None
        self._due: deque[memoryview] = deque()
        self._written = self._summed = 0  # bytes
        self._summing = _thread.allocate_lock()
        # Tells the helper that something is due, or, by False, that nothing will be.
        self._told: SimpleQueue[bool] = SimpleQueue()

    def __enter__(self) -> Self:
        if self._may_have_helper:
            helper = Helper(self._help)
            self._helper = helper if helper.is_there else None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end_helper()
        self._due.clear()  # after an error; not sooner, as the helper may be about to take what it has seen there

    @property
    def has_helper(self) -> bool:
        """Whether another thread sums up what is announced."""
        return self._helper is not None

    def announce(self, view: memoryview) -> None:
        """Take note of what is about to be written. It must not change until :meth:`value`."""
        if self._helper is not None:
            self._due.extend(view[start : start + _SLICE] for start in range(0, len(view), _SLICE))
            self._told.put(True)

    def add_written(self, piece: memoryview) -> None:
        """Take note that a piece of what was announced has been written."""
        if self._helper is None:
            self._hash.update(piece)
            return
        self._written += len(piece)
        if self._written - self._summed > _MOST_BEHIND:
            self._sum_up(self._written)
        offer_core()

    def value(self) -> int:
        """The checksum of all that was announced. Nothing can be added after that."""
        self._sum_up()
        self._end_helper()
        self._sum_up()  # what came when the helper had just looked for the last time
        return self._hash.intdigest()

    def _end_helper(self) -> None:
        helper, self._helper = self._helper, None
        if helper is not None:
            self._told.put(False)
            helper.wait()

    def _help(self) -> None:
        # It does not wait to be told that all is done: to be woken for that takes 0.4 ms.
        while self._summed < self._size and self._told.get():
            self._sum_up()

    def _sum_up(self, until: float = math.inf) -> None:
        """Sum up what is due, up to about so many bytes of all, unless the other thread is at it."""
        if not self._summing.acquire(blocking=False):
            return
        try:
            while self._due and self._summed < until:
                view = self._due.popleft()
                self._hash.update(view)
                self._summed += len(view)
                offer_core()
        finally:
            self._summing.release()
