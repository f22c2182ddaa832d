"""Single calls, as ``Pool.run`` makes them: those that are alike and wait in a row are handled as one.

A service makes thousands of them at once. What the scheduler does, it does once per batch; so that calls which
know nothing of each other also share batches, they share an owner, and each is an index there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aparallel._parallel.batching import MESSAGE_CALLS
from aparallel._parallel.queues import Queue, still_wanted
from aparallel.abc import Batch, Function

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextvars import Context

    from aparallel._parallel.queues import Quota, Tallies
    from aparallel._parallel.slots import Slot
    from aparallel.abc import OnCancel, Sharing


class JointOwner:
    """Owns single calls that are treated alike, together.

    Attributes:
        futures: what is told the outcome of each call; None once it was told or wants nothing any more.
        retries, deaths: how often a call is run again after its worker died, and how often each was.
    """

    __slots__ = ("context", "deaths", "futures", "on_cancel", "queue", "retries", "sharing", "timeout")

    cancelled = False  # not as a whole

    def __init__(
        self, queue: SingleQueue, context: Context, timeout: float | None, on_cancel: OnCancel, retries: int
    ) -> None:
        self.queue = queue
        self.sharing = queue.sharing
        self.context = context
        self.timeout = timeout
        self.on_cancel = on_cancel
        self.retries = retries
        self.deaths: dict[int, int] = {}
        self.futures: list[Any] = []

    def wants(self, index: int) -> bool:
        return self.futures[index] is not None

    def slot_with(self, index: int) -> Slot | None:
        """Return the slot of the worker that has this call; None if none has it."""
        return next((slot for slot in self.queue.serving if slot.holds(self, index)), None)

    def deliver(self, first: int, values: list[Any], failed: Sequence[int]) -> None:
        end = first + len(values)
        futures = self.futures[first:end]
        self.futures[first:end] = [None] * len(values)
        self.queue.tell(futures, values, failed)


class SingleQueue(Queue):
    """The single calls of a pool that wait for a worker.

    *sharing* is how large buffers of their results travel; *coming* is how many are being pickled in threads; *tell*
    tells what :meth:`enter` was given of calls what they gave, and is told which of these failed.

    Invariant: *holes* is the number of calls in ``pending`` that are not wanted any more.
    """

    def __init__(
        self,
        limit: int,
        sharing: Sharing,
        tell: Callable[[list[Any], list[Any], Sequence[int]], None],
        tallies: Tallies,
        quota: Quota | None = None,
    ) -> None:
        super().__init__(limit, tally=tallies.singles, quota=quota)
        self.tell = tell
        self._all_coming = tallies.coming
        self.sharing = sharing
        self.holes = 0
        self.coming = 0

    def add_to_coming(self, calls: int) -> None:
        """Take note that so many calls will :meth:`enter` later, or, if negative, that they do so now or never."""
        self.coming += calls
        self._all_coming.calls += calls

    def enter(
        self,
        function: Function,
        payloads: list[Any],
        futures: list[Any],
        context: Context,
        timeout: float | None,
        on_cancel: OnCancel,
        retries: int = 0,
        size: int = 0,
    ) -> tuple[JointOwner, int]:
        """Add calls, to the last batch if they are like it; return their owner and the index of the first there.

        *size*: as a batch has it.
        """
        if self.pending:
            last = self.pending[-1]
            owner: JointOwner = last.owner
            index = len(owner.futures)
            if (
                index == last.first + len(last.payloads)
                and index + len(futures) <= MESSAGE_CALLS
                and last.function.key == function.key
                and owner.context is context
                and owner.timeout == timeout
                and owner.on_cancel == on_cancel
                and owner.retries == retries
            ):
                owner.futures += futures
                last.payloads += payloads
                last.size += size
                self.count += len(futures)
                self.tally.calls += len(futures)
                return owner, index
        owner = JointOwner(self, context, timeout, on_cancel, retries)
        owner.futures += futures
        self.push(Batch(owner, function, 0, payloads, size))
        return owner, 0

    def head(self) -> Batch | None:
        while self.holes and self.pending:
            batch = self.pending[0]
            parts = still_wanted(batch)
            if parts == [batch]:
                break
            self.pending.popleft()
            self.pending.extendleft(reversed(parts))
            self.holes -= len(batch) - sum(map(len, parts))
        return self.pending[0] if self.pending else None

    def drop(self, owner: JointOwner, index: int) -> None:
        """Forget a pending call. It is passed over, not searched for, until as many are wanted no more as are.

        So what it brings along, which may be large, is let go of soon, at a few steps for each call.
        """
        owner.futures[index] = None
        self.count -= 1
        self.tally.calls -= 1
        self.holes += 1
        if self.holes > self.count:
            wanted = [part for batch in self.pending for part in still_wanted(batch)]
            self.pending.clear()
            self.pending.extend(wanted)
            self.holes = 0
