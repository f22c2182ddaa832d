"""Whose turn it is: who waits for workers, in the order of the work that they were given."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aparallel._parallel.slots import Slot

# The heap is cleared of entries that nobody has any more when there are this many more of them than of others.
_MANY_DEAD = 64


Q = TypeVar("Q")


class Waiter(Protocol[Q]):
    """Who has turns: a queue, or a key with the queues of its calls.

    Attributes:
        spent: seconds of work given to workers so far.
    """

    spent: float

    @property
    def count(self) -> int:
        """Calls that wait."""

    def has_calls(self) -> bool:
        """Whether any are left; a waiter without calls loses its place."""

    def queues(self) -> list[Q]:
        """Where its calls wait."""

    def queue_for(self, slot: Slot | None) -> Q | None:
        """Return the queue to give *slot* calls from (None: a worker that has none), if it may have any."""


class Turns(Generic[Q]):
    """Waiters, of whom the one that was given the least work goes next; among equals, who has waited longest.

    A million may wait: a heap finds the next. Invariants: each waiter has one entry in the heap, ``[spent, number,
    waiter]``, at most as high as what it was given (work is only ever added; an entry is put right when it comes
    to the top); an entry whose waiter was removed holds None.

    Attributes:
        entries: who has a place, with its entry.
        clock: what the waiter served last had been given before: one that comes back starts from there.
    """

    __slots__ = ("_heap", "_number", "clock", "entries")

    def __init__(self) -> None:
        self.clock = 0.0
        self._heap: list[list[Any]] = []
        self.entries: dict[Waiter[Q], list[Any]] = {}
        self._number = 0

    def __iter__(self) -> Iterator[Waiter[Q]]:
        return iter(list(self.entries))

    def add(self, waiter: Waiter[Q]) -> None:
        """Give *waiter* a place, if it has none."""
        if waiter not in self.entries:
            waiter.spent = max(waiter.spent, self.clock)
            self.entries[waiter] = entry = self._entry(waiter)
            heapq.heappush(self._heap, entry)

    def remove(self, waiter: Waiter[Q]) -> None:
        """Take its place from *waiter*, if it has one."""
        entry = self.entries.pop(waiter, None)
        if entry is not None:
            entry[2] = None
            if len(self._heap) > 2 * len(self.entries) + _MANY_DEAD:
                self._heap = [entry for entry in self._heap if entry[2] is not None]
                heapq.heapify(self._heap)

    def charge(self, waiter: Waiter[Q], seconds: float) -> None:
        """Count work that *waiter*, whose turn it was, was given."""
        self.clock = waiter.spent
        waiter.spent += seconds

    def queue_for(self, slot: Slot | None) -> Q | None:
        """Return the queue whose turn it is, of those that may use *slot*; None for a worker that has no calls."""
        # Who may not use this worker is passed over. They are few: whoever is at its limit has calls in a worker.
        passed = []
        queue: Q | None = None
        while (first := self._first()) is not None:
            queue = first.queue_for(slot)
            if queue is not None:
                break
            passed.append(heapq.heappop(self._heap))
        for entry in passed:
            heapq.heappush(self._heap, entry)
        return queue

    def has_calls(self) -> bool:
        """Whether anyone here still has calls."""
        return self._first() is not None

    def _first(self) -> Waiter[Q] | None:
        """Return who is first of those that still have calls, whether it may use a worker or not."""
        heap = self._heap
        while heap:
            spent, _, waiter = heap[0]
            if waiter is None:
                heapq.heappop(heap)
            elif not waiter.has_calls():
                heapq.heappop(heap)
                del self.entries[waiter]
            elif spent < waiter.spent:
                self.entries[waiter] = entry = self._entry(waiter)
                heapq.heapreplace(heap, entry)
            else:
                found: Waiter[Q] = waiter
                return found
        return None

    def _entry(self, waiter: Waiter[Q]) -> list[Any]:
        self._number += 1
        return [waiter.spent, self._number, waiter]
