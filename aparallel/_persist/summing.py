"""The checksum of what is being written, computed by a second thread where that is worth it."""

from __future__ import annotations

import _thread
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
# The helper gives its core away after so much.
_SLICE = 1 << 20
# How far the helper may fall behind before the writer sums up as well: what both read about the same time, one of them
# finds in the cache that the cores share.
_MOST_BEHIND = 16 << 20


class Checksum:
    """The xxh3 (64 bits) of a record. To be entered, and used by one thread, which writes the record.

    A helper sums up what the writer has announced while that writes it: 100 MB that are not in a cache take 12 ms to
    sum up, and as long to write. Without a helper each part is summed up when it has been written, and is in the cache
    of its core: then it is 3 ms.

    Invariant: only the thread that holds ``_summing`` takes from ``_due``, so what comes first is summed up first.

    Args:
        head: what the record begins with.
        seed: of the hash.
        size: bytes that follow.
        threads: that may work at a time.
    """

    def __init__(self, head: bytes, seed: int, size: int, threads: int) -> None:
        self._hash = xxh3_64(head, seed)
        self._may_have_helper = threads > 1 and size >= _WORTH
        self._helper: Helper | None = None
        self._due: deque[memoryview] = deque()
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

    def announce(self, view: memoryview) -> None:
        """Take note of what is about to be written. It must not change until :meth:`value`."""
        if self._helper is not None:
            self._due.append(view)
            self._told.put(True)
            if sum(map(len, self._due)) > _MOST_BEHIND:
                self._sum_up()

    def add_written(self, part: memoryview) -> None:
        """Take note that a part of what was announced has been written."""
        if self._helper is not None:
            offer_core()
        else:
            self._hash.update(part)

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
        while self._told.get():
            self._sum_up()

    def _sum_up(self) -> None:
        """Sum up what is due, unless the other thread is at it."""
        if not self._summing.acquire(blocking=False):
            return
        try:
            while self._due:
                view = self._due.popleft()
                for start in range(0, len(view), _SLICE):
                    self._hash.update(view[start : start + _SLICE])
                    offer_core()
        finally:
            self._summing.release()
