"""Which calls may wait for a worker."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aparallel._parallel.failures import queue_is_full

if TYPE_CHECKING:
    from aparallel._parallel.queues import Tallies
    from aparallel._parallel.scheduler import Scheduler
    from aparallel._parallel.single_queue import SingleQueue


class Admission:
    """Says whether a call may wait for a worker.

    Attributes:
        max_queued: how many single calls may wait in the whole pool; None for any number.
    """

    def __init__(self, max_queued: int | None, waiting: Tallies) -> None:
        self.max_queued = max_queued
        self._waiting = waiting

    def check_room(self, scheduler: Scheduler, queue: SingleQueue, patience: float | None) -> None:
        """Refuse a call if as many wait as may, in the pool or of its key, or if it has no *patience* and must wait.

        A call that a free worker will take does not wait. What waits for its key's limit alone leaves workers free.

        Raises:
            PoolSaturatedError: so it is.
        """
        quota = queue.quota
        free = scheduler.workforce.free_places()
        if quota is not None:
            free = min(free, quota.free_places())
            waiting = queue.count + queue.coming
            if quota.max_queued is not None and waiting >= quota.max_queued + free:
                scheduler.accounts.refused += 1
                raise queue_is_full(waiting, quota.max_queued, quota, scheduler.patience.seconds_left(quota))
        waiting = self._waiting.singles.calls + self._waiting.coming.calls
        if self.max_queued is not None and waiting >= self.max_queued + free:
            scheduler.accounts.refused += 1
            raise queue_is_full(waiting, self.max_queued, None, scheduler.patience.seconds_left(None))
        if patience == 0 and not free:
            raise scheduler.patience.refusal(quota, 0)
