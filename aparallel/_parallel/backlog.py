"""All calls of a pool that wait for a worker."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aparallel._parallel.queues import Tallies, Turns, still_wanted

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aparallel._parallel.queues import Queue
    from aparallel._parallel.single_queue import JointOwner
    from aparallel.abc import Batch


class Backlog:
    """The queues that have calls, and whose turn it is.

    It knows of no workers. Invariant: every queue with calls has a place among the turns, or, if it has a key, among
    the turns of its key, which then has one here. A queue may keep its place for a while after its last call went.

    Attributes:
        turns: queues without a key, and keys.
        tallies: how many calls wait.
    """

    def __init__(self, tallies: Tallies) -> None:
        self.turns: Turns = Turns()
        self.tallies = tallies

    @property
    def calls(self) -> int:
        """How many wait, without those whose arguments are still being pickled."""
        return self.tallies.singles.calls + self.tallies.drawn.calls

    def admit(self, queue: Queue) -> None:
        """Serve *queue*, which has calls, or is about to get them; a dispatch must follow in this tick."""
        if queue.quota is None:
            self.turns.add(queue)
        else:
            queue.quota.turns.add(queue)
            self.turns.add(queue.quota)

    def dismiss(self, queue: Queue) -> None:
        """Serve *queue* no more until it is admitted again: it has no calls."""
        if queue.quota is None:
            self.turns.remove(queue)
            return
        queue.quota.turns.remove(queue)
        if not queue.quota.turns.entries:
            self.turns.remove(queue.quota)

    def charge(self, queue: Queue, seconds: float) -> None:
        """Count work that *queue*, whose turn it was, was given."""
        if queue.quota is None:
            self.turns.charge(queue, seconds)
        else:
            queue.quota.turns.charge(queue, seconds)
            self.turns.charge(queue.quota, seconds)

    def put_back(self, batches: Iterable[Batch]) -> None:
        """Put calls that were taken from a worker, newest batch first, before those that wait."""
        for batch in batches:
            queue: Queue = batch.owner.queue
            wanted = still_wanted(batch)
            if wanted:
                self.admit(queue)
                queue.push_back(reversed(wanted))

    def clear(self, queue: Queue) -> None:
        """Forget all calls of *queue*."""
        queue.clear()
        self.dismiss(queue)

    def drop(self, owner: JointOwner, index: int) -> None:
        """Forget a single call."""
        queue = owner.queue
        queue.drop(owner, index)
        if not queue.count:
            self.dismiss(queue)

    def give_up(self, error: BaseException) -> None:
        """End every call with *error*: no worker can be had."""
        for queue in self.turns.queues():
            while (batch := queue.head()) is not None:
                queue.take(len(batch))
                for index in range(batch.first, batch.first + len(batch)):
                    if batch.owner.wants(index):
                        batch.owner.deliver(index, [error], [0])
            self.dismiss(queue)
