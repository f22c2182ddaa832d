"""The memory that a worker's small outcomes wait in: shared with the parent, so that it outlives the worker.

A worker collects the outcomes of short calls and sends many in one frame. Should it die before,
the parent reads them from here: what had finished keeps its outcome. The layout, in native order::

    0     first u64      position of the first outcome held, in all that this worker ever gives
    8     count u64      outcomes held; written last, so an outcome counts only when it is whole
    16    started u64    monotonic nanoseconds at which the current call started; while its function is being
                         loaded, a time that never comes
    24    claimed u64    one more than the number of the call claimed last
    32    recalls u64    how often the parent has begun to take calls back; the parent writes it
    40    logged u64     monotonic nanoseconds at which a log record was written last (``records.py``)
    64    lengths u32 × 1,024
    4160  outcomes, back to back

A plain outcome (a number, a short string) is written by marshal, version 2: a third of pickle's time, which
is a quarter of what a tiny call takes in a worker. In that version nothing refers to what came before it, so
many of them behind the head of a list are one marshalled list, read in one go. Its head is a
type byte and the length in four bytes, little-endian (CPython's marshal.c; checked below).
"""

from __future__ import annotations

import mmap
from marshal import dumps, loads

from aparallel._wire.frames import FAILURE, LENGTH, PICKLED

TYPE_CHECKING = False  # as in aparallel/__init__.py
if TYPE_CHECKING:
    from typing import Any

CAPACITY = 1024
SIZE = 1 << 16
_LENGTHS = 64
_DATA = _LENGTHS + 4 * CAPACITY
ROOM = SIZE - _DATA

FIRST, COUNT, STARTED, CLAIMED, RECALLS, LOGGED = range(6)
# ``write_plain(value, PLAIN)`` gives a plain outcome's bytes: no function of ours, which would take as long again.
write_plain = dumps
PLAIN = 2
_LIST = write_plain([], PLAIN)[:1]


class Outbox:
    """Both ends' view of the memory. The worker writes all of it but the count of recalls."""

    def __init__(self, fd: int) -> None:
        self._memory = mmap.mmap(fd, SIZE)
        whole = memoryview(self._memory)
        self.head = whole[:_LENGTHS].cast("Q")
        self.lengths = whole[_LENGTHS:_DATA].cast("I")
        self.data = whole[_DATA:]

    def close(self) -> None:
        self.head.release()
        self.lengths.release()
        self.data.release()
        self._memory.close()

    @property
    def started_ns(self) -> int:
        """Monotonic nanoseconds at which the worker started its current call; 0 before the first.

        In the future while the call's function is being loaded.
        """
        return self.head[STARTED]

    def read_from(self, position: int) -> tuple[list[int], bytes]:
        """Return the lengths and bytes of the outcomes held, from *position* on.

        The worker may be alive and writing: what changed under the reader's eyes is not returned.
        """
        first, count = self.head[FIRST], self.head[COUNT]
        skip = position - first
        if not 0 <= skip < count <= CAPACITY:
            return [], b""
        lengths = self.lengths[:count].tolist()
        start = sum(length & LENGTH for length in lengths[:skip])
        end = start + sum(length & LENGTH for length in lengths[skip:])
        data = bytes(self.data[start:end])
        if self.head[FIRST] != first or self.head[COUNT] < count:
            return [], b""
        return lengths[skip:], data


def read_plain(data: bytes | memoryview, count: int) -> list[Any]:
    """Read *count* outcomes that are all plain, back to back in *data*."""
    values: list[Any] = loads(  # noqa: S302 (our own worker wrote it; it may run any code anyway)
        b"".join((_LIST, count.to_bytes(4, "little"), data))
    )
    return values


if read_plain(write_plain(1.5, PLAIN) + write_plain("é", PLAIN) + write_plain(None, PLAIN), 3) != [1.5, "é", None]:
    raise ImportError("This Python's marshal lays out lists in a way that aparallel does not know. Please report it.")


def are_plain(lengths: list[int]) -> bool:
    """Whether none of the outcomes is a failure or a pickle of its own."""
    return max(lengths) < min(FAILURE, PICKLED)
