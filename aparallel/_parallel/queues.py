"""Calls that wait for a worker: in queues, some of which share a key, and whose turn it is."""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

from aparallel.abc import Batch
from aparallel.abc import Owner as OwnerToWorkers

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Sequence

    from aparallel._parallel.slots import Slot
    from aparallel.abc import OnCancel

# Keys come from strangers, and errors quote them.
_LONG_KEY = 80

# The heap of turns is cleared of entries that nobody has any more when there are this many more of them than of others.
_MANY_DEAD = 64


class Owner(OwnerToWorkers, Protocol):
    """Who asked for calls, as those see it who give them to workers. Told of each outcome once.

    Attributes:
        timeout: seconds that each of its calls may run; None for any time.
        on_cancel: what is done to those that run when it wants them no more.
        retries: how often a call is run again after its worker died.
        deaths: for which of its calls, by their index, how many workers died and it was run again.
        cancelled: it wants none of them any more, and is told nothing.
        queue: where its calls wait.
    """

    timeout: float | None
    on_cancel: OnCancel
    retries: int
    deaths: dict[int, int]

    @property
    def cancelled(self) -> bool: ...
    @property
    def queue(self) -> Queue: ...
    def wants(self, index: int) -> bool:
        """Whether the outcome of this call is still of use."""

    def deliver(self, first: int, values: list[Any], failed: Sequence[int]) -> None:
        """Take what calls gave, from the one with the index *first* on; at each position in *failed*, an exception."""


class Tally:
    """How many calls wait in several queues together."""

    __slots__ = ("calls",)

    def __init__(self) -> None:
        self.calls = 0


class Tallies:
    """How many calls wait in a pool.

    Attributes:
        singles: single calls.
        drawn: calls of gathers and streams.
        coming: single calls that will wait as soon as their arguments are pickled, which takes long.
    """

    __slots__ = ("coming", "drawn", "singles")

    def __init__(self) -> None:
        self.singles, self.drawn, self.coming = Tally(), Tally(), Tally()


class Bounded:
    """Has calls in at most *limit* workers at a time.

    Attributes:
        limit: workers that may have its calls at a time.
        serving: how many of its calls each worker has that has any.
    """

    __slots__ = ("limit", "serving")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.serving: dict[Slot, int] = {}

    def may_use(self, slot: Slot | None) -> bool:
        """Whether *slot* may be given calls of it; None for a worker that has none of them."""
        return len(self.serving) < self.limit or slot in self.serving

    def count_in(self, slot: Slot, count: int) -> None:
        """Take note that *slot* was given so many of its calls."""
        self.serving[slot] = self.serving.get(slot, 0) + count

    def count_out(self, slot: Slot, count: int) -> None:
        """Take note that *slot* has so many fewer of its calls."""
        left = self.serving[slot] - count
        if left:
            self.serving[slot] = left
        else:
            del self.serving[slot]


class Queue(Bounded):
    """Calls that wait for a worker, and the share of the workers that they are due.

    Attributes:
        count: calls pending, without those of cancelled owners.
        spent: seconds of work given to workers so far; the queue with the least goes next.
        quota: what it shares with other queues of the same key.
        tally: what its calls are counted in, too.
    """

    def __init__(self, limit: int, batch_size: int | None = None, *, tally: Tally, quota: Quota | None = None) -> None:
        super().__init__(limit)
        self.batch_size = batch_size
        self.pending: deque[Batch] = deque()
        self.count = 0
        self.spent = 0.0
        self.tally = tally
        self.quota = quota

    # As those have turns who wait for workers

    def has_calls(self) -> bool:
        return self.head() is not None

    def queues(self) -> list[Queue]:
        return [self]

    def queue_for(self, slot: Slot | None) -> Queue | None:
        """Return the queue to give *slot* calls from (None: a worker that has none), if it may have any."""
        return self if self.may_use(slot) else None

    # Its calls

    def most_workers(self, there: int) -> int:
        """Of so many workers, how many may serve this queue at a time."""
        most = min(there, self.limit)
        return most if self.quota is None else min(most, self.quota.limit)

    def count_in(self, slot: Slot, count: int) -> None:
        super().count_in(slot, count)
        if self.quota is not None:
            self.quota.count_in(slot, count)

    def count_out(self, slot: Slot, count: int) -> None:
        super().count_out(slot, count)
        if self.quota is not None:
            self.quota.count_out(slot, count)

    def push(self, batch: Batch) -> None:
        calls = len(batch.payloads)
        self.pending.append(batch)
        self.count += calls
        self.tally.calls += calls

    def push_back(self, batches: Iterable[Batch]) -> None:
        """Put back, at the front and in their order, calls that were taken from a worker."""
        for batch in batches:
            self.pending.appendleft(batch)
            self.count += len(batch)
            self.tally.calls += len(batch)

    def head(self) -> Batch | None:
        """The next batch of an owner that still wants it."""
        while self.pending:
            batch = self.pending[0]
            if not batch.owner.cancelled:
                return batch
            self.pending.popleft()
        return None

    def take(self, count: int) -> Batch:
        """Remove and return up to *count* calls of the head."""
        batch = self.pending.popleft()
        calls = len(batch.payloads)
        if calls > count:
            batch, rest = batch.split(count)
            self.pending.appendleft(rest)
            calls = count
        self.count -= calls
        self.tally.calls -= calls
        return batch

    def clear(self) -> None:
        """Forget all that is pending."""
        self.pending.clear()
        self.tally.calls -= self.count
        self.count = 0


class Quota(Bounded):
    """What all calls of one key have together: a number of workers, and turns at them.

    It lives as long as someone may still use the key: whoever has a view of it, a call that waits, a call that a
    worker has. Each of these refers to it, and it refers to none of them for longer than calls wait.

    Attributes:
        key: whose it is.
        max_queued: single calls that may wait, None for any number.
        nested: calls of it that wait for other calls of it, each in a place that is not to be counted.
        turns: whose turn it is among the key's queues.
        spent: seconds of work that the key was given.
    """

    __slots__ = ("__weakref__", "key", "max_queued", "nested", "spent", "turns")

    def __init__(self, key: Hashable) -> None:
        super().__init__(1)
        self.key = key
        self.max_queued: int | None = None
        self.nested = 0
        self.turns: Turns = Turns()
        self.spent = 0.0

    def allow(self, workers: int, max_queued: int | None) -> bool:
        """Let its calls have so many workers, and so many of them wait; return whether that is more workers."""
        is_more = workers > self.limit
        self.limit, self.max_queued = workers, max_queued
        return is_more

    @property
    def name(self) -> str:
        """Its key, for people, cut short."""
        text = repr(self.key)
        return text if len(text) <= _LONG_KEY else f"{text[:_LONG_KEY]}..."

    @property
    def count(self) -> int:
        """Its calls that wait."""
        return sum(waiter.count for waiter in self.turns.entries)

    @property
    def running(self) -> int:
        """Its calls that workers have."""
        return sum(self.serving.values())

    def free_places(self) -> int:
        """How many more workers may have calls of it."""
        return max(self.limit + self.nested - len(self.serving), 0)

    def may_use(self, slot: Slot | None) -> bool:
        return self.free_places() > 0 or slot in self.serving

    def has_calls(self) -> bool:
        return self.turns.has_calls()

    def queues(self) -> list[Queue]:
        return self.turns.queues()

    def queue_for(self, slot: Slot | None) -> Queue | None:
        return self.turns.queue_for(slot) if self.may_use(slot) else None


class Turns:
    """Who waits for workers: of a pool, queues without a key, and keys; of a key, its queues.

    The one that was given the least work goes next; among equals, who has waited longest. Who has no calls loses its
    place. A million may wait: a heap finds the next. Invariants: each waiter has one entry in the heap, ``[spent,
    number, waiter]``, at most as high as what it was given (work is only ever added; an entry is put right when it
    comes to the top); an entry whose waiter was removed holds None.

    Attributes:
        entries: who has a place, with its entry.
        clock: what the waiter served last had been given before: one that comes back starts from there.
    """

    __slots__ = ("_heap", "_number", "clock", "entries")

    def __init__(self) -> None:
        self.clock = 0.0
        self._heap: list[list[Any]] = []
        self.entries: dict[Queue | Quota, list[Any]] = {}
        self._number = 0

    def add(self, waiter: Queue | Quota) -> None:
        """Give *waiter* a place, if it has none."""
        if waiter not in self.entries:
            waiter.spent = max(waiter.spent, self.clock)
            self.entries[waiter] = entry = self._entry(waiter)
            heapq.heappush(self._heap, entry)

    def remove(self, waiter: Queue | Quota) -> None:
        """Take its place from *waiter*, if it has one."""
        entry = self.entries.pop(waiter, None)
        if entry is not None:
            entry[2] = None
            if len(self._heap) > 2 * len(self.entries) + _MANY_DEAD:
                self._heap = [entry for entry in self._heap if entry[2] is not None]
                heapq.heapify(self._heap)

    def charge(self, waiter: Queue | Quota, seconds: float) -> None:
        """Count work that *waiter*, whose turn it was, was given."""
        self.clock = waiter.spent
        waiter.spent += seconds

    def queue_for(self, slot: Slot | None) -> Queue | None:
        """Return the queue whose turn it is, of those that may use *slot*; None for a worker that has no calls."""
        # Who may not use this worker is passed over. They are few: whoever is at its limit has calls in a worker.
        passed = []
        queue: Queue | None = None
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

    def queues(self) -> list[Queue]:
        """Where all calls here wait."""
        return [queue for waiter in self.entries for queue in waiter.queues()]

    def _first(self) -> Queue | Quota | None:
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
                found: Queue | Quota = waiter
                return found
        return None

    def _entry(self, waiter: Queue | Quota) -> list[Any]:
        self._number += 1
        return [waiter.spent, self._number, waiter]


def still_wanted(batch: Batch) -> list[Batch]:
    """Return what is left of *batch* without the calls that are not wanted any more."""
    wanted = [batch.owner.wants(index) for index in range(batch.first, batch.first + len(batch))]
    if all(wanted):
        return [batch]
    parts = []
    start = 0
    for kept, group in itertools.groupby(wanted):
        end = start + len(list(group))
        if kept:
            parts.append(batch.part(start, end))
        start = end
    return parts
