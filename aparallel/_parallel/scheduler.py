"""Which call goes to which worker, when: the pool's queues, its workers and what they hold.

Everything here runs on the loop's thread in callbacks and never waits, so each method sees and
leaves a consistent state:

- a call is in exactly one place: pending in its queue, in flight in one slot, or told to its owner;
- ``slot.calls`` is the number of calls in ``slot.inflight``, in the order in which they were sent;
- ``queue.serving`` counts, for each slot, the calls of that queue in flight there, and ``queue.quota.serving`` those of
  all queues of its key;
- a slot without calls is in ``_idle``, unless it is on its way out.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from aparallel._parallel.batching import MESSAGE_CALLS, MESSAGE_SECONDS, calls_per_message, fair_share
from aparallel._parallel.queues import Queue
from aparallel._parallel.slots import Slot, State
from aparallel._parallel.stopping import Stopping, call_name
from aparallel._wire.frames import MAX_OUTSTANDING
from aparallel.abc import Backend, Batch, Exit, Later
from aparallel.errors import AparallelError, BrokenWorkerError, CallTimeoutError, InitializerError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aparallel._ground.timings import Timing
    from aparallel._parallel.queues import Owner

# How often to look after messages of several calls, and how long one may stand still.
_WATCH_SECONDS = 0.002
_STUCK_SECONDS = 0.001

# Workers that die before they are ready, in a row, before the calls that wait for one are given up.
_FAILED_STARTS = 3


class Scheduler(Stopping):
    """Gives calls to workers and accounts for each of them."""

    def dispatch(self) -> None:
        """Send what can be sent: to idle workers, then behind short work, then to new workers."""
        while self._turns.entries and (self._use_idle() or self._use_busy() or self._use_new()):
            pass
        self._plan_watch()

    def start_first(self) -> None:
        """Start a worker for calls that are about to come, if there is none: it starts while they are drawn."""
        if not self._slots and self.limit:
            self.start_worker()

    def dispatch_soon(self) -> None:
        """Send now what an idle worker can take; the rest at the end of this tick, with what else comes in it."""
        while self._idle and self._turns.entries and self._use_idle():
            pass
        if self._soon is None and self._turns.entries:
            self._soon = self.loop.call_soon(self._dispatch_now)

    def _dispatch_now(self) -> None:
        self._soon = None
        self.dispatch()

    def _use_idle(self) -> bool:
        return any(self._fill(slot) for slot in reversed(self._idle))

    def _use_busy(self) -> bool:
        return any(slot.takes_more() and self._fill(slot) for slot in self._slots)

    def _use_new(self) -> bool:
        if self._present() >= self.limit or self._turns.queue_for(None) is None:
            return False
        slot = self.start_worker()
        return slot is not None and self._fill(slot)

    def _fill(self, slot: Slot) -> bool:
        """Send one message from the queue whose turn it is; return False if no queue may use this worker."""
        queue = self._turns.queue_for(slot)
        if queue is None:
            return False
        room = min(MESSAGE_CALLS, MAX_OUTSTANDING - slot.calls)
        if self.max_calls_per_worker is not None:
            room = min(room, self.max_calls_per_worker - slot.total)
        share = fair_share(queue.count, queue.most_workers(self.limit))
        budget = MESSAGE_SECONDS
        batches: list[Batch] = []
        count = 0
        pace: float | None = None
        while room > 0 and (head := queue.head()) is not None:
            pace = head.function.timing.seconds
            wanted = calls_per_message(pace, budget, share - count, queue.batch_size)
            if wanted < 1:
                break
            batch = queue.take(min(wanted, room))
            batches.append(batch)
            count += len(batch)
            room -= len(batch)
            if pace is None or queue.batch_size is not None:
                break
            budget -= pace * len(batch)
        if queue.head() is None:
            self._dismiss(queue)
        if not batches:
            return False
        spent = MESSAGE_SECONDS - budget if pace is not None else MESSAGE_SECONDS
        self._charge(queue, spent)
        self._send(slot, queue, batches, count, spent / count if pace is not None else None)
        return True

    def _charge(self, queue: Queue, seconds: float) -> None:
        if queue.quota is None:
            self._turns.charge(queue, seconds)
        else:
            queue.quota.turns.charge(queue, seconds)
            self._turns.charge(queue.quota, seconds)

    def _send(self, slot: Slot, queue: Queue, batches: list[Batch], count: int, pace: float | None) -> None:
        if not slot.calls:
            if slot in self._idle:
                self._idle.remove(slot)
            slot.progress_at = self.loop.time()
        slot.inflight.extend(batches)
        slot.calls += count
        slot.total += count
        slot.pace = pace
        queue.count_in(slot, count)
        if queue.quota is not None:
            queue.quota.count_in(slot, count)
        timeout = None
        for batch in batches:
            if batch.owner.timeout is not None:
                timeout = min(batch.owner.timeout, timeout or batch.owner.timeout)
        slot.worker.send(batches)
        if timeout is not None:
            self._plan_deadline(slot, timeout)

    # Outcomes

    def on_outcomes(self, slot: Slot, values: list[Any], failed: Sequence[int], seconds: float) -> None:
        each = seconds / len(values)
        told: list[tuple[Batch, list[Any], list[int]]] = []
        learned: Timing | None = None
        start = 0
        while start < len(values):
            batch = self._take_done(slot, len(values) - start)
            if each and batch.function.timing is not learned:
                learned = batch.function.timing
                learned.learn(each)
            end = start + len(batch)
            errors = [position - start for position in failed if start <= position < end]
            told.append((batch, values[start:end] if len(values) > len(batch) else values, errors))
            start = end
        if each:
            self.learn(each, len(values))
        slot.progress_at = self.loop.time()
        self.completed += len(values) - len(failed)
        self.failed += len(failed)
        # A worker is marked idle before its outcomes are delivered, so that a call started by
        # one of them finds this worker instead of starting another.
        self._after_calls(slot)
        for batch, part, errors in told:
            self._deliver(batch, part, errors)
        self.dispatch()

    def _take_done(self, slot: Slot, most: int) -> Batch:
        """Remove up to *most* calls, all of one batch, from the front of what is in flight."""
        batch = slot.inflight.popleft()
        if len(batch) > most:
            batch, rest = batch.split(most)
            slot.inflight.appendleft(rest)
        self._uncount(slot, batch)
        return batch

    def _deliver(self, batch: Batch, values: list[Any], failed: Sequence[int]) -> None:
        owner: Owner = batch.owner
        first = batch.first
        if owner.cancelled:
            return
        if len(values) == 1 and type(values[0]) is Later:
            if not owner.wants(first):
                return
            task = self.loop.create_task(self._decode(batch, values[0]), name="aparallel-decode")
            self._decoding[owner, first] = task
            task.add_done_callback(lambda _: self._decoding.pop((owner, first)))
            return
        if failed:
            for position in failed:
                _name_the_call(values[position], batch, first + position)
        owner.deliver(first, values, failed)

    async def _decode(self, batch: Batch, later: Later) -> None:
        failed: list[int] = []
        try:
            value = await later.get()
        except asyncio.CancelledError:
            error = AparallelError("The event loop is shutting down; the result was not read.")
            batch.owner.deliver(batch.first, [error], [0])
            raise
        except Exception as reason:
            value, failed = reason, [0]
        self._deliver(batch, [value], failed)

    # Ends

    def on_exit(self, slot: Slot, exit: Exit) -> None:
        self._slots.pop(slot, None)
        if slot in self._idle:
            self._idle.remove(slot)
        slot.cancel_timers()
        self._put_back(self._take_back(slot, exit.unstarted))
        self._refuse_overstayed(slot)
        lost = list(slot.inflight)
        slot.inflight.clear()
        for batch in lost:
            self._uncount(slot, batch)
            for index in range(batch.first, batch.first + len(batch)):
                self._lose(batch, index, slot, exit)
        self._tell_waiters(slot)
        if slot.state is State.LEAVING:
            if not self._slots and not self._turns.has_calls():
                self.backend.rest()
        elif not exit.ready:
            self._on_failed_start(exit)
        elif self._present() < self.limit:
            self.start_worker()
        self._tell_changed()
        self.dispatch()

    def _lose(self, batch: Batch, index: int, slot: Slot, exit: Exit) -> None:
        """A call may have started and has no outcome: tell its owner, or run it again if that was allowed."""
        owner: Owner = batch.owner
        if not owner.wants(index):
            return
        name = call_name(batch, index, owner)
        error: AparallelError
        if slot.overran is not None:
            error = CallTimeoutError(
                f"{name} ran longer than timeout={slot.overran:g} seconds and was stopped.",
                call=name,
                timeout=slot.overran,
            )
        elif owner.may_retry(index):
            payload = batch.payloads[index - batch.first]
            self._put_back([Batch(owner, batch.function, index, [payload])])
            self.broken += 1
            return
        else:
            self.broken += 1
            error = BrokenWorkerError(
                f"The worker that ran {name} died: {exit}. The pool has replaced it; other calls are not affected.\n"
                f"What a crash leaves of a traceback is on stderr. To run such calls again, give retries=.",
                call=name,
                exitcode=exit.exitcode,
                signal=exit.signal,
            )
        self.failed += 1
        owner.deliver(index, [error], [0])

    def _on_failed_start(self, exit: Exit) -> None:
        self._failed_starts += 1
        if exit.error is not None:
            error: AparallelError = InitializerError(
                f"The pool's initializer failed in a worker: {type(exit.error).__name__}: {exit.error}"
            )
            error.__cause__ = exit.error
        elif self._failed_starts >= _FAILED_STARTS:
            error = BrokenWorkerError(
                f"{self._failed_starts} workers in a row died before they could run a call ({exit}). "
                f"What they printed is on stderr. Check that {_interpreter(self.backend)} starts, "
                f"and that the pool's initializer, if it has one, does not end it.",
                exitcode=exit.exitcode,
                signal=exit.signal,
            )
        else:
            return
        self._failed_starts = 0
        self.start_error = error
        self._fail_pending(error)

    def _fail_pending(self, error: BaseException) -> None:
        for queue in self._waiting_queues():
            while (batch := queue.head()) is not None:
                queue.take(len(batch))
                for index in range(batch.first, batch.first + len(batch)):
                    if batch.owner.wants(index):
                        batch.owner.deliver(index, [error], [0])
            self._dismiss(queue)

    def _waiting_queues(self) -> list[Queue]:
        queues: list[Queue] = []
        for waiter in self._turns:
            queues += waiter.queues()
        return queues

    # Nobody waits behind a slow call

    def _plan_watch(self) -> None:
        if self._watch is None and any(slot.calls > 1 or not slot.ready for slot in self._slots if slot.calls):
            self._watch = self.loop.call_later(_WATCH_SECONDS, self._on_watch)

    def _on_watch(self) -> None:
        """Fetch outcomes that wait for company, and give calls behind a slow one to a worker that is free."""
        self._watch = None
        now = self.loop.time()
        stuck = [slot for slot in self._slots if slot.calls and now - slot.progress_at > _STUCK_SECONDS]
        for slot in stuck:
            slot.worker.look()
        if self._idle or self._present() < self.limit:
            for slot in stuck:
                if slot.state is State.OPEN and slot.calls > slot.ready and self._could_move(slot):
                    self._recall(slot)
                    break
        self._plan_watch()

    def _could_move(self, slot: Slot) -> bool:
        if not slot.ready and not any(idle.ready for idle in self._idle):  # another start would take as long
            return False
        if not slot.ready:
            return True
        last, running = slot.inflight[-1].owner.queue, slot.inflight[0].owner.queue
        # What runs there keeps its worker; what only waits behind another's call gives that up when it is taken back.
        free = last.may_use(None) or last is not running
        return free and (last.quota is None or last.quota.may_use(None) or last.quota is not running.quota)


def _name_the_call(error: BaseException, batch: Batch, index: int) -> None:
    """Say in an error of ours which call it is about: where it was made, nobody knew."""
    if not isinstance(error, AparallelError):
        return
    name, text = call_name(batch, index, batch.owner), str(error)
    if getattr(error, "call", None) == "":
        error.call = name  # type: ignore[attr-defined]
    if text.startswith("A call "):
        error.args = (f"{name[0].upper()}{name[1:]} {text.removeprefix('A call ')}",)


def _interpreter(backend: Backend) -> str:
    return str(getattr(backend, "executable", "the interpreter"))
