"""A pool's workers: started, kept, and let go."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Literal

from aparallel._parallel.failures import initializer_failed, starts_failed
from aparallel._parallel.slots import Slot, State

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from aparallel._parallel.slots import SlotEvents
    from aparallel.abc import Backend, Exit
    from aparallel.errors import AparallelError

# Workers that die before they are ready, in a row, before the calls that wait for one are given up.
_FAILED_STARTS = 3

# Where others are ready to serve those calls, it is this long before the next is started.
_SECONDS_BETWEEN_STARTS = 1.0

# A loop's timers may come that much early.
_TICK_SECONDS = 0.001


class Workforce:
    """The workers of a pool, idle and busy, and how many there may be.

    It knows of no calls but those in flight. Invariants: a slot without calls is in ``idle``, unless it is on its way
    out or its calls are being taken back; in ``idle`` those not ready yet come first, then the ones unused for longest.

    Args:
        events: who is told what workers tell.
        on_no_worker: called with the reason when no worker can be had for the calls that wait.
        on_room: called when workers may be started again for calls that wait.

    Attributes:
        limit: workers at most. A lower one is for :meth:`resize` to set.
        slots: all that have not ended.
        idle: those that wait for calls. Reused newest first: their caches are warm, and the coldest can expire.
        max_calls_per_worker: calls after which a worker is replaced; None for no limit.
        start_error: why workers could not start, for those who watch that; None again when one does.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        backend: Backend,
        limit: int,
        idle_timeout: float | None,
        max_calls_per_worker: int | None,
        *,
        events: SlotEvents,
        on_no_worker: Callable[[Exception], None],
        on_room: Callable[[], None],
    ) -> None:
        self.limit = limit
        self.max_calls_per_worker = max_calls_per_worker
        self.slots: dict[Slot, None] = {}
        self.idle: list[Slot] = []
        self.start_error: Exception | None = None
        self._loop = loop
        self._backend = backend
        self._idle_timeout = idle_timeout
        self._events = events
        self._on_no_worker = on_no_worker
        self._on_room = on_room
        self._generation = 0
        self._failed_starts = 0
        self._watchers = 0
        self._rest: asyncio.TimerHandle | None = None  # set while none is started
        self._expiry: asyncio.TimerHandle | None = None
        self._waiters: list[asyncio.Future[None]] = []

    # How many there are

    def present(self) -> list[Slot]:
        """Those that are not on their way out."""
        return [slot for slot in self.slots if not slot.is_going()]

    def has_room(self) -> bool:
        """Whether a worker may be started now."""
        present = len(self.present())
        return present < self.limit and not (present and self._rest)

    def free_places(self) -> int:
        """How many calls could start at once: idle workers, and workers that may yet be started."""
        return len(self.idle) + max(self.limit - len(self.present()), 0)

    def running(self) -> int:
        """How many calls workers have."""
        return sum(slot.calls for slot in self.slots)

    # Starting

    def start(self) -> Slot | None:
        """Start one; return None if that failed: others serve the calls that wait, or these have been told."""
        slot = Slot(self._events, self._generation, self._backend.max_outstanding)
        try:
            slot.worker = self._backend.start(self._loop, slot)
        except Exception as error:  # of any kind: who waits would wait for ever
            self._keep_start_error(error)
            if not self.slots:
                self._on_no_worker(error)
            return None
        self.slots[slot] = None
        self.idle.insert(0, slot)  # behind the ready ones
        slot.idle_since = monotonic()
        return slot

    def is_complete(self) -> bool:
        """Whether there are as many as there may be, ready or not."""
        return len(self.present()) >= self.limit

    def watch_starts(self) -> None:
        """Somebody is about to wait for workers, and wants to know whether these can start."""
        self._watchers += 1
        self.start_error = None

    def unwatch_starts(self) -> None:
        """The same one waits no more."""
        self._watchers -= 1
        if not self._watchers:
            self.start_error = None

    def _keep_start_error(self, error: Exception) -> None:
        # For nobody else: callers get it too, and its traceback then has all that they have.
        if self._watchers:
            self.start_error = error

    def on_ready(self, slot: Slot) -> None:
        self._failed_starts = 0
        self.start_error = None
        slot.progress_at = monotonic()
        if slot in self.idle:
            self.idle.remove(slot)
            self.idle.append(slot)
            slot.idle_since = monotonic()
            self._plan_expiry()
        self.tell_changed()

    # Work

    def occupy(self, slot: Slot) -> None:
        """It is about to get calls."""
        if slot in self.idle:
            self.idle.remove(slot)

    def release(self, slot: Slot) -> None:
        """Let a worker that has no calls any more be idle, or go."""
        worn_out = self.max_calls_per_worker is not None and slot.total >= self.max_calls_per_worker
        if worn_out or slot.generation != self._generation or len(self.present()) > self.limit:
            self._retire(slot)
            return
        slot.idle_since = monotonic()
        if slot not in self.idle:
            self.idle.insert(len(self.idle) if slot.ready else 0, slot)
        self._plan_expiry()

    # Going

    def resize(self, limit: int) -> None:
        """Have at most *limit* workers: idle ones beyond it go now, busy ones when they are done."""
        self.limit = limit
        while self.idle and len(self.present()) > limit:
            self._retire(self.idle[0])

    def renew(self) -> None:
        """Replace workers as they become idle: what they were set up with has changed."""
        self._generation += 1
        for slot in list(self.idle):
            self._retire(slot)

    def _retire(self, slot: Slot) -> None:
        self.occupy(slot)
        slot.enter(State.LEAVING)
        slot.worker.retire()

    def keep_none(self) -> None:
        """Let those go that are idle, and from now on each as soon as it is."""
        self._idle_timeout = 0.0
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        self._plan_expiry()

    def _plan_expiry(self) -> None:
        if self._idle_timeout is not None and self._expiry is None and self.idle:
            left = self.idle[0].idle_since + self._idle_timeout - monotonic()
            self._expiry = self._loop.call_later(max(left, _TICK_SECONDS), self._expire)

    def _expire(self) -> None:
        assert self._idle_timeout is not None
        self._expiry = None
        until = monotonic() - self._idle_timeout
        while self.idle and self.idle[0].idle_since <= until:
            self._retire(self.idle[0])
        self._plan_expiry()

    def replace(self, slot: Slot, why: Literal[State.KILLED, State.OVERRAN]) -> None:
        """Kill a worker whose other calls were taken back, and have another take its place."""
        slot.enter(why)
        slot.worker.kill()
        if self.has_room():
            self.start()

    def remove(self, slot: Slot) -> None:
        """It has ended."""
        self.slots.pop(slot, None)
        self.occupy(slot)
        slot.cancel_alarm()

    def make_up_for(self, slot: Slot, exit: Exit) -> None:
        """Start another in place of one that was removed and had not been asked to go."""
        if exit.ready:
            if self.has_room():
                self.start()
            return
        self._failed_starts += 1
        if exit.error is not None:
            error: AparallelError = initializer_failed(exit.error)
        elif self._failed_starts >= _FAILED_STARTS:
            error = starts_failed(self._failed_starts, exit, self._backend)
        else:
            return
        self._failed_starts = 0
        self._keep_start_error(error)
        if exit.error is None and any(slot.ready for slot in self.present()):
            if self._rest is None:
                self._rest = self._loop.call_later(_SECONDS_BETWEEN_STARTS, self._end_rest)
        else:
            self._on_no_worker(error)

    def _end_rest(self) -> None:
        self._rest = None
        self._on_room()

    # The end

    def retire_all(self) -> None:
        """Ask every worker to go: idle ones cleanly; those that still run a call are stopped if they can be."""
        for timer in (self._expiry, self._rest):
            if timer is not None:
                timer.cancel()
        self._expiry = self._rest = None
        for slot in list(self.slots):
            if slot.state is State.LEAVING:
                continue
            if slot.calls and self._backend.can_kill:
                slot.enter(State.LEAVING)
                slot.worker.kill()
            else:
                self._retire(slot)

    def has_ending_slots(self) -> bool:
        """Whether a worker has yet to end. A thread that runs an abandoned call is not waited for."""
        return any(self._backend.can_kill or not slot.runs_abandoned() for slot in self.slots)

    def abandon_all(self) -> None:
        """Have no more to do with the workers that are left: what they run is nobody's, and they end when it does."""
        for slot in list(self.slots):
            slot.disown_all()
        self.slots.clear()
        self.idle.clear()
        self.tell_changed()

    # Who waits for workers

    def changed(self) -> asyncio.Future[None]:
        """A future that is done when a worker has become ready or has ended."""
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._waiters.append(waiter)
        return waiter

    def tell_changed(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
