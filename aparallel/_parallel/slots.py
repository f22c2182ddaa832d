"""A worker's place in the pool: what it has been given, and what it may be given."""

from __future__ import annotations

import enum
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

from aparallel._parallel.batching import MESSAGE_BYTES, PREFETCH_SECONDS
from aparallel.abc import Batch

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Sequence

    from aparallel.abc import Exit, OnCancel, Worker


class State(enum.Enum):
    """What becomes of a slot, and what it may be given: calls while it is OPEN, nothing in all other states.

    Whether its worker is ready yet is another matter: a worker that is still starting goes through the same states.
    """

    OPEN = "open"
    # Its worker was asked to take back what has not started, and has not answered.
    RECALLING = "recalling"
    # Only what had started is left. It is open again when that has ended.
    HELD = "held"
    # As HELD, and its running call was cancelled: it is killed, unless that call ends by itself within a grace period.
    DYING = "dying"
    # It was killed: its running call was cancelled, and outlasted its grace period.
    KILLED = "killed"
    # It was killed: its running call overran its timeout.
    OVERRAN = "overran"
    # It was asked to exit, or the pool closes and what it ran is nobody's.
    LEAVING = "leaving"


# What may follow what. Any slot may have to leave when the pool closes.
_NEXT = {
    State.OPEN: {State.RECALLING, State.LEAVING},
    State.RECALLING: {State.HELD, State.LEAVING},
    State.HELD: {State.OPEN, State.DYING, State.OVERRAN, State.LEAVING},
    State.DYING: {State.OPEN, State.KILLED, State.LEAVING},
    State.KILLED: {State.LEAVING},
    State.OVERRAN: {State.LEAVING},
    State.LEAVING: set(),
}
_GOING = (State.KILLED, State.OVERRAN, State.LEAVING)


class SlotEvents(Protocol):
    """Who a slot passes its worker's events on to: the scheduler."""

    def on_ready(self, slot: Slot) -> None: ...
    def on_outcomes(self, slot: Slot, values: list[Any], failed: Sequence[int], seconds: float) -> None: ...
    def on_recalled(self, slot: Slot, count: int) -> None: ...
    def on_exit(self, slot: Slot, exit: Exit) -> None: ...


class Nobody:
    """Owns a call in a worker that its real owner has abandoned, and is told nothing of it."""

    on_cancel: OnCancel = "abandon"
    timeout: float | None = None
    cancelled = True

    def __init__(self, queue: Any) -> None:
        self.queue = queue

    def wants(self, index: int) -> bool:
        return False


class Slot:
    """A worker's place in the pool. The worker tells its events here.

    Invariants: ``calls`` is the number of calls in ``inflight``, which are in the order in which they were sent, and
    ``size`` the sum of these batches' sizes; each call is counted by its queue. The only timer, ``alarm``, is the end
    of the grace period while DYING, never set on the way out, and otherwise when a call may first overrun its timeout.
    """

    def __init__(self, events: SlotEvents, generation: int, max_outstanding: int) -> None:
        self._events = events
        self.generation = generation
        self.worker: Worker
        self.state = State.OPEN
        self.ready = False
        self.inflight: deque[Batch] = deque()
        self.calls = 0
        self.size = 0
        self.max_outstanding = max_outstanding
        # Calls that it was given, but for those taken back.
        self.total = 0
        # Expected seconds of each call in flight; None if unknown.
        self.pace: float | None = None
        # On time.monotonic's clock: when it last got on with its calls, and since when it has none.
        self.progress_at = 0.0
        self.idle_since = 0.0
        # Who waits until no call of an owner, or not that call, is left here.
        self.waiters: list[tuple[object, int | None, asyncio.Future[None]]] = []
        self.alarm: asyncio.TimerHandle | None = None

    # What its worker tells

    def on_ready(self) -> None:
        self.ready = True
        self._events.on_ready(self)

    def on_outcomes(self, values: list[Any], failed: Sequence[int], seconds: float) -> None:
        self._events.on_outcomes(self, values, failed, seconds)

    def on_recalled(self, count: int) -> None:
        self._events.on_recalled(self, count)

    def on_exit(self, exit: Exit) -> None:
        self._events.on_exit(self, exit)

    # What it is, and has

    def enter(self, state: State) -> None:
        """Be in *state* from now on."""
        assert state in _NEXT[self.state], f"{self.state} -> {state}"
        if self.state is State.DYING or state is State.DYING or state in _GOING:
            self.cancel_alarm()
        self.state = state

    def is_going(self) -> bool:
        """Whether it is on its way out."""
        return self.state in _GOING

    def takes_more(self) -> bool:
        """Whether a further message may be sent behind the calls that it has."""
        return (
            self.state is State.OPEN
            and self.pace is not None
            and self.pace * self.calls < PREFETCH_SECONDS
            and self.calls <= self.max_outstanding // 2
            and self.size < MESSAGE_BYTES
        )

    def holds(self, owner: object, index: int | None) -> bool:
        """Whether a call of *owner*, or that call of it, is in flight here."""
        return any(
            batch.owner is owner and (index is None or batch.first <= index < batch.first + len(batch))
            for batch in self.inflight
        )

    def has_first(self, owner: object, index: int) -> bool:
        """Whether that call of *owner* is the one that runs here, or will as soon as the worker is ready."""
        return bool(self.inflight) and self.inflight[0].owner is owner and self.inflight[0].first == index

    def runs_abandoned(self) -> bool:
        """Whether a call is here that nobody waits for."""
        return any(batch.owner.on_cancel == "abandon" for batch in self.inflight)

    # Calls come and go

    def give(self, batches: list[Batch], count: int, pace: float | None) -> None:
        """Send the *count* calls of *batches*, which are one queue's and should take *pace* seconds each."""
        self.inflight.extend(batches)
        self.calls += count
        self.size += sum(batch.size for batch in batches)
        self.total += count
        self.pace = pace
        batches[0].owner.queue.count_in(self, count)
        self.worker.send(batches)

    def take_done(self, most: int) -> Batch:
        """Remove up to *most* calls, all of one batch, from the front of what is in flight."""
        batch = self.inflight.popleft()
        if len(batch.payloads) > most:
            batch, rest = batch.split(most)
            self.inflight.appendleft(rest)
        self._uncount(batch)
        return batch

    def take_back(self, count: int) -> list[Batch]:
        """Remove the last *count* calls, which have not started, from what is in flight; newest batch first."""
        taken: list[Batch] = []
        self.total -= count
        while count:
            batch = self.inflight.pop()
            if len(batch) > count:
                kept, batch = batch.split(len(batch) - count)
                self.inflight.append(kept)
            self._uncount(batch)
            count -= len(batch)
            taken.append(batch)
        return taken

    def take_all(self) -> list[Batch]:
        """Remove all that is in flight, oldest batch first."""
        taken = list(self.inflight)
        self.inflight.clear()
        for batch in taken:
            self._uncount(batch)
        return taken

    def _uncount(self, batch: Batch) -> None:
        calls = len(batch.payloads)
        self.calls -= calls
        self.size -= batch.size
        batch.owner.queue.count_out(self, calls)

    def disown_last(self) -> Batch:
        """Have nobody own the call sent last, which goes on here; return it as it was."""
        batch = self.inflight.pop()
        others, last = batch.split(len(batch) - 1)
        if len(others):
            self.inflight.append(others)
        self.inflight.append(_nobodys(last))
        return last

    def disown_all(self) -> None:
        """Have nobody own what is in flight, nor wait for it."""
        self.inflight = deque(map(_nobodys, self.inflight))
        self.tell_waiters()

    # Who waits for it

    def wait_for(self, waiter: asyncio.Future[None], owner: object, index: int | None) -> None:
        """Have *waiter* told when no call of *owner*, or not that call of it, is left here."""
        self.waiters.append((owner, index, waiter))

    def tell_waiters(self) -> None:
        """Tell those whose calls are not here any more."""
        for entry in list(self.waiters):
            owner, index, waiter = entry
            if not self.holds(owner, index):
                self.waiters.remove(entry)
                if not waiter.done():
                    waiter.set_result(None)

    def cancel_alarm(self) -> None:
        if self.alarm is not None:
            self.alarm.cancel()
            self.alarm = None


def _nobodys(batch: Batch) -> Batch:
    return Batch(Nobody(batch.owner.queue), batch.function, batch.first, batch.payloads, batch.size)
