"""What is looked after while calls run: that nobody waits behind a slow one."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

from aparallel._parallel.slots import State

if TYPE_CHECKING:
    import asyncio

    from aparallel._parallel.queues import Queue
    from aparallel._parallel.slots import Slot
    from aparallel._parallel.stopping import Stopping
    from aparallel._parallel.workforce import Workforce

# How often to look after messages of several calls, and how long one may stand still.
_WATCH_SECONDS = 0.002
_STUCK_SECONDS = 0.001


class Watch:
    """Fetches outcomes that wait for company, and has calls taken back for a worker that is free.

    These are calls behind a slow one, and those of a worker that is not ready while another is.

    Invariant: its timer is set as long as a worker has several calls.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, workforce: Workforce, stopping: Stopping) -> None:
        self._loop = loop
        self._workforce = workforce
        self._stopping = stopping
        self._timer: asyncio.TimerHandle | None = None

    def plan(self) -> None:
        """Calls were given to workers, or one is free: look after them, if that is needed."""
        slots, idle = self._workforce.slots, self._workforce.idle
        if idle and idle[-1].ready:  # those that are come last
            for slot in slots:
                if slot.calls and not slot.ready and slot.state is State.OPEN:
                    # Whoever was to have these calls leaves its place in its queue to the one that is ready.
                    self._stopping.recall(slot)
                    break  # this is called again when they are back
        if self._timer is None and any(slot.calls > 1 for slot in slots):
            self._timer = self._loop.call_later(_WATCH_SECONDS, self._look)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        workforce = self._workforce
        now = monotonic()
        stuck = [slot for slot in workforce.slots if slot.calls and now - slot.progress_at > _STUCK_SECONDS]
        for slot in stuck:
            slot.worker.look()
        if workforce.idle or workforce.has_room():
            for slot in stuck:
                if slot.state is State.OPEN and slot.ready and slot.calls > 1 and self._could_move(slot):
                    self._stopping.recall(slot)
                    break
        self.plan()

    def _could_move(self, slot: Slot) -> bool:
        # No call runs: they are on their way, and taken back they would be sent again, from the beginning. Where that
        # takes longer than our patience, as large arguments do, no call of theirs would ever run.
        if slot.worker.running_since() is None:
            return False
        first, *others = slot.inflight
        running = first.owner.queue
        behind = {batch.owner.queue for batch in others} | ({running} if len(first) > 1 else set())
        return any(_may_leave(queue, running) for queue in behind)


def _may_leave(queue: Queue, running: Queue) -> bool:
    """Whether calls of *queue* that wait behind one of *running* may go to another worker."""
    # What runs there keeps its worker; what only waits behind another's call gives that up when it is taken back.
    free = queue.may_use(None) or queue is not running
    return free and (queue.quota is None or queue.quota.may_use(None) or queue.quota is not running.quota)
