"""Calls that find no room to wait in, or wait for longer than they may: told when to come again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aparallel._parallel.failures import queue_is_full, waited_too_long
from aparallel._parallel.slots import State

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from aparallel._parallel.backlog import Backlog
    from aparallel._parallel.delivery import Accounts, Delivery
    from aparallel._parallel.queues import Quota
    from aparallel._parallel.single_queue import JointOwner, SingleQueue
    from aparallel._parallel.slots import Slot
    from aparallel._parallel.stopping import Stopping
    from aparallel._parallel.workforce import Workforce
    from aparallel.errors import PoolSaturatedError


class Refusing:
    """Refuses calls that find no room, and withdraws single calls that no worker has started in time.

    A call that was sent to a worker is taken back first.

    Invariant: slots in ``_overstayed`` are being recalled, or are on their way out since; the calls there, each with
    its time in seconds, are refused when they come back.

    Args:
        goes_on: whether what waits is about to be dispatched.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        workforce: Workforce,
        backlog: Backlog,
        delivery: Delivery,
        accounts: Accounts,
        stopping: Stopping,
        *,
        goes_on: Callable[[], bool],
    ) -> None:
        self._loop = loop
        self._workforce = workforce
        self._backlog = backlog
        self._delivery = delivery
        self._accounts = accounts
        self._stopping = stopping
        self._goes_on = goes_on
        self._overstayed: dict[Slot, list[tuple[JointOwner, int, float]]] = {}

    def check_room(self, queue: SingleQueue, max_queued: int | None, patience: float | None) -> None:
        """Refuse a call if as many wait as may, in the pool or of its key, or if it has no *patience* and must wait.

        A call that a free worker will take does not wait. What waits for its key's limit alone leaves workers free.

        Raises:
            PoolSaturatedError: so it is.
        """
        quota, tallies = queue.quota, self._backlog.tallies
        free = self._workforce.free_places()
        if quota is not None:
            free = min(free, quota.free_places())
            self._check_queue(queue.count + queue.coming, quota.max_queued, free, quota)
        self._check_queue(tallies.singles.calls + tallies.coming.calls, max_queued, free, None)
        if patience == 0 and not free:
            raise self._refusal(quota, 0)

    def withdraw_after(self, seconds: float, owner: JointOwner, index: int) -> asyncio.Handle:
        """Withdraw a single call unless a worker has started it in so many seconds, be it one that then died.

        With 0 it is enough that it is all that some worker has, which may be still starting.
        """
        if seconds:
            return self._loop.call_later(seconds, self._withdraw, owner, index, seconds)
        return self._loop.call_soon(self._withdraw, owner, index, seconds)  # behind the dispatch of this tick

    def _withdraw(self, owner: JointOwner, index: int, seconds: float) -> None:
        slot = owner.slot_with(index)
        if slot is not None:
            slot.worker.look()
            slot = owner.slot_with(index)
        if not owner.wants(index) or self._delivery.is_decoding(owner, index):
            return
        if index in owner.deaths:  # it was started before, by a worker that died of it
            return
        if slot is None and not seconds and self._workforce.has_room() and self._goes_on():
            self.withdraw_after(0, owner, index)  # unless the next worker is for it
        elif slot is None:
            self._refuse(owner, index, seconds)
        elif slot.has_first(owner, index) and (not seconds or slot.worker.running_since() is not None):
            return
        elif slot.state in (State.OPEN, State.RECALLING):  # in others, what is left has started
            self._overstayed.setdefault(slot, []).append((owner, index, seconds))
            self._stopping.recall(slot)

    def refuse_overstayed(self, slot: Slot) -> None:
        """What could be taken back there has been: what overstayed and is not left there has not started."""
        for owner, index, seconds in self._overstayed.pop(slot, ()):
            if owner.wants(index) and not slot.holds(owner, index) and not self._delivery.is_decoding(owner, index):
                self._refuse(owner, index, seconds)

    def _refuse(self, owner: JointOwner, index: int, seconds: float) -> None:
        future = owner.futures[index]
        self._backlog.drop(owner, index)
        owner.queue.tell([future], [self._refusal(owner.queue.quota, seconds)], [0])

    def _check_queue(self, waiting: int, most: int | None, free: int, quota: Quota | None) -> None:
        if most is not None and waiting >= most + free:
            self._accounts.refused += 1
            raise queue_is_full(waiting, most, quota, self._seconds_left(quota))

    def _refusal(self, quota: Quota | None, seconds: float) -> PoolSaturatedError:
        """Count a call that cannot wait any longer, and build its error."""
        self._accounts.refused += 1
        if quota is not None and quota.free_places():  # it is not the key's limit that it waited for
            quota = None
        waiting = self._backlog.calls if quota is None else quota.count
        starting = sum(not slot.ready for slot in self._workforce.present())
        return waited_too_long(seconds, waiting, self._workers_for(quota), starting, quota, self._seconds_left(quota))

    def _seconds_left(self, quota: Quota | None) -> float | None:
        """In how many seconds all that waits and runs will be done, of a key or of the whole pool; None: not known."""
        each = self._accounts.mean_seconds
        if each is None:
            return None
        if quota is not None:
            calls = quota.count + quota.running
        else:
            calls = self._backlog.calls + self._backlog.tallies.coming.calls + self._workforce.running()
        return calls * each / self._workers_for(quota)

    def _workers_for(self, quota: Quota | None) -> int:
        return self._workforce.limit if quota is None else min(self._workforce.limit, quota.limit)
