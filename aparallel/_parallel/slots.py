"""A worker's place in the pool, and what it may be given."""

from __future__ import annotations

import enum
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

from aparallel._parallel.batching import MESSAGE_CALLS, PREFETCH_SECONDS
from aparallel._wire.frames import MAX_OUTSTANDING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Sequence

    from aparallel._parallel.queues import Owner
    from aparallel._parallel.runs import Runs
    from aparallel.abc import Batch, Exit, Worker


class State(enum.Enum):
    """What a slot may be given."""

    OPEN = "open"  # calls
    RECALLING = "recalling"  # nothing: its calls are being taken back
    HELD = "held"  # nothing until its running call ends: its other calls were taken back
    DYING = "dying"  # nothing: its running call was cancelled and may still end by itself
    KILLED = "killed"  # nothing: it was killed
    LEAVING = "leaving"  # nothing: it was asked to exit


class SlotEvents(Protocol):
    """Who a slot passes its worker's events on to: the scheduler."""

    def on_ready(self, slot: Slot) -> None: ...
    def on_outcomes(self, slot: Slot, values: list[Any], failed: Sequence[int], seconds: float) -> None: ...
    def on_recalled(self, slot: Slot, count: int) -> None: ...
    def on_exit(self, slot: Slot, exit: Exit) -> None: ...


class Slot:
    """A worker's place in the pool. The worker tells its events here."""

    def __init__(self, scheduler: SlotEvents, generation: int) -> None:
        self.scheduler = scheduler
        self.generation = generation
        self.worker: Worker
        self.state = State.OPEN
        self.ready = False
        self.inflight: deque[Batch] = deque()
        self.calls = 0
        self.total = 0
        # Expected seconds of each call in flight; None if unknown.
        self.pace: float | None = None
        self.progress_at = 0.0
        self.idle_since = 0.0
        # A call may have overrun its timeout, and the others are being taken back first; the timeout that it overran.
        self.overdue = False
        self.overran: float | None = None
        # Single calls that wait here for longer than they may, with their time in seconds; they are being taken back.
        self.overstayed: list[tuple[Runs, int, float]] = []
        # Who waits until no call of an owner, or not that call, is left here.
        self.waiters: list[tuple[Owner, int | None, asyncio.Future[None]]] = []
        self.grace: asyncio.TimerHandle | None = None
        self.deadline: asyncio.TimerHandle | None = None

    def on_ready(self) -> None:
        self.ready = True
        self.progress_at = time.monotonic()
        self.scheduler.on_ready(self)

    def on_outcomes(self, values: list[Any], failed: Sequence[int], seconds: float) -> None:
        self.scheduler.on_outcomes(self, values, failed, seconds)

    def on_recalled(self, count: int) -> None:
        self.scheduler.on_recalled(self, count)

    def on_exit(self, exit: Exit) -> None:
        self.scheduler.on_exit(self, exit)

    def takes_more(self) -> bool:
        """Whether a further message may be sent behind the calls that it has."""
        return (
            self.state is State.OPEN
            and self.pace is not None
            and self.pace * self.calls < PREFETCH_SECONDS
            and self.calls <= MAX_OUTSTANDING - MESSAGE_CALLS
        )

    def holds(self, owner: Owner, index: int | None) -> bool:
        """Whether a call of *owner*, or that call of it, is in flight here."""
        return any(
            batch.owner is owner and (index is None or batch.first <= index < batch.first + len(batch))
            for batch in self.inflight
        )

    def has_first(self, owner: Owner, index: int) -> bool:
        """Whether that call of *owner* is the one that runs here, or will as soon as the worker is ready."""
        return bool(self.inflight) and self.inflight[0].owner is owner and self.inflight[0].first == index

    def cancel_timers(self) -> None:
        for timer in (self.grace, self.deadline):
            if timer is not None:
                timer.cancel()
        self.grace = self.deadline = None
