"""What a pool's calls came to, how many ended in which way and how long they took; and what users are told of it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Hashable

# The average of recent calls is that of all as long as there are no more than this; then old ones fade.
_MANY_CALLS = 32


@dataclasses.dataclass(frozen=True, slots=True)
class PoolStatistics:
    """What a pool is doing at one moment.

    Attributes:
        n_jobs: the most workers that it may have.
        workers: workers that it has, without those on their way out.
        starting: of these, not ready yet.
        idle: of these, ready and without calls.
        busy: of these, with calls.
        queued: calls admitted that no worker has.
        running: calls that workers have, running or about to.
        completed: calls that returned, since the pool began.
        failed: calls that raised, timed out or lost their worker, since the pool began.
        broken: workers that died while running a call, since the pool began.
        refused: calls, gathers and streams that ended with PoolSaturatedError, since the pool began.
    """

    n_jobs: int
    workers: int
    starting: int
    idle: int
    busy: int
    queued: int
    running: int
    completed: int
    failed: int
    broken: int
    refused: int = 0


class Accounts:
    """How many calls ended in which way since the pool began, and how long recent ones took.

    Attributes:
        completed, failed, broken, refused: as in :class:`PoolStatistics`.
        mean_seconds: how long calls took lately, whichever they were; None before the first.
    """

    def __init__(self) -> None:
        self.completed = self.failed = self.broken = self.refused = 0
        self.mean_seconds: float | None = None
        self._measured = 0

    def learn(self, seconds: float, calls: int) -> None:
        """Take in that *calls* took *seconds* each."""
        weight = calls / (self._measured + calls)
        self.mean_seconds = seconds * weight + (self.mean_seconds or 0.0) * (1 - weight)
        self._measured = min(self._measured + calls, _MANY_CALLS)


@dataclasses.dataclass(frozen=True, slots=True)
class LimitStatistics:
    """What the calls of one key are doing at one moment, those of all views of the key together.

    Attributes:
        key: the key.
        n: workers that its calls may occupy at a time.
        max_queued: its calls of ``run`` that may wait; None for any number.
        busy: workers that have calls of it.
        queued: calls of it that no worker has.
        running: calls of it that workers have, running or about to.
    """

    key: Hashable
    n: int
    max_queued: int | None
    busy: int
    queued: int
    running: int
