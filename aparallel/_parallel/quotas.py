"""How many workers calls may occupy at a time: those of one queue, and those of one key, which may wait in several."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

from aparallel._parallel.turns import Turns

if TYPE_CHECKING:
    from collections.abc import Hashable

    from aparallel._parallel.queues import Queue
    from aparallel._parallel.runs import RunQueue
    from aparallel._parallel.slots import Slot

# Keys come from strangers, and errors quote them.
_LONG_KEY = 80


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

    __slots__ = ("__weakref__", "_runs", "key", "max_queued", "nested", "spent", "turns")

    def __init__(self, key: Hashable, runs: RunQueue) -> None:
        super().__init__(1)
        self.key = key
        self.max_queued: int | None = None
        self.nested = 0
        self.turns = Turns()
        self.spent = 0.0
        self._runs = weakref.ref(runs)
        runs.quota = self

    @property
    def name(self) -> str:
        """Its key, for people, cut short."""
        text = repr(self.key)
        return text if len(text) <= _LONG_KEY else f"{text[:_LONG_KEY]}..."

    @property
    def runs(self) -> RunQueue | None:
        """Where its single calls wait, if anyone has a use for that."""
        return self._runs()

    def renew_runs(self, runs: RunQueue) -> None:
        """Have its single calls wait in *runs* from now on: the queue that they had is gone."""
        self._runs = weakref.ref(runs)
        runs.quota = self

    @property
    def count(self) -> int:
        """Its calls that wait."""
        return sum(queue.count for queue in self.turns)

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
        return [queue for waiter in self.turns for queue in waiter.queues()]

    def queue_for(self, slot: Slot | None) -> Queue | None:
        return self.turns.queue_for(slot) if self.may_use(slot) else None
