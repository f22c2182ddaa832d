"""What users are told of a pool at one moment.

Imported by those who ask, not by the scheduler: ``gather_parallel`` without a pool has no use for it, and a script's
first result would wait for dataclasses.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Hashable


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
