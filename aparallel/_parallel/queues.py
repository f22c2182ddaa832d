"""Calls that wait for a worker, and those who asked for them."""

from __future__ import annotations

import itertools
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

from aparallel.abc import Batch

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from contextvars import Context

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


class Queue:
    """Calls that wait for a worker, and the share of the workers that they are due.

    Attributes:
        count: calls pending, without those of cancelled owners.
        limit: workers that may serve this queue at a time.
        spent: seconds of work given to workers so far; the queue with the least goes next.
    """

    def __init__(self, limit: int, batch_size: int | None = None) -> None:
        self.limit = limit
        self.batch_size = batch_size
        self.pending: deque[Batch] = deque()
        self.count = 0
        self.spent = 0.0
        self.serving: dict[Slot, int] = {}

    def may_use(self, slot: Slot) -> bool:
        return slot in self.serving or len(self.serving) < self.limit

    def push(self, batch: Batch) -> None:
        self.pending.append(batch)
        self.count += len(batch)

    def push_back(self, batches: Iterable[Batch]) -> None:
        """Put back, at the front and in their order, calls that were taken from a worker."""
        for batch in batches:
            self.pending.appendleft(batch)
            self.count += len(batch)

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
        return batch

    def clear(self) -> None:
        """Forget all that is pending."""
        self.pending.clear()
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
