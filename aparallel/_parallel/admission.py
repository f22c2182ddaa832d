"""Which calls may wait for a worker; and what is said of those that may not, or waited too long."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aparallel.errors import PoolSaturatedError

if TYPE_CHECKING:
    from aparallel._parallel.queues import Tallies
    from aparallel._parallel.quotas import Quota
    from aparallel._parallel.runs import RunQueue
    from aparallel._parallel.scheduler import Scheduler


def seconds_for(calls: int, workers: int, each: float | None) -> float | None:
    """Return how long *workers* take for *calls* that take *each* seconds; None if nobody knows."""
    return None if each is None else calls * each / workers


def queue_is_full(waiting: int, limit: int, quota: Quota | None, retry_after: float | None) -> PoolSaturatedError:
    """Build the error for a call that finds no place in a queue: its key's, or, without a *quota*, the pool's."""
    whose = "" if quota is None else f" with key {quota.name}"
    return PoolSaturatedError(
        f"{waiting} calls{whose} wait for a worker already (max_queued={limit}). {_advice(retry_after)}",
        max_queued=limit,
        key=None if quota is None else quota.name,
        retry_after=retry_after,
    )


def waited_too_long(
    seconds: float, waiting: int, workers: int, quota: Quota | None, retry_after: float | None
) -> PoolSaturatedError:
    """Build the error for a call that was withdrawn because no worker has started it in time."""
    whose = "" if quota is None else f" with key {quota.name}"
    when = f"within queue_timeout={seconds:g} seconds" if seconds else "at once (queue_timeout=0)"
    return PoolSaturatedError(
        f"No worker could start the call{whose} {when}, so it was withdrawn and will not run "
        f"(others waiting: {waiting}, workers: {workers}). {_advice(retry_after)}",
        queue_timeout=seconds,
        key=None if quota is None else quota.name,
        retry_after=retry_after,
    )


def _advice(retry_after: float | None) -> str:
    if retry_after is None:
        return "Try again later, or shed load."
    return f"Try again in about {retry_after:.2g} seconds, or shed load."


class Admission:
    """Says whether a call may wait for a worker.

    Attributes:
        max_queued: how many single calls may wait in the whole pool; None for any number.
    """

    def __init__(self, max_queued: int | None, waiting: Tallies) -> None:
        self.max_queued = max_queued
        self._waiting = waiting

    def check_room(self, scheduler: Scheduler, runs: RunQueue, patience: float | None) -> None:
        """Refuse a call if as many wait as may, in the pool or of its key, or if it has no *patience* and must wait.

        A call that a free worker will take does not wait. What waits for its key's limit alone leaves workers free.

        Raises:
            PoolSaturatedError: so it is.
        """
        quota = runs.quota
        free = scheduler.free_places()
        if quota is not None:
            free = min(free, quota.free_places())
            waiting = runs.count + runs.coming
            if quota.max_queued is not None and waiting >= quota.max_queued + free:
                scheduler.accounts.refused += 1
                raise queue_is_full(waiting, quota.max_queued, quota, scheduler.seconds_left(quota))
        waiting = self._waiting.runs.calls + self._waiting.coming.calls
        if self.max_queued is not None and waiting >= self.max_queued + free:
            scheduler.accounts.refused += 1
            raise queue_is_full(waiting, self.max_queued, None, scheduler.seconds_left(None))
        if patience == 0 and not free:
            raise scheduler.impatient(quota, 0)
