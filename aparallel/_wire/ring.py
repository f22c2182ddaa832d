"""Memory that pickles are copied through, in one direction, without a call of the kernel.

A call with 64 KB of bytes each way takes 0.1 ms, and one with 1 MB 0.4. Through sockets, as anyio has them, it is 0.15
and 2.7: a socket holds 200 KB, so that both sides wait for each other several times.
"""

from __future__ import annotations

TYPE_CHECKING = False  # as in aparallel/__init__.py
if TYPE_CHECKING:
    from collections.abc import Sequence

RING_SIZE = 4 << 20


class Ring:
    """One end. One process puts pieces of data, another one takes them, in that order.

    A position counts all the bytes before it, those included that were skipped because no piece lies on both sides of
    the memory's end. Where the taking side is, it writes to shared memory, in 64 bits, which suffice: what lies before
    that may be overwritten. It has made copies by then; no processor holds their loads back until after a store that
    comes thousands of instructions later. What was put is told of in a message, or in the outbox.

    Invariant: what was put and may be read yet lies between the larger of that number and ``_free_to``, and ``_end``;
    these are no further apart than the memory is long.

    Args:
        memory: RING_SIZE bytes.
        head: shared numbers, of which the one at *index* is where the taking side is.
    """

    def __init__(self, memory: memoryview, head: memoryview, index: int) -> None:
        self._memory = memory
        self._head = head
        self._index = index
        # For the side that puts: where what it put last ends, and what it knows to be free whatever the other one says.
        self._end = 0
        self._free_to = 0

    # The side that puts

    def put(self, parts: Sequence[bytes | memoryview], size: int) -> int | None:
        """Copy *parts*, of *size* bytes together, one behind the other.

        Return their position; None if there is no room for them now.
        """
        start = self._end
        taken = max(self._head[self._index], self._free_to)
        rest = -start % RING_SIZE
        is_empty = taken == start
        if is_empty or size > rest:  # begin in front: where it fits, or where the caches know the memory
            start += rest
        if is_empty:
            taken = start
        end = start + size
        if end - taken > RING_SIZE:
            return None
        at = start % RING_SIZE
        for part in parts:
            length = len(part)
            self._memory[at : at + length] = part
            at += length
        self._end = end
        self._free_to = taken
        return start

    def is_filling(self) -> bool:
        """Whether less than half of it is free."""
        return self._end - max(self._head[self._index], self._free_to) > RING_SIZE // 2

    def forget(self) -> None:
        """Nobody will take what was put so far."""
        self._free_to = self._end

    # The side that takes

    def look(self, position: int, size: int) -> memoryview:
        """Return what was put there, until :meth:`take`."""
        at = position % RING_SIZE
        return self._memory[at : at + size]

    def take(self, end: int) -> None:
        """What was put before *end* has been read, or will not be."""
        self._head[self._index] = end

    def close(self) -> None:
        self._memory.release()
