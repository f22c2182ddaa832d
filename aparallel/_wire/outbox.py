"""The memory that a worker shares with the parent, above all for outcomes that wait there: it outlives the worker.

A worker collects the outcomes of short calls and sends many in one frame. Should it die before,
the parent reads them from here: what had finished keeps its outcome. The layout of the last SIZE bytes, in native
order::

    0     first u64      position of the first outcome held, in all that this worker ever gives
    8     count u64      outcomes held; written last, so an outcome counts only when it is whole
    16    started u64    monotonic nanoseconds at which the current call started; while its function is being
                         loaded, a time that never comes
    24    claimed u64    one more than the number of the call claimed last
    32    recalls u64    how often the parent has begun to take calls back; the parent writes it
    40    logged u64     monotonic nanoseconds at which a log record was written last (``records.py``)
    48    taken u64      where the worker is in the ring to it (``ring.py``)
    56    taken u64      where the parent is in the ring from it; the parent writes it
    64    outcomes, back to back

Before them lie the two rings, the one to the worker first, in which large pickles travel; or nothing, where the memory
is a file: to write to a page that a full disk has no room for is a SIGBUS.

Each outcome is one marshalled object, in marshal's version 2: a third of pickle's time, which is a quarter of
what a tiny call takes in a worker. A plain one (a number, a short string) is itself; any other is a tuple, which no
plain one is: ``(bytes, is_failure)``, a pickle of the value or the pickled description of an exception, or ``(position,
size)``, where in the ring the pickle of a value lies. In that version
nothing refers to what came before it, so many of them behind the head of a list are one marshalled list, read in one
go. Its head is a type byte and the length in four bytes, little-endian (CPython's marshal.c; checked below).
"""

from __future__ import annotations

import mmap
import os
from marshal import dumps, loads

from aparallel._wire.ring import RING_SIZE, Ring

TYPE_CHECKING = False  # as in aparallel/__init__.py
if TYPE_CHECKING:
    from typing import Any

SIZE = 1 << 16
SIZE_WITH_RINGS = 2 * RING_SIZE + SIZE
_HEAD = 64
_ROOM = SIZE - _HEAD

FIRST, COUNT, STARTED, CLAIMED, RECALLS, LOGGED, TAKEN_BY_WORKER, TAKEN_BY_PARENT = range(8)
# ``marshalled(outcome, VERSION)`` gives an outcome's bytes: no function of ours, which would take as long again.
marshalled = dumps
VERSION = 2
_LIST = marshalled([], VERSION)[:1]


class Outbox:
    """Both ends' view of the memory. The worker writes all of it but the count of recalls, and what rings are for.

    Args:
        fd: of SIZE bytes, or of SIZE_WITH_RINGS.

    Attributes:
        head: the numbers in front.
        to_worker, to_parent: the rings, if there are any.
        write: puts bytes behind those that it put there before, in a fifth less time than an assignment to a slice;
            raises ValueError, and writes nothing, if there is no room.
    """

    def __init__(self, fd: int) -> None:
        size = os.fstat(fd).st_size
        self._memory = mmap.mmap(fd, size)
        # Last in the memory, so that writing ends where it does.
        self._outcomes = size - _ROOM
        with memoryview(self._memory) as view:
            self.head = view[size - SIZE : self._outcomes].cast("Q")
            self.to_worker: Ring | None = None
            self.to_parent: Ring | None = None
            if size == SIZE_WITH_RINGS:
                self.to_worker = Ring(view[:RING_SIZE], self.head, TAKEN_BY_WORKER)
                self.to_parent = Ring(view[RING_SIZE : 2 * RING_SIZE], self.head, TAKEN_BY_PARENT)
        self.write = self._memory.write
        self.clear()

    def close(self) -> None:
        for ring in (self.to_worker, self.to_parent):
            if ring is not None:
                ring.close()
        self.head.release()
        # It is unmapped when the last view has gone. A forked copy may have one for ever: of a thread that was just
        # reading from a ring.
        del self.write, self._memory

    def clear(self) -> None:
        """Have :attr:`write` begin again at the first outcome."""
        self._memory.seek(self._outcomes)

    def written(self) -> bytes:
        """What was written since."""
        return self._memory[self._outcomes : self._memory.tell()]

    def read_from(self, position: int) -> list[Any]:
        """Return the outcomes held, from *position* on.

        The worker may be alive and writing: what changed under the reader's eyes is not returned.
        """
        first, count = self.head[FIRST], self.head[COUNT]
        skip = position - first
        if not 0 <= skip < count <= _ROOM:
            return []
        data = self._memory[self._outcomes :]
        if self.head[FIRST] != first or self.head[COUNT] < count:
            return []
        return read(data, count)[skip:]


def read(data: bytes | memoryview, count: int) -> list[Any]:
    """Read *count* outcomes, back to back in *data*."""
    outcomes: list[Any] = loads(  # noqa: S302 (our own worker wrote it; it may run any code anyway)
        b"".join((_LIST, count.to_bytes(4, "little"), data))
    )
    return outcomes


_EXAMPLE: list[Any] = [1.5, "é", None, (b"pickle", True)]
if read(b"".join(marshalled(outcome, VERSION) for outcome in _EXAMPLE), len(_EXAMPLE)) != _EXAMPLE:
    raise ImportError("This Python's marshal lays out lists in a way that aparallel does not know. Please report it.")
