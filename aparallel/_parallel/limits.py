"""A pool as the calls of one key may use it: on no more than so many of its workers."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from aparallel._parallel.calls import Calls

if TYPE_CHECKING:
    from collections.abc import Hashable

    from aparallel._parallel.pool import Pool
    from aparallel._parallel.quotas import Quota
    from aparallel._parallel.runner import Runner


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


class LimitedPool(Calls):
    """A pool, on no more than so many of its workers at a time: what :meth:`Pool.limit` returns.

    It runs calls as its pool does, and can be given to ``gather_parallel`` and ``stream_parallel`` as ``pool=``. All
    views of the same key of a pool count together, so each request may ask for one of its own. The workers, and
    their end, are the pool's.
    """

    def __init__(self, pool: Pool, runner: Runner, quota: Quota) -> None:
        super().__init__(runner)
        self._pool = pool
        self._quota = quota

    @property
    def pool(self) -> Pool:
        """The pool whose workers it uses."""
        return self._pool

    @property
    def n(self) -> int:
        """The most workers that calls of this key occupy at a time, as the latest ``limit`` of the key said."""
        return self._quota.limit

    def statistics(self) -> LimitStatistics:
        """Return what the calls of this key are doing now."""
        quota = self._quota
        return LimitStatistics(quota.key, quota.limit, quota.max_queued, len(quota.serving), quota.count, quota.running)

    def __repr__(self) -> str:
        now = self.statistics()
        return f"<LimitedPool {self._quota.name} n={now.n}: {now.busy} busy, {now.queued} queued of {self.pool!r}>"
