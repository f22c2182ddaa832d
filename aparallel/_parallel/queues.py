"""Calls that wait for a worker, and those who asked for them."""

from __future__ import annotations

import itertools
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

from aparallel._parallel.quotas import Bounded
from aparallel.abc import Batch

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from contextvars import Context

    from aparallel._parallel.quotas import Quota
    from aparallel._parallel.slots import Slot
    from aparallel.abc import OnCancel, Sharing


class Owner(Protocol):
    """Who asked for calls. Told of each outcome once; ``cancelled`` ones are told nothing."""

    context: Context
    sharing: Sharing
    timeout: float | None
    on_cancel: OnCancel

    @property
    def cancelled(self) -> bool: ...
    @property
    def queue(self) -> Queue: ...
    def wants(self, index: int) -> bool:
        """Whether the outcome of this call is still of use."""

    def deliver(self, first: int, values: list[Any], failed: Sequence[int]) -> None: ...
    def may_retry(self, index: int) -> bool: ...


class Tally:
    """How many calls wait in several queues together."""

    __slots__ = ("calls",)

    def __init__(self) -> None:
        self.calls = 0


class Tallies:
    """How many calls wait in a pool.

    Attributes:
        runs: single calls.
        drawn: calls of gathers and streams.
        coming: single calls that will wait as soon as their arguments are pickled, which takes long.
    """

    __slots__ = ("coming", "drawn", "runs")

    def __init__(self) -> None:
        self.runs, self.drawn, self.coming = Tally(), Tally(), Tally()


class Queue(Bounded):
    """Calls that wait for a worker, and the share of the workers that they are due.

    Attributes:
        count: calls pending, without those of cancelled owners.
        spent: seconds of work given to workers so far; the queue with the least goes next.
        quota: what it shares with other queues of the same key.
        tally: what its calls are counted in, too.
    """

    def __init__(
        self, limit: int, batch_size: int | None = None, *, tally: Tally | None = None, quota: Quota | None = None
    ) -> None:
        super().__init__(limit)
        self.batch_size = batch_size
        self.pending: deque[Batch] = deque()
        self.count = 0
        self.spent = 0.0
        self.tally = tally or Tally()
        self.quota = quota

    def has_calls(self) -> bool:
        return self.head() is not None

    def queues(self) -> list[Queue]:
        return [self]

    def queue_for(self, slot: Slot | None) -> Queue | None:
        return self if self.may_use(slot) else None

    def most_workers(self, there: int) -> int:
        """Of so many workers, how many may serve this queue at a time."""
        most = min(there, self.limit)
        return most if self.quota is None else min(most, self.quota.limit)

    def push(self, batch: Batch) -> None:
        self.pending.append(batch)
        self.count += len(batch)
        self.tally.calls += len(batch)

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
        if len(batch) > count:
            batch, rest = batch.split(count)
            self.pending.appendleft(rest)
        self.count -= len(batch)
        self.tally.calls -= len(batch)
        return batch

    def clear(self) -> None:
        """Forget all that is pending."""
        self.pending.clear()
        self.tally.calls -= self.count
        self.count = 0


def still_wanted(batch: Batch) -> list[Batch]:
    """Return what is left of *batch* without the calls that are not wanted any more."""
    wanted = [batch.owner.wants(index) for index in range(batch.first, batch.first + len(batch))]
    if all(wanted):
        return [batch]
    parts = []
    start = 0
    for kept, run in itertools.groupby(wanted):
        end = start + len(list(run))
        if kept:
            parts.append(Batch(batch.owner, batch.function, batch.first + start, batch.payloads[start:end]))
        start = end
    return parts


class Nobody:
    """Owns a call that its real owner has abandoned."""

    on_cancel: OnCancel = "wait"
    timeout: float | None = None
    cancelled = True

    def __init__(self, owner: Owner) -> None:
        self.queue = owner.queue
        self.context = owner.context
        self.sharing = owner.sharing

    def deliver(self, first: int, values: list[Any], failed: Sequence[int]) -> None:
        raise AssertionError("told of an abandoned call")

    def wants(self, index: int) -> bool:
        return False

    def may_retry(self, index: int) -> bool:
        return False
