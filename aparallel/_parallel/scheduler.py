"""Which call goes to which worker, when.

The scheduler holds little itself. It wires the parts of a pool together, each of which owns its state and uses only
what stands above it here::

    Backlog      the calls that wait, and whose turn it is
    Accounts     how calls ended, and how long they took
    Delivery     outcomes on their way to the owners of calls
    Workforce    the workers, each in its Slot with the calls that it has
    Stopping     calls taken back, cancelled and timed out
    Refusing     calls refused for want of room, and withdrawn because they waited too long
    Watch        calls taken back from behind a slow one
    Scheduler    sends what waits to who is free, and takes in what workers tell

Upwards go four notices, each a callback given to a constructor: workers tell their slots' events to the scheduler, the
workforce says that no worker can be had or that one may be started again, and stopping says that there may be something
to dispatch.

Everything here runs on the loop's thread in callbacks and never waits, so each method sees and leaves a consistent
state. What holds across the parts: a call is in exactly one place, pending in its queue, in flight in one slot, being
decoded, or told to its owner.

Every moment that is kept or compared is one of ``time.monotonic``, as workers tell since when a call runs. The loop may
have a clock of its own: it is told how long timers wait, and no more.
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Any

from aparallel._ground.notebooks import Pulse, in_notebook
from aparallel._parallel.backlog import Backlog
from aparallel._parallel.batching import (
    MESSAGE_BYTES,
    MESSAGE_CALLS,
    MESSAGE_SECONDS,
    calls_per_message,
    calls_within,
    fair_share,
)
from aparallel._parallel.delivery import Accounts, Delivery
from aparallel._parallel.failures import call_name, never_begun, ran_too_long, worker_died
from aparallel._parallel.refusing import Refusing
from aparallel._parallel.slots import Slot, State
from aparallel._parallel.stopping import Stopping
from aparallel._parallel.watch import Watch
from aparallel._parallel.workforce import Workforce
from aparallel.abc import Batch

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Sequence

    from aparallel._ground.timings import Timing
    from aparallel._parallel.queues import Owner, Tallies
    from aparallel._parallel.single_queue import JointOwner
    from aparallel._parallel.statistics import PoolStatistics
    from aparallel.abc import Backend, Exit
    from aparallel.errors import AparallelError

# A call is given up when so many workers in a row died with it before any call began. Those who kill at random rarely
# hit so many.
_BARREN_DEATHS = 10


class Scheduler:
    """Gives calls to workers and accounts for each of them.

    Attributes:
        loop, backend: whose workers they are.
        backlog, workforce, refusing: the parts of which the pool may ask what is theirs alone. What takes
            several is a method here.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        backend: Backend,
        limit: int,
        idle_timeout: float | None,
        max_calls_per_worker: int | None,
        tallies: Tallies,
    ) -> None:
        self.loop = loop
        self.backend = backend
        self.backlog = backlog = Backlog(tallies)
        self._accounts = accounts = Accounts()
        self._delivery = delivery = Delivery(loop)
        self.workforce = workforce = Workforce(
            loop,
            backend,
            limit,
            idle_timeout,
            max_calls_per_worker,
            events=self,
            on_no_worker=backlog.give_up,
            on_room=self.dispatch,
        )
        self._stopping = stopping = Stopping(loop, workforce, backlog, delivery, accounts, dispatch=self.dispatch)
        self.refusing = Refusing(
            loop, workforce, backlog, delivery, accounts, stopping, goes_on=lambda: self._soon is not None
        )
        self._watch = Watch(loop, workforce, stopping)
        self._pulse = Pulse(loop, workforce.running) if in_notebook() else None
        # A dispatch at the end of this tick. Until then no worker is started whose start holds the loop.
        self._soon: asyncio.Handle | None = None
        # Workers in a row that died on calls of which they had begun none, with no outcome of any call in between.
        self._barren = 0

    def statistics(self) -> PoolStatistics:
        from aparallel._parallel.statistics import PoolStatistics

        accounts, present = self._accounts, self.workforce.present()
        return PoolStatistics(
            n_jobs=self.workforce.limit,
            workers=len(present),
            starting=sum(not slot.ready for slot in present),
            idle=sum(slot.ready and not slot.calls for slot in present),
            busy=sum(slot.ready and slot.calls > 0 for slot in present),
            queued=self.backlog.calls,
            running=self.workforce.running(),
            completed=accounts.completed,
            failed=accounts.failed,
            broken=accounts.broken,
            refused=accounts.refused,
        )

    def cancel(self, owner: Owner) -> list[asyncio.Future[None]]:
        """Forget the calls of *owner*, which wants none any more, and stop those that run, as its ``on_cancel`` says.

        Returns what to wait for until none of them runs any more; nothing for ``"abandon"``.
        """
        waiting = self._stopping.cancel(owner)
        self.dispatch()
        return waiting

    def cancel_single(self, owner: JointOwner, index: int) -> list[asyncio.Future[None]]:
        """The same for a single call."""
        waiting = self._stopping.cancel_single(owner, index)
        self.dispatch()
        return waiting

    def retire_all(self) -> None:
        """Ask every worker to go: idle ones cleanly; those that still run a call are stopped if they can be."""
        if self._soon is not None:
            self._soon.cancel()
            self._soon = None
        self._watch.stop()
        if self._pulse is not None:
            self._pulse.stop()
        self.workforce.retire_all()

    # Calls go out

    def dispatch(self) -> None:
        """Send what can be sent: to idle workers, then behind short work, then to new workers."""
        waiting = self.backlog.turns.entries
        while waiting and (self._use_idle() or self._use_busy() or self._use_new()):
            pass
        self._watch.plan()

    def start_first(self) -> None:
        """Start a worker for calls that are about to come, if there is none: it starts while they are drawn."""
        if not self.workforce.slots:
            self._start()

    def dispatch_soon(self) -> None:
        """Send now what an idle worker can take; the rest at the end of this tick, with what else comes in it."""
        waiting = self.backlog.turns.entries
        idle = self.workforce.idle
        while idle and waiting and self._use_idle():
            pass
        if waiting:
            self._dispatch_in_next_tick()

    def _dispatch_in_next_tick(self) -> None:
        if self._soon is None:
            self._soon = self.loop.call_soon(self._dispatch_now)

    def _dispatch_now(self) -> None:
        self._soon = None
        self.dispatch()

    def _use_idle(self) -> bool:
        return any(self._fill(slot) for slot in reversed(self.workforce.idle))

    def _use_busy(self) -> bool:
        return any(slot.takes_more() and self._fill(slot) for slot in self.workforce.slots)

    def _use_new(self) -> bool:
        if not self.workforce.has_room() or self.backlog.turns.queue_for(None) is None:
            return False
        if self._soon is not None and self.backend.start_holds_loop:
            return False
        slot = self._start()
        return slot is not None and self._fill(slot)

    def _start(self) -> Slot | None:
        """Start a worker. Where that holds the loop, the next one waits for the next tick."""
        slot = self.workforce.start()
        if slot is not None and self.backend.start_holds_loop:
            self._dispatch_in_next_tick()
        return slot

    def _fill(self, slot: Slot) -> bool:
        """Send one message from the queue whose turn it is; return False if no queue may use this worker."""
        queue = self.backlog.turns.queue_for(slot)
        if queue is None:
            return False
        room = min(MESSAGE_CALLS, slot.max_outstanding - slot.calls)
        if self.workforce.max_calls_per_worker is not None:
            room = min(room, self.workforce.max_calls_per_worker - slot.total)
        share = fair_share(queue.count, queue.most_workers(self.workforce.limit))
        budget, space = MESSAGE_SECONDS, MESSAGE_BYTES
        batches: list[Batch] = []
        count = 0
        pace: float | None = None
        while room > 0 and (head := queue.head()) is not None:
            pace = head.function.timing.seconds
            wanted = calls_per_message(pace, budget, share - count, queue.batch_size)
            if wanted < 1:
                break
            if head.size and queue.batch_size is None:
                wanted = min(wanted, calls_within(space, head.size / len(head.payloads)) or (0 if batches else 1))
                if wanted < 1:
                    break
            batch = queue.take(min(wanted, room))
            batches.append(batch)
            taken = len(batch.payloads)
            space -= batch.size
            count += taken
            room -= taken
            if pace is None or queue.batch_size is not None:
                break
            budget -= pace * taken
        if queue.head() is None:
            self.backlog.dismiss(queue)
        if not batches:
            return False
        spent = MESSAGE_SECONDS - budget if pace is not None else MESSAGE_SECONDS
        self.backlog.charge(queue, spent)
        self._send(slot, batches, count, spent / count if pace is not None else None)
        return True

    def _send(self, slot: Slot, batches: list[Batch], count: int, pace: float | None) -> None:
        if not slot.calls:
            self.workforce.occupy(slot)
            slot.progress_at = monotonic()
        slot.give(batches, count, pace)
        if self._pulse is not None:
            self._pulse.plan()
        timeout = None
        for batch in batches:
            if batch.owner.timeout is not None:
                timeout = min(batch.owner.timeout, timeout or batch.owner.timeout)
        if timeout is not None:
            self._stopping.plan_deadline(slot, timeout)

    # What workers tell

    def on_ready(self, slot: Slot) -> None:
        self.workforce.on_ready(slot)
        self._watch.plan()

    def on_outcomes(self, slot: Slot, values: list[Any], failed: Sequence[int], seconds: float) -> None:
        each = seconds / len(values)
        told: list[tuple[Batch, list[Any], list[int]]] = []
        learned: Timing | None = None
        start = 0
        while start < len(values):
            batch = slot.take_done(len(values) - start)
            if each and batch.function.timing is not learned:
                learned = batch.function.timing
                learned.learn(each)
            end = start + len(batch.payloads)
            errors = [position - start for position in failed if start <= position < end]
            told.append((batch, values[start:end] if len(values) > end - start else values, errors))
            start = end
        accounts = self._accounts
        if each:
            accounts.learn(each, len(values))
        slot.progress_at = monotonic()
        self._barren = 0
        accounts.completed += len(values) - len(failed)
        accounts.failed += len(failed)
        # A worker is marked idle before its outcomes are delivered, so that a call started by
        # one of them finds this worker instead of starting another.
        self._stopping.after_calls(slot)
        for batch, part, errors in told:
            self._delivery.deliver(batch, part, errors)
        self.dispatch()

    def on_recalled(self, slot: Slot, count: int) -> None:
        self._stopping.take_back(slot, count)
        self.refusing.refuse_overstayed(slot)
        self._stopping.hold(slot)
        self.dispatch()

    def on_exit(self, slot: Slot, exit: Exit) -> None:
        self.workforce.remove(slot)
        self.backlog.put_back(self._without_deadly(slot, slot.take_back(exit.unstarted), exit))
        self.refusing.refuse_overstayed(slot)
        for batch in slot.take_all():
            for index in range(batch.first, batch.first + len(batch)):
                self._lose(batch, index, slot, exit)
        slot.tell_waiters()
        if slot.state is not State.LEAVING:
            self.workforce.make_up_for(slot, exit)
        elif not self.workforce.slots and not self.backlog.turns.has_calls():
            self.backend.rest()
        self.workforce.tell_changed()
        self.dispatch()

    def _without_deadly(self, slot: Slot, unstarted: list[Batch], exit: Exit) -> list[Batch]:
        """Return what is to run elsewhere, newest batch first: not a call for which one worker dies after the other.

        Memory may end, for instance, when a worker takes in what a call brings along.
        """
        if not (unstarted and exit.ready and slot.state is State.OPEN and not slot.calls):
            return unstarted
        self._barren += 1
        if self._barren < _BARREN_DEATHS:
            return unstarted
        deadly, others = unstarted.pop().split(1)
        if deadly.owner.wants(deadly.first):
            self._accounts.broken += 1
            self._accounts.failed += 1
            error = never_begun(call_name(deadly, deadly.first), self._barren, exit)
            deadly.owner.deliver(deadly.first, [error], [0])
        self._barren = 0
        return [*unstarted, others] if len(others) else unstarted

    def _lose(self, batch: Batch, index: int, slot: Slot, exit: Exit) -> None:
        """A call may have started and has no outcome: tell its owner, or run it again if that was allowed."""
        owner: Owner = batch.owner
        if not owner.wants(index):
            return
        error: AparallelError
        if slot.state is State.OVERRAN and owner.timeout is not None:
            error = ran_too_long(call_name(batch, index), owner.timeout, " and was stopped")
        else:
            self._accounts.broken += 1
            deaths = owner.deaths.get(index, 0)
            if deaths < owner.retries:
                owner.deaths[index] = deaths + 1
                position = index - batch.first
                self.backlog.put_back([batch.part(position, position + 1)])
                return
            error = worker_died(call_name(batch, index), exit, owner.retries)
        self._accounts.failed += 1
        owner.deliver(index, [error], [0])
