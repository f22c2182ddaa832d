"""What is behind the front of a pool: its backend, its workers and queues once it is used, and its life."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import os
import sys
import weakref
from asyncio import get_running_loop
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from aparallel._ground.loops import running_loop
from aparallel._ground.shield import outlast
from aparallel._parallel.admitted import Admitted
from aparallel._parallel.lifetime import LoopTie, Phase
from aparallel._parallel.parsing import parse_count, parse_most, parse_time_limit
from aparallel._parallel.policy import StopPolicy
from aparallel._parallel.queues import Quota, Tallies
from aparallel._parallel.scheduler import Scheduler
from aparallel._parallel.settings import limit_inner_threads
from aparallel._parallel.single_queue import SingleQueue
from aparallel.abc import Moments
from aparallel.errors import ClosedPoolError, WrongLoopError

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator

    from aparallel._ground.sharing import MmapMode, Shared
    from aparallel._parallel.settings import Settings
    from aparallel._parallel.statistics import PoolStatistics
    from aparallel._parallel.workforce import Workforce
    from aparallel.abc import Encoder

# What a cancelled coroutine has for its clean-up once the time of the pool is over.
_PARTING_SECONDS = 1.0

# Looked up once: in Python 3.11 each look at a member of an enum takes 0.3 µs.
_OPEN: Final = Phase.OPEN

# The inline pools, and their keys, that have a call around this code: calls that it makes there must not wait for the
# place that the outer one holds.
_inline_pools: contextvars.ContextVar[tuple[Engine | Quota | None, ...]] = contextvars.ContextVar(
    "aparallel_inline_pools", default=()
)


class Bound(NamedTuple):
    """What a pool has from its first use on.

    Attributes:
        loop: the loop that it belongs to.
        pid: the process that it belongs to. In a forked copy of that its workers are another's.
        scheduler: gives calls to its workers.
        encoder: for its single calls.
        tie: ends it with its loop.
    """

    loop: asyncio.AbstractEventLoop
    pid: int
    scheduler: Scheduler
    encoder: Encoder
    tie: LoopTie


class Engine:
    """A pool but for its front: what runs calls for those who hold it, and ends with its loop.

    Attributes:
        n_jobs: the most workers that it may have.
        sharing: how large buffers travel, where gathers do not say otherwise.
        shares_context: calls run in a copy of the caller's context; elsewhere they see none of it.
        runs_on_loop: they run on its loop.
        needs_context: the context in which a call is made matters, to run in or for the variables that travel along.
        policy: what is done to running calls that are to stop.
        patience: seconds that a single call may wait to be started, unless it says otherwise; None for ever.
        single_queue: what its single calls without a key wait in.
        quotas: what the calls of each key have together, for as long as anyone refers to it.
        max_queued: how many single calls may wait in the whole pool; None for any number.
        admitted: the calls that it still owes an outcome.
        phase: how far its life has come.
        on_closed: called once when it has ended, in whichever way, so that who keeps it forgets it.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings = settings.checked()
        self.n_jobs = settings.workers()
        self.backend = settings.make_backend(self.n_jobs)
        self.policy = StopPolicy(self.backend, settings.on_cancel, stands_in=settings.stands_in)
        self.sharing = settings.sharing()
        # Looked up once, as each single call asks.
        self.shares_context = self.backend.shares_memory
        self.runs_on_loop = self.backend.runs_on_loop
        self.needs_context = self.shares_context or bool(settings.context_vars)
        self.patience = settings.queue_timeout
        self.max_queued = settings.max_queued
        # How many calls wait; the scheduler's queues keep it.
        self._waiting = Tallies()
        self.admitted = Admitted(self.backend)
        self.single_queue = SingleQueue(self.n_jobs, self.sharing, self.admitted.tell, self._waiting)
        self.quotas: weakref.WeakValueDictionary[Hashable, Quota] = weakref.WeakValueDictionary()
        # Where the single calls of each key wait, for as long as anyone has a use for that.
        self._single_queues: weakref.WeakValueDictionary[Hashable, SingleQueue] = weakref.WeakValueDictionary()
        self.phase = Phase.NEW
        # None until the first use; a pool that was never used may be closed without.
        self._bound: Bound | None = None
        self.on_closed: Callable[[], object] | None = None

    def use(self) -> Bound:
        """Check that the pool can be used here and now, and bind it to the running loop if it is new.

        Raises:
            ClosedPoolError: it is closing or closed.
            WrongLoopError: it belongs to another loop or process, or no loop is running.
        """
        bound = self._bound
        if bound is not None and self.phase is _OPEN:
            try:  # each single call comes by here: what follows would take as long again
                if get_running_loop() is bound.loop:
                    return bound
            except RuntimeError:  # none is running: say so below
                pass
        loop = running_loop()
        if not self.is_ours():
            raise WrongLoopError("This process is a forked copy of the one whose pool this is. Make a pool of its own.")
        if self.phase > Phase.OPEN and (bound is None or bound.loop is loop):
            raise ClosedPoolError(
                f"This pool is closed: {self.describe()}. Make a new one, or keep it open while it is used."
            )
        if bound is not None:
            raise WrongLoopError(
                f"{self.describe()} belongs to another event loop, {_state_of(bound.loop)}. "
                f"A pool serves the loop that it was first used on: make one per loop."
            )
        return self._open(loop)

    def _open(self, loop: asyncio.AbstractEventLoop) -> Bound:
        settings = self.settings
        scheduler = Scheduler(
            loop, self.backend, self.n_jobs, settings.idle_timeout, settings.max_calls_per_worker, self._waiting
        )
        encoder = self.backend.encoder(self.sharing, Moments.ANY)
        tie = LoopTie(loop, self._shut, self._on_loop_gone)
        self.admitted.open(scheduler)
        self._bound = Bound(loop, os.getpid(), scheduler, encoder, tie)
        self._advance(Phase.OPEN)
        return self._bound

    def _advance(self, phase: Phase) -> None:
        self.phase = max(self.phase, phase)

    def is_open(self) -> bool:
        """Whether it is in use, and neither closing nor closed."""
        return self.phase is _OPEN

    def is_ours(self) -> bool:
        """Whether this is the process that the pool was first used in. In a forked copy its workers are another's."""
        return self._bound is None or self._bound.pid == os.getpid()

    # For those who run calls

    @contextlib.contextmanager
    def place_for_nested(self, context: contextvars.Context, quota: Quota | None) -> Iterator[None]:
        """Have one more worker while a call of this very pool, or key, waits here for other calls of it.

        Only a coroutine that runs inline can do so; the place that it holds must not be the one it waits for.
        """
        if not self.runs_on_loop:
            yield
            return
        around = _inline_pools.get()
        context.run(_inline_pools.set, (*around, self, quota))
        if self not in around or self._bound is None:
            yield
            return
        scheduler, workforce = self._bound.scheduler, self._bound.scheduler.workforce
        within = quota if quota is not None and quota in around else None
        if within is not None:
            within.nested += 1
        self.single_queue.limit += 1
        workforce.limit += 1
        scheduler.dispatch()
        try:
            yield
        finally:
            if within is not None:
                within.nested -= 1
            self.single_queue.limit -= 1
            workforce.resize(workforce.limit - 1)

    def limit(self, key: Hashable, workers: int, max_queued: int | None) -> tuple[Quota, SingleQueue]:
        """Let the calls of *key* have so many workers; return what they share and where single ones of them wait."""
        workers, max_queued = parse_count("n", workers, 1), parse_most("max_queued", max_queued, 0)
        try:
            queue = self._single_queues.get(key)
        except TypeError as error:
            raise TypeError(
                f"limit() needs a key that can be hashed, and {type(key).__name__} cannot: {error}"
            ) from error
        quota = self.quotas.get(key)
        if quota is None:
            quota = self.quotas[key] = Quota(key)
        if queue is None:
            queue = self._single_queues[key] = SingleQueue(
                sys.maxsize, self.sharing, self.admitted.tell, self._waiting, quota
            )
        if quota.allow(workers, max_queued) and quota.turns.entries and self._bound is not None:
            self._bound.scheduler.dispatch_soon()
        return quota, queue

    # For the pool itself

    def adjust(self, workers: int, inner_threads: int | None) -> None:
        """For the pool that belongs to a loop: grow or shrink to what the gathers under way ask for."""
        workforce = self.use().scheduler.workforce
        wanted = max([workers, *self.admitted.flows.values()])
        if wanted != self.n_jobs:
            more = wanted - self.n_jobs  # calls that wait here for others have places beside these
            self.n_jobs = wanted
            self.single_queue.limit += more
            workforce.resize(workforce.limit + more)
        if limit_inner_threads(self.backend, inner_threads, wanted):
            workforce.renew()

    async def share(self, value: Any, mode: MmapMode) -> Shared[Any]:
        self.use()
        return await self.backend.share(value, mode, self.sharing)

    async def warm_up(self) -> None:
        """Start all workers and wait until they are ready."""
        scheduler = self.use().scheduler
        scheduler.workforce.watch_starts()
        try:
            await self._start_missing(scheduler.workforce)
            await self.backend.warm_up()
            await self._start_all(scheduler)
        finally:
            scheduler.workforce.unwatch_starts()
            if self.backend.is_unsettled:
                await self.backend.settle()

    async def _start_all(self, scheduler: Scheduler) -> None:
        workforce = scheduler.workforce
        while workforce.start_error is None and self.phase is _OPEN:
            await self._start_missing(workforce)
            if workforce.is_complete() and all(slot.ready for slot in workforce.present()):
                self.backend.start_spare(scheduler.loop)
                return
            if workforce.start_error is None:
                await workforce.changed()
        if workforce.start_error is None:
            raise ClosedPoolError("The pool was closed while its workers were starting.")
        raise workforce.start_error

    async def _start_missing(self, workforce: Workforce) -> None:
        """Start workers up to the limit, one in each tick: a start may hold the loop."""
        while self.phase is _OPEN and workforce.start_error is None and not workforce.is_complete():
            if workforce.start() is None:
                break
            await asyncio.sleep(0)

    def statistics(self) -> PoolStatistics:
        """Return what the pool is doing now."""
        from aparallel._parallel.statistics import PoolStatistics

        if self._bound is None:
            return PoolStatistics(
                self.n_jobs, workers=0, starting=0, idle=0, busy=0, queued=0, running=0, completed=0, failed=0, broken=0
            )
        return self._bound.scheduler.statistics()

    def describe(self) -> str:
        """Return what the pool is and does, as its repr."""
        nice = self.settings.nice
        start = f"<Pool {self.backend.name} n_jobs={self.n_jobs}" + ("" if nice is None else f" nice={nice}")
        if self.phase > Phase.OPEN:
            return f"{start}: {'closed' if self.phase is Phase.CLOSED else 'closing'}>"
        now = self.statistics()
        starting = f"{now.starting} starting, " if now.starting else ""
        return f"{start}: {starting}{now.idle} idle, {now.busy} busy, {now.queued} queued>"

    # Its end

    def let_go(self) -> None:
        """Keep no idle workers: nobody has the pool any more, only calls that it has begun. In any thread."""
        bound = self._bound
        if bound is not None and self.phase is _OPEN and self.is_ours():
            with contextlib.suppress(RuntimeError):  # the loop has closed, and the workers went with it
                bound.loop.call_soon_threadsafe(bound.scheduler.workforce.keep_none)

    def abort(self) -> None:
        """Admit no more, and end all that was admitted with ClosedPoolError."""
        if self.phase is Phase.CLOSED:
            return
        self._advance(Phase.CLOSING)
        if self._bound is not None:
            error = ClosedPoolError("The pool was closed while this call was under way.")
            self.admitted.fail_all(error)

    async def aclose(self, timeout: float | None) -> None:
        """Admit no more, wait *timeout* seconds for what was admitted, end the workers."""
        timeout = parse_time_limit("timeout", timeout)
        bound = self._bound
        if self.phase is Phase.CLOSED:  # perhaps with its loop
            return
        if bound is None or not self.is_ours():
            self._advance(Phase.CLOSED)
            return
        if running_loop() is not bound.loop:
            raise WrongLoopError(f"{self.describe()} belongs to another event loop, and only there can it be closed.")
        self._advance(Phase.CLOSING)
        deadline = None if timeout is None else bound.loop.time() + timeout
        try:
            while not self.admitted.is_empty() and self.phase < Phase.CUT_OFF:
                if not await _until(self.admitted.quiet(bound.loop), deadline):
                    break
        finally:
            await outlast([asyncio.ensure_future(self._shut(deadline))])

    async def _shut(self, deadline: float | None = None) -> None:
        """End the workers, and whatever they still run. May be begun again, by several, whoever is cancelled.

        Workers that nothing is sure to stop are waited for until *deadline*.
        """
        bound = self._bound
        if bound is None or self.phase is Phase.CLOSED or not self.is_ours():
            return
        self.abort()
        self._advance(Phase.CUT_OFF)
        self.admitted.give_up()
        scheduler, workforce = bound.scheduler, bound.scheduler.workforce
        scheduler.retire_all()
        if self.backend.can_time:
            deadline = None
        elif deadline is not None and self.backend.can_kill:
            deadline = max(deadline, bound.loop.time()) + _PARTING_SECONDS
        while workforce.has_ending_slots() and await _until(workforce.changed(), deadline):
            pass
        workforce.abandon_all()
        await self.backend.aclose()
        bound.tie.release()
        self._forget()

    def _on_loop_gone(self) -> None:
        """The loop was closed without a word, or the interpreter exits."""
        self._advance(Phase.CLOSING)
        self.backend.kill_all()
        self._forget()

    def _forget(self) -> None:
        self._advance(Phase.CLOSED)
        on_closed, self.on_closed = self.on_closed, None
        if on_closed is not None:
            on_closed()


def _state_of(loop: asyncio.AbstractEventLoop) -> str:
    if loop.is_closed():
        return "which has closed"
    return "which runs in another thread" if loop.is_running() else "which does not run now"


async def _until(event: asyncio.Future[None], deadline: float | None) -> bool:
    """Wait for *event*; return whether it came before *deadline*, on its loop's clock."""
    left = None if deadline is None else max(deadline - event.get_loop().time(), 0)
    done, _ = await asyncio.wait([event], timeout=left)
    return bool(done)
