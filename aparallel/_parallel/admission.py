"""Calls that are not taken, or waited too long: what is said of them, and when to come again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aparallel.errors import PoolSaturatedError

if TYPE_CHECKING:
    from aparallel._parallel.quotas import Quota


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
