"""Calls taken back, cancelled, timed out: how running work stops without harm to other work."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from aparallel._parallel.admission import waited_too_long
from aparallel._parallel.queues import Nobody, Queue, still_wanted
from aparallel._parallel.slots import Slot, State
from aparallel._parallel.workforce import Workforce
from aparallel.abc import Batch
from aparallel.errors import CallTimeoutError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aparallel._parallel.flow import Flow
    from aparallel._parallel.queues import Owner
    from aparallel._parallel.quotas import Quota
    from aparallel._parallel.runs import Runs
    from aparallel.errors import PoolSaturatedError

# A cancelled call that ends by itself this soon is not killed: about what a worker start costs.
GRACE_SECONDS = 0.02


class Stopping(Workforce):
    """A workforce whose calls can be taken back and stopped."""

    def cancel(self, flow: Flow) -> list[asyncio.Future[None]]:
        """Forget the calls of *flow* that have not started and stop those that run, as its ``on_cancel`` says.

        Returns what to wait for until none of them runs any more; nothing for ``"abandon"``.
        """
        flow.cancelled = True
        flow.clear()
        self._dismiss(flow)
        return self._cancel_in(list(flow.serving), flow, None)

    def cancel_run(self, runs: Runs, index: int) -> list[asyncio.Future[None]]:
        """The same for a single call."""
        if not runs.wants(index) or (runs, index) in self._decoding:
            return []
        slots = [slot for slot in runs.queue.serving if slot.holds(runs, index)]
        if slots:
            runs.futures[index] = None
        else:
            self._drop(runs, index)
        return self._cancel_in(slots, runs, index)

    def _drop(self, runs: Runs, index: int) -> None:
        """Forget a call that waits."""
        queue = runs.queue
        queue.drop(runs, index)
        if not queue.count:
            self._dismiss(queue)

    def abandon_all(self) -> None:
        """Have no more to do with the workers that are left: what they run is nobody's, and they end when it does."""
        for slot in list(self._slots):
            for place, batch in enumerate(slot.inflight):
                slot.inflight[place] = Batch(Nobody(batch.owner), batch.function, batch.first, batch.payloads)
            self._tell_waiters(slot)
        self._slots.clear()
        self._idle.clear()
        self._tell_changed()

    # Calls that wait too long

    def withdraw_after(self, seconds: float, runs: Runs, index: int) -> asyncio.Handle:
        """Withdraw a single call unless a worker has started it in so many seconds.

        With 0 it is enough that it is all that some worker has, which may be still starting.
        """
        if seconds:
            return self.loop.call_later(seconds, self._withdraw, runs, index, seconds)
        return self.loop.call_soon(self._withdraw, runs, index, seconds)  # behind the dispatch of this tick

    def _withdraw(self, runs: Runs, index: int, seconds: float) -> None:
        slot = self._slot_with(runs, index)
        if slot is not None:
            slot.worker.look()
            slot = self._slot_with(runs, index)
        if not runs.wants(index) or (runs, index) in self._decoding:
            return
        if slot is None:
            self._refuse(runs, index, seconds)
        elif slot.has_first(runs, index) and (not seconds or slot.worker.running_since() is not None):
            return
        elif slot.state in (State.OPEN, State.RECALLING):  # in others, what is left has started
            slot.overstayed.append((runs, index, seconds))
            self._recall(slot)

    def _slot_with(self, runs: Runs, index: int) -> Slot | None:
        return next((slot for slot in runs.queue.serving if slot.holds(runs, index)), None)

    def _refuse_overstayed(self, slot: Slot) -> None:
        """What could be taken back there has been: what overstayed and is not left there has not started."""
        overstayed, slot.overstayed = slot.overstayed, []
        for runs, index, seconds in overstayed:
            if runs.wants(index) and not slot.holds(runs, index) and (runs, index) not in self._decoding:
                self._refuse(runs, index, seconds)

    def _refuse(self, runs: Runs, index: int, seconds: float) -> None:
        future = runs.futures[index]
        self._drop(runs, index)
        error = self.impatient(runs.queue.quota, seconds)
        if future is not None and not future.done():
            future.set_exception(error)

    def impatient(self, quota: Quota | None, seconds: float) -> PoolSaturatedError:
        """Count a call that cannot wait any longer, and build its error."""
        self.refused += 1
        if quota is not None and quota.free_places():  # it is not the key's limit that it waited for
            quota = None
        waiting = self.queued if quota is None else quota.count
        workers = self.limit if quota is None else min(self.limit, quota.limit)
        return waited_too_long(seconds, waiting, workers, quota, self.seconds_left(quota))

    def _cancel_in(self, slots: list[Slot], owner: Owner, index: int | None) -> list[asyncio.Future[None]]:
        waiting = []
        for slot in slots:
            if slot.holds(owner, index):
                if owner.on_cancel != "abandon":
                    waiter: asyncio.Future[None] = self.loop.create_future()
                    slot.waiters.append((owner, index, waiter))
                    waiting.append(waiter)
                if slot.state is State.HELD:  # nothing to take back; its running call may be this owner's
                    self.on_recalled(slot, 0)
                else:
                    self._recall(slot)
        self.dispatch()
        return waiting

    def _recall(self, slot: Slot) -> None:
        """Begin to take back all that has not started there; :meth:`on_recalled` goes on."""
        if slot.state is State.OPEN:
            slot.state = State.RECALLING
            slot.worker.recall()

    def on_recalled(self, slot: Slot, count: int) -> None:
        """What is left there has finished, with its outcome on the way, but for the last one, which may run."""
        slot.total -= count
        self._put_back(self._take_back(slot, count))
        self._refuse_overstayed(slot)
        if slot.state is State.RECALLING:
            slot.state = State.HELD
        slot.worker.look()
        if slot.calls and slot.state is State.HELD:
            running = slot.inflight[-1]
            if running.owner.on_cancel == "kill" and not running.owner.wants(running.last):
                slot.state = State.DYING
                slot.grace = self.loop.call_later(GRACE_SECONDS, self._kill, slot)
            elif slot.overdue:
                self._check_overdue(slot)
        slot.overdue = False
        self._after_calls(slot)
        self.dispatch()

    def _take_back(self, slot: Slot, count: int) -> list[Batch]:
        """Remove the last *count* calls from what is in flight; newest batch first."""
        taken: list[Batch] = []
        while count:
            batch = slot.inflight.pop()
            if len(batch) > count:
                kept, batch = batch.split(len(batch) - count)
                slot.inflight.append(kept)
            self._uncount(slot, batch)
            count -= len(batch)
            taken.append(batch)
        return taken

    def _put_back(self, batches: Iterable[Batch]) -> None:
        for batch in batches:
            queue: Queue = batch.owner.queue
            wanted = still_wanted(batch)
            if wanted:
                self.admit(queue)
                queue.push_back(reversed(wanted))

    def _uncount(self, slot: Slot, batch: Batch) -> None:
        slot.calls -= len(batch)
        queue: Queue = batch.owner.queue
        queue.count_out(slot, len(batch))
        if queue.quota is not None:
            queue.quota.count_out(slot, len(batch))

    def _kill(self, slot: Slot) -> None:
        slot.grace = None
        slot.worker.look()
        if slot.state is State.DYING:
            self._end_now(slot)

    def _end_now(self, slot: Slot) -> None:
        """Kill a worker whose other calls were taken back, and have another take its place."""
        slot.state = State.KILLED
        slot.worker.kill()
        if self._present() < self.limit:
            self.start_worker()

    def _plan_deadline(self, slot: Slot, seconds: float) -> None:
        due = self.loop.time() + seconds
        if slot.deadline is not None:
            if slot.deadline.when() <= due:
                return
            slot.deadline.cancel()
        slot.deadline = self.loop.call_at(due, self._check_deadline, slot)

    def _check_deadline(self, slot: Slot) -> None:
        """A call may have overrun its timeout, which counts from its own start."""
        slot.deadline = None
        slot.worker.look()
        if not slot.inflight or slot.state in (State.DYING, State.KILLED):
            return
        since = slot.worker.running_since()
        timeout = slot.inflight[0].owner.timeout
        if since is not None and timeout is not None and time.monotonic() >= since + timeout:
            slot.overdue = True
            if slot.state is State.HELD:
                self.on_recalled(slot, 0)
            else:
                self._recall(slot)
            return
        timeouts = [batch.owner.timeout for batch in slot.inflight if batch.owner.timeout is not None]
        if timeouts:
            left = min(timeouts)
            if since is not None and timeout is not None:
                left = min(left, since + timeout - time.monotonic())
            self._plan_deadline(slot, left)

    def _check_overdue(self, slot: Slot) -> None:
        """Only its running call is left there: has that one overrun its timeout?"""
        timeout = slot.inflight[-1].owner.timeout
        since = slot.worker.running_since()
        if timeout is None or since is None:
            return
        left = since + timeout - time.monotonic()
        if left <= 0:
            self._overrun(slot, slot.inflight[-1])
        else:
            self._plan_deadline(slot, left)

    def _overrun(self, slot: Slot, batch: Batch) -> None:
        """Stop, or abandon, the call that a worker runs: the last one of *batch*."""
        owner: Owner = batch.owner
        assert owner.timeout is not None
        self.learn(owner.timeout, 1)
        if owner.on_cancel != "abandon":
            slot.overran = owner.timeout
            self._end_now(slot)
            return
        done, running = batch.split(len(batch) - 1)
        slot.inflight.pop()
        if len(done):
            slot.inflight.append(done)
        slot.inflight.append(Batch(Nobody(owner), running.function, running.first, running.payloads))
        if owner.wants(running.first):
            name = call_name(running, running.first, owner)
            message = f"{name} ran longer than timeout={owner.timeout:g} seconds; its worker goes on with it."
            self.failed += 1
            owner.deliver(running.first, [CallTimeoutError(message, call=name, timeout=owner.timeout)], [0])

    def _after_calls(self, slot: Slot) -> None:
        """Tell who waits for what has ended here; if it holds no calls any more, let it be idle or go."""
        self._tell_waiters(slot)
        if slot.calls:
            return
        if slot.state in (State.HELD, State.DYING):
            slot.state = State.OPEN
            if slot.grace is not None:
                slot.grace.cancel()
                slot.grace = None
        if slot.state is not State.OPEN:
            return
        if slot.deadline is not None:
            slot.deadline.cancel()
            slot.deadline = None
        worn_out = self.max_calls_per_worker is not None and slot.total >= self.max_calls_per_worker
        if worn_out or slot.generation != self.generation or self._present() > self.limit:
            self._retire(slot)
            return
        slot.idle_since = self.loop.time()
        if slot not in self._idle:
            self._idle.insert(len(self._idle) if slot.ready else 0, slot)
        self._plan_expiry()

    def _tell_waiters(self, slot: Slot) -> None:
        for entry in list(slot.waiters):
            owner, index, waiter = entry
            if not slot.holds(owner, index):
                slot.waiters.remove(entry)
                if not waiter.done():
                    waiter.set_result(None)


def call_name(batch: Batch, index: int, owner: Owner) -> str:
    return f"call {index} ({batch.function.name})" if isinstance(owner, Queue) else f"the call {batch.function.name}"
