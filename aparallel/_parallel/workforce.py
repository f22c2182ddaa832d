"""A pool's workers: started, kept, and let go."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING, Any

from aparallel._parallel.admission import seconds_for
from aparallel._parallel.queues import Nobody, Tallies
from aparallel._parallel.slots import Slot, State
from aparallel._parallel.turns import Turns
from aparallel.errors import AparallelError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from aparallel._parallel.queues import Owner, Queue
    from aparallel._parallel.quotas import Quota
    from aparallel.abc import Backend, Exit


# The average of recent calls is that of all as long as there are no more than this; then old ones fade.
_MANY_CALLS = 32

_GOING = (State.LEAVING, State.KILLED)


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


class Workforce:
    """The workers of a pool, idle and busy, and how many there may be.

    It holds all of the scheduler's state. The scheduler is made of three classes, each of which uses
    only itself and what is below it: this one, :class:`Stopping`, and :class:`Scheduler`.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        backend: Backend,
        limit: int,
        idle_timeout: float | None = None,
        max_calls_per_worker: int | None = None,
        tallies: Tallies | None = None,
    ) -> None:
        self.loop = loop
        self.backend = backend
        self.limit = limit
        self.idle_timeout = idle_timeout
        self.max_calls_per_worker = max_calls_per_worker
        self.generation = 0
        self.completed = self.failed = self.broken = self.refused = 0
        # How long calls took lately, whichever they were, in seconds; None before the first.
        self.mean_seconds: float | None = None
        self._measured = 0
        self._slots: dict[Slot, None] = {}
        # Idle workers are reused newest first: their caches are warm, and the coldest can expire.
        self._idle: list[Slot] = []
        # Whose calls wait: queues, and keys with theirs.
        self._turns = Turns()
        self.tallies = tallies or Tallies()
        self._failed_starts = 0
        # Why workers could not start, for those who wait for one; reset when one does.
        self.start_error: Exception | None = None
        self._soon: asyncio.Handle | None = None
        self._watch: asyncio.TimerHandle | None = None
        self._expiry: asyncio.TimerHandle | None = None
        self._waiters: list[asyncio.Future[None]] = []
        # Outcomes that are decoded off the loop, by owner and index of their calls.
        self._decoding: dict[tuple[Owner, int], asyncio.Task[None]] = {}

    @property
    def slots(self) -> Iterable[Slot]:
        return self._slots.keys()

    @property
    def queued(self) -> int:
        return self.tallies.runs.calls + self.tallies.drawn.calls

    def admit(self, queue: Queue) -> None:
        """Serve *queue*, which has calls, or is about to get them; :meth:`dispatch` must follow in this tick."""
        if queue.quota is None:
            self._turns.add(queue)
        else:
            queue.quota.turns.add(queue)
            self._turns.add(queue.quota)

    def _dismiss(self, queue: Queue) -> None:
        """Serve *queue* no more until it is admitted again: it has no calls."""
        if queue.quota is None:
            self._turns.remove(queue)
            return
        queue.quota.turns.remove(queue)
        if not queue.quota.turns.entries:
            self._turns.remove(queue.quota)

    def learn(self, seconds: float, calls: int) -> None:
        """Take in that *calls* took *seconds* each."""
        weight = calls / (self._measured + calls)
        self.mean_seconds = seconds * weight + (self.mean_seconds or 0.0) * (1 - weight)
        self._measured = min(self._measured + calls, _MANY_CALLS)

    def seconds_left(self, quota: Quota | None) -> float | None:
        """In how many seconds all that waits and runs will be done, of a key or of the whole pool."""
        if quota is not None:
            return seconds_for(quota.count + quota.running, min(quota.limit, self.limit), self.mean_seconds)
        running = sum(slot.calls for slot in self._slots)
        return seconds_for(self.queued + self.tallies.coming.calls + running, self.limit, self.mean_seconds)

    def free_places(self) -> int:
        """How many calls could start at once: idle workers, and workers that may yet be started."""
        return len(self._idle) + max(self.limit - self._present(), 0)

    def _present(self) -> int:
        return sum(slot.state not in _GOING for slot in self._slots)

    def start_worker(self) -> Slot | None:
        """Start one; return None if that failed: others serve the calls that wait, or these have been told."""
        slot = Slot(self, self.generation)
        try:
            slot.worker = self.backend.start(self.loop, slot)
        except (OSError, AparallelError) as error:
            self.start_error = error
            if not self._slots:
                self._fail_pending(error)
            return None
        self._slots[slot] = None
        self._idle.insert(0, slot)  # behind the ready ones
        slot.idle_since = self.loop.time()
        return slot

    def on_ready(self, slot: Slot) -> None:
        self._failed_starts = 0
        self.start_error = None
        if slot in self._idle:
            self._idle.remove(slot)
            self._idle.append(slot)
            slot.idle_since = self.loop.time()
            self._plan_expiry()
        self._tell_changed()

    def start_missing(self) -> bool:
        """Start workers up to the limit; return whether all are there and ready."""
        while self._present() < self.limit:
            if self.start_worker() is None:
                return False
        return all(slot.ready for slot in self._slots if slot.state not in _GOING)

    def resize(self, limit: int) -> None:
        """Have at most *limit* workers: idle ones beyond it go now, busy ones when they are done."""
        self.limit = limit
        while self._idle and self._present() > limit:
            self._retire(self._idle[0])

    def renew(self) -> None:
        """Replace workers as they become idle: what they were set up with has changed."""
        self.generation += 1
        for slot in list(self._idle):
            self._retire(slot)

    def _retire(self, slot: Slot) -> None:
        if slot in self._idle:
            self._idle.remove(slot)
        slot.state = State.LEAVING
        slot.worker.retire()

    def _plan_expiry(self) -> None:
        if self.idle_timeout is not None and self._expiry is None and self._idle:
            due = self._idle[0].idle_since + self.idle_timeout
            self._expiry = self.loop.call_at(due, self._expire)

    def _expire(self) -> None:
        assert self.idle_timeout is not None
        self._expiry = None
        until = self.loop.time() - self.idle_timeout
        while self._idle and self._idle[0].idle_since <= until:
            self._retire(self._idle[0])
        self._plan_expiry()

    def statistics(self) -> PoolStatistics:
        present = [slot for slot in self._slots if slot.state not in _GOING]
        return PoolStatistics(
            n_jobs=self.limit,
            workers=len(present),
            starting=sum(not slot.ready for slot in present),
            idle=sum(slot.ready and not slot.calls for slot in present),
            busy=sum(slot.ready and slot.calls > 0 for slot in present),
            queued=self.queued,
            running=sum(slot.calls for slot in self._slots),
            completed=self.completed,
            failed=self.failed,
            broken=self.broken,
            refused=self.refused,
        )

    def changed(self) -> asyncio.Future[None]:
        """A future that is done when a worker has become ready or has ended."""
        waiter: asyncio.Future[None] = self.loop.create_future()
        self._waiters.append(waiter)
        return waiter

    def _tell_changed(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def has_ending_slots(self) -> bool:
        """Whether a worker has yet to end. A thread that runs an abandoned call is not waited for."""
        return any(
            self.backend.can_kill
            or not any(isinstance(batch.owner, Nobody) or batch.owner.on_cancel == "abandon" for batch in slot.inflight)
            for slot in self._slots
        )

    def retire_all(self) -> None:
        """Ask every worker to go: idle ones cleanly; those that still run a call are stopped if they can be."""
        self.cancel_timers()
        for slot in list(self._slots):
            if slot.state is State.LEAVING:
                continue
            if slot.calls and self.backend.can_kill:
                slot.state = State.LEAVING
                slot.worker.kill()
            else:
                self._retire(slot)

    def cancel_timers(self) -> None:
        for timer in (self._soon, self._watch, self._expiry):
            if timer is not None:
                timer.cancel()
        self._soon = self._watch = self._expiry = None

    def dispatch(self) -> None:
        """Send what can be sent."""
        raise NotImplementedError

    def on_outcomes(self, slot: Slot, values: list[Any], failed: Sequence[int], seconds: float) -> None:
        """Take in what calls gave."""
        raise NotImplementedError

    def on_recalled(self, slot: Slot, count: int) -> None:
        """Take in that calls were taken back."""
        raise NotImplementedError

    def on_exit(self, slot: Slot, exit: Exit) -> None:
        """Take in that a worker has ended."""
        raise NotImplementedError

    def _fail_pending(self, error: BaseException) -> None:
        """Give up the calls that wait: no worker can be had for them."""
        raise NotImplementedError
