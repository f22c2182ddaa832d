"""Calls taken back, cancelled, timed out: how running work stops without harm to other work."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

from aparallel._parallel.failures import call_name, ran_too_long
from aparallel._parallel.slots import State

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from aparallel._parallel.backlog import Backlog
    from aparallel._parallel.delivery import Accounts, Delivery
    from aparallel._parallel.queues import Owner
    from aparallel._parallel.single_queue import JointOwner
    from aparallel._parallel.slots import Slot
    from aparallel._parallel.workforce import Workforce

# A cancelled call that ends by itself this soon is not killed: about what a worker start costs.
GRACE_SECONDS = 0.02


class Stopping:
    """Stops calls in workers, and holds no calls itself: what a slot's state says is all there is to know.

    A worker cannot be killed while it has calls that others want. So the first step is always the same, :meth:`recall`:
    the calls that have not started come back and wait for other workers, and the slot is held with what is left.

    Args:
        dispatch: called when a timer of this object has made room for calls; who calls a method dispatches itself.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        workforce: Workforce,
        backlog: Backlog,
        delivery: Delivery,
        accounts: Accounts,
        *,
        dispatch: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._workforce = workforce
        self._backlog = backlog
        self._delivery = delivery
        self._accounts = accounts
        self._dispatch = dispatch

    # Cancelling

    def cancel(self, owner: Owner) -> list[asyncio.Future[None]]:
        """Forget the calls of *owner*, which wants none any more, and stop those that run, as its ``on_cancel`` says.

        Returns what to wait for until none of them runs any more; nothing for ``"abandon"``.
        """
        self._backlog.clear(owner.queue)
        return self._cancel_in(list(owner.queue.serving), owner, None)

    def cancel_single(self, owner: JointOwner, index: int) -> list[asyncio.Future[None]]:
        """The same for a single call."""
        if not owner.wants(index) or self._delivery.is_decoding(owner, index):
            return []
        slot = owner.slot_with(index)
        if slot is None:
            self._backlog.drop(owner, index)
            return []
        owner.futures[index] = None
        return self._cancel_in([slot], owner, index)

    def _cancel_in(self, slots: list[Slot], owner: Owner, index: int | None) -> list[asyncio.Future[None]]:
        waiting = []
        for slot in slots:
            if slot.holds(owner, index):
                if owner.on_cancel != "abandon":
                    waiter: asyncio.Future[None] = self._loop.create_future()
                    slot.wait_for(waiter, owner, index)
                    waiting.append(waiter)
                if slot.state is State.HELD:  # nothing to take back; its running call may be this owner's
                    self.hold(slot)
                else:
                    self.recall(slot)
        return waiting

    # Taking back

    def recall(self, slot: Slot) -> None:
        """Begin to take back all that has not started there; the worker tells how many calls that is."""
        if slot.state is not State.OPEN:
            return
        slot.enter(State.RECALLING)
        # Soon: what a worker gives back at once it may be given again at once, and many may be cancelled in one moment.
        self._loop.call_soon(self._recall, slot)

    def _recall(self, slot: Slot) -> None:
        if slot.state is State.RECALLING and slot in self._workforce.slots:  # it has not ended meanwhile
            slot.worker.recall()

    def take_back(self, slot: Slot, count: int) -> None:
        """The worker has let go of so many calls: have them wait for others. :meth:`hold` must follow."""
        self._backlog.put_back(slot.take_back(count))
        if slot.state is State.RECALLING:
            slot.enter(State.HELD)

    def hold(self, slot: Slot) -> None:
        """Look after the last call there, if it still runs: kill it if nobody wants it, or if it takes too long.

        Only what had started is left. All but the last have finished, and their outcomes are on the way.
        """
        slot.worker.look()
        if slot.calls and slot.state is State.HELD:
            running = slot.inflight[-1]
            if running.owner.on_cancel == "kill" and not running.owner.wants(running.last):
                slot.enter(State.DYING)
                slot.alarm = self._loop.call_later(GRACE_SECONDS, self._end_grace, slot)
            else:
                self._check_overrun(slot)
        self.after_calls(slot)

    def _end_grace(self, slot: Slot) -> None:
        slot.alarm = None
        slot.worker.look()
        if slot.state is State.DYING:
            self._workforce.replace(slot, State.KILLED)
            self._dispatch()

    def after_calls(self, slot: Slot) -> None:
        """Tell who waits for what has ended there; if it holds no calls any more, let it be idle or go."""
        slot.tell_waiters()
        if slot.calls:
            return
        if slot.state in (State.HELD, State.DYING):
            slot.enter(State.OPEN)
        if slot.state is State.OPEN:
            slot.cancel_alarm()
            self._workforce.release(slot)

    # Timeouts

    def plan_deadline(self, slot: Slot, seconds: float) -> None:
        """Look in so many seconds, or before, whether a call there has overrun its timeout."""
        due = self._loop.time() + seconds
        if slot.alarm is not None:
            if slot.alarm.when() <= due:
                return
            slot.alarm.cancel()
        slot.alarm = self._loop.call_at(due, self._check_deadline, slot)

    def _check_deadline(self, slot: Slot) -> None:
        """A call may have overrun its timeout, which counts from its own start."""
        slot.alarm = None
        slot.worker.look()
        if not slot.inflight or slot.state is State.DYING or slot.is_going():
            return
        since = slot.worker.running_since()
        timeout = slot.inflight[0].owner.timeout
        if since is not None and timeout is not None and monotonic() >= since + timeout:
            if slot.state is State.HELD:
                self.hold(slot)
                self._dispatch()
            else:
                self.recall(slot)
            return
        timeouts = [batch.owner.timeout for batch in slot.inflight if batch.owner.timeout is not None]
        if timeouts:
            left = min(timeouts)
            if since is not None and timeout is not None:
                left = min(left, since + timeout - monotonic())
            self.plan_deadline(slot, left)

    def _check_overrun(self, slot: Slot) -> None:
        """Only its running call is left there: has that one overrun its timeout?"""
        timeout = slot.inflight[-1].owner.timeout
        since = slot.worker.running_since()
        if timeout is None or since is None:
            return
        left = since + timeout - monotonic()
        if left <= 0:
            self._overrun(slot, timeout)
        else:
            self.plan_deadline(slot, left)

    def _overrun(self, slot: Slot, timeout: float) -> None:
        """Stop, or abandon, the call that a worker runs: the last one that it has."""
        self._accounts.learn(timeout, 1)
        if slot.inflight[-1].owner.on_cancel != "abandon":
            self._workforce.replace(slot, State.OVERRAN)
            return
        running = slot.disown_last()
        owner: Owner = running.owner
        if owner.wants(running.first):
            self._accounts.failed += 1
            error = ran_too_long(call_name(running, running.first), timeout, "; its worker goes on with it")
            owner.deliver(running.first, [error], [0])
