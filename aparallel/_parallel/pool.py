"""A pool: live workers, their limit and the queue before them, for one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import os
import sys
import weakref
from collections.abc import Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Self, TypeVar

from aparallel._backends.inline import InlineBackend
from aparallel._backends.process import ProcessBackend
from aparallel._ground.cpus import cpu_count
from aparallel._ground.sharing import MmapMode, Opening, Shared, check_mmap_mode
from aparallel._ground.shield import outlast
from aparallel._parallel.admission import queue_is_full
from aparallel._parallel.calls import Calls
from aparallel._parallel.lifetime import LoopTie, running_loop
from aparallel._parallel.limits import LimitedPool
from aparallel._parallel.options import check_count, parse_patience
from aparallel._parallel.policy import StopPolicy
from aparallel._parallel.queues import Tallies
from aparallel._parallel.quotas import Quota
from aparallel._parallel.runs import RunQueue
from aparallel._parallel.scheduler import Scheduler
from aparallel._parallel.settings import Settings, checked_initargs, checked_variables
from aparallel._parallel.workforce import PoolStatistics
from aparallel.errors import ClosedPoolError, WrongLoopError

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator
    from types import TracebackType

    from aparallel._parallel.flow import Flow
    from aparallel._parallel.options import BackendName
    from aparallel._parallel.runs import Runs
    from aparallel.abc import Backend, Encoder, OnCancel

T = TypeVar("T")

# What a cancelled coroutine has for its clean-up once the time of the pool is over.
_PARTING_SECONDS = 1.0

# The inline pools, and the keys of them, in whose calls this context runs.
_inline_pools: contextvars.ContextVar[tuple[Pool | Quota | None, ...]] = contextvars.ContextVar(
    "aparallel_inline_pools", default=()
)


class Pool(Calls):
    """Workers that are started once and reused, for any number of calls.

    Args:
        n_jobs: workers at most: -1 for all cores, -2 for all but one. They start as calls need them.
        backend: ``"process"``, ``"thread"`` or ``"inline"``, joblib's names for them, or a Backend.
        initializer: called with *initargs* in each worker before its first call; may be a coroutine function.
        idle_timeout: seconds after which a worker without calls goes; None to keep them.
        max_calls_per_worker: calls after which a worker is replaced; None for no limit.
        max_queued: calls of :meth:`run` that may wait for a worker, 0 or more; a further call, gather or stream raises
            PoolSaturatedError. None for no limit.
        queue_timeout: seconds that a call of :meth:`run` may wait until a worker starts it, unless it says otherwise;
            then it raises PoolSaturatedError, and never runs. None for ever.
        inner_max_num_threads: threads for BLAS and OpenMP in each worker process. By default
            ``cpu_count() // n_jobs``, at least 1, unless the environment says otherwise.
        on_cancel: what cancelling does to a running call: ``"kill"`` its worker (processes, the default),
            ``"wait"`` for it (threads, the default) or ``"abandon"`` it; calls may say otherwise.
        context_vars: context variables whose values travel with each call to a worker process.
            Threads see all of the caller's context.
        executable: the Python interpreter to run worker processes with.
        nice: how much lower the priority of worker processes is than this program's: 0 to 19, added to its own nice
            value as nice(1) does; by default 10. Under saturation the event loop then gets its turn first.
        max_nbytes: arrays and other buffers of more bytes travel to and from worker processes through shared memory,
            without being copied at the other end: a number, or text such as ``"10M"``; None for none of them.
        mmap_mode: how worker processes map such arguments: ``"r"`` read-only, ``"c"`` as a private copy on write,
            ``"r+"`` shared both ways (an ``np.memmap``, and what :meth:`share` made so). Gathers may say otherwise.
        logs: whether log records and warnings of worker processes are handled by this process's ``logging`` and
            ``warnings``, in a thread, before the outcome of their call is given. Threads and inline calls use
            these anyway.
        temp_folder: where a file without a name takes the place of memory that is short; None for the system's folder.

    A pool belongs to the event loop that it is first used on, and ends with it. Leaving its
    ``async with`` block normally waits for the calls admitted; leaving it by an exception cancels them.

    Inside a worker ``"process"`` means threads, and deeper the thread itself. What only processes can keep is let go
    there; a call with a timeout, or to be killed, is abandoned.

    Raises:
        TypeError, ValueError: a bad option, or one that such workers cannot keep.
        UnsupportedPlatformError: this system cannot start worker processes.
    """

    def __init__(
        self,
        n_jobs: int = -1,
        backend: BackendName | Backend = "process",
        *,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        idle_timeout: float | None = 300.0,
        max_calls_per_worker: int | None = None,
        max_queued: int | None = None,
        queue_timeout: float | None = None,
        inner_max_num_threads: int | None = None,
        on_cancel: OnCancel | None = None,
        context_vars: Sequence[ContextVar[Any]] = (),
        executable: str | None = None,
        nice: int | None = None,
        max_nbytes: int | str | None = "1M",
        mmap_mode: MmapMode = "r",
        temp_folder: str | os.PathLike[str] | None = None,
        logs: bool = True,
    ) -> None:
        settings = Settings(
            n_jobs=n_jobs,
            backend=backend,
            initializer=initializer,
            initargs=checked_initargs(initargs),
            idle_timeout=idle_timeout,
            max_calls_per_worker=max_calls_per_worker,
            max_queued=max_queued,
            queue_timeout=queue_timeout,
            inner_max_num_threads=inner_max_num_threads,
            on_cancel=on_cancel,
            context_vars=checked_variables(context_vars),
            executable=executable,
            nice=nice,
            max_nbytes=max_nbytes,
            mmap_mode=mmap_mode,
            temp_folder=temp_folder,
            logs=logs,
        )
        self._settings = settings
        self._sharing = settings.sharing()
        self._n_jobs = settings.workers()
        self._backend = settings.make_backend(self._n_jobs)
        self._policy = StopPolicy(self._backend, on_cancel, stands_in=settings.stands_in)
        self._max_queued = max_queued
        self._queue_timeout = parse_patience("queue_timeout", queue_timeout)
        self._is_inline = isinstance(self._backend, InlineBackend)
        # How many calls wait; the scheduler's queues keep it.
        self._waiting = Tallies()
        self._runs = RunQueue(self._n_jobs, self._sharing, self._waiting)
        # What the calls of each key have together, for as long as anyone refers to it.
        self._quotas: weakref.WeakValueDictionary[Hashable, Quota] = weakref.WeakValueDictionary()
        # Set by the first use: the loop, and what needs it.
        self._loop: asyncio.AbstractEventLoop | None = None
        self._scheduler: Scheduler
        self._encoder: Encoder
        self._tie: LoopTie
        # What was admitted and has not ended. A closing pool admits no more and waits for these.
        self._flows: dict[Flow, int] = {}
        # A run that is still being encoded has no place yet.
        self._waiting_runs: dict[asyncio.Future[Any], tuple[Runs, int] | None] = {}
        self._closing = False
        self._cut_off = False  # what was admitted has been ended: nobody waits for it any more
        self._closed = False
        # Told when the pool is no more, in whichever way: whoever keeps it must forget it.
        self.on_closed: Callable[[], object] | None = None
        self._quiet: asyncio.Future[None] | None = None

    @property
    def _pool(self) -> Pool:
        return self

    # What calls need of it

    @contextlib.contextmanager
    def _place_for_nested(self, context: contextvars.Context, quota: Quota | None) -> Iterator[None]:
        """Have one more worker while a call of this very pool, or key, waits here for other calls of it.

        Only a coroutine that runs inline can do so; the place that it holds must not be the one it waits for.
        """
        if not self._is_inline:
            yield
            return
        around = _inline_pools.get()
        context.run(_inline_pools.set, (*around, self, quota))
        if self not in around:
            yield
            return
        within = quota if quota is not None and quota in around else None
        if within is not None:
            within.nested += 1
        self._runs.limit += 1
        self._scheduler.limit += 1
        self._scheduler.dispatch()
        try:
            yield
        finally:
            if within is not None:
                within.nested -= 1
            self._runs.limit -= 1
            self._scheduler.resize(self._scheduler.limit - 1)

    def _end_flow(self, flow: Flow) -> None:
        self._flows.pop(flow, None)
        self._tell_if_quiet()

    def _check_room(self, runs: RunQueue, patience: float | None) -> None:
        """Refuse a call if as many wait as may, in the pool or of its key, or if it has no *patience* and must wait.

        A call that a free worker will take does not wait. What waits for its key's limit alone leaves workers free.
        """
        scheduler, quota = self._scheduler, runs.quota
        free = scheduler.free_places()
        if quota is not None:
            free = min(free, quota.free_places())
            waiting = runs.count + runs.coming
            if quota.max_queued is not None and waiting >= quota.max_queued + free:
                scheduler.refused += 1
                raise queue_is_full(waiting, quota.max_queued, quota, scheduler.seconds_left(quota))
        waiting = self._waiting.runs.calls + self._waiting.coming.calls
        if self._max_queued is not None and waiting >= self._max_queued + free:
            scheduler.refused += 1
            raise queue_is_full(waiting, self._max_queued, None, scheduler.seconds_left(None))
        if patience == 0 and not free:
            raise scheduler.impatient(quota, 0)

    def limit(self, key: Hashable, n: int, *, max_queued: int | None = None) -> LimitedPool:
        """Return this pool as the calls of *key* may use it: on at most *n* workers at a time.

        ::

            result = await pool.limit(tenant, 2).run(render, page)

        The calls of all views of equal keys count together, whether they come from ``run``, ``gather``, ``stream`` or
        ``map``: a view is cheap, and each request may ask for one. Workers are shared fairly between keys, gathers
        and streams without a key, and all other single calls together; the calls of a key take turns among
        themselves. A key may have a larger *n* than the pool has workers; an idle one keeps no worker.

        Args:
            key: who it is, such as a tenant; anything hashable. Kept only while a view or a call of it is.
            n: workers that may have calls of it at a time, 1 or more. The latest *n* of a key holds for all its views,
                at once; what already runs on more workers goes on.
            max_queued: calls of ``run`` of it that may wait for a worker, besides what the pool's own ``max_queued``
                says; more raise PoolSaturatedError. None for no limit. The latest holds, as for *n*.

        Raises:
            TypeError: *key* is not hashable.
            ValueError: *n* or *max_queued* is not such a number.
        """
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise ValueError(f"n={n!r} is not a whole number of workers, 1 or more.")
        check_count("max_queued", max_queued, 0)
        try:
            quota = self._quotas.get(key)
        except TypeError as error:
            raise TypeError(
                f"limit() needs a key that can be hashed, and {type(key).__name__} cannot: {error}"
            ) from error
        runs = None if quota is None else quota.runs
        if runs is None:
            runs = RunQueue(sys.maxsize, self._sharing, self._waiting)
            if quota is None:
                quota = self._quotas[key] = Quota(key, runs)
            else:
                quota.renew_runs(runs)
        assert quota is not None
        more, quota.limit, quota.max_queued = n > quota.limit, n, max_queued
        if more and quota.turns.entries:
            self._scheduler.dispatch_soon()
        return LimitedPool(self, quota, runs)

    def share(self, value: T, *, mode: MmapMode = "r") -> Opening[T]:
        """Put *value* into memory that all workers map, for any number of calls.

        ::

            async with pool.share(table) as shared:
                sums = await pool.gather(delayed(column_sum)(shared, i) for i in range(columns))

        Awaited, it gives a :class:`Shared`, to be closed. Calls get the value where they are passed that object, or
        *value* itself, which counts as unchanged until then: changes to it are not seen. ``mode="r+"`` takes
        an array; what workers write to it, and what is written to the ``array`` of the Shared object, all see.

        Thread and inline workers use *value* itself.

        Raises:
            TypeError: ``mode="r+"``, and *value* is no array.
            SharedMemoryError: there is no room for it.
            ClosedPoolError, WrongLoopError: this pool cannot be used, or not here.
        """
        check_mmap_mode(mode)
        return Opening(lambda: self._share(value, mode))

    async def _share(self, value: T, mode: MmapMode) -> Shared[T]:
        self._use()
        return await self._backend.share(value, mode, self._sharing)

    # The pool itself

    async def warm_up(self) -> None:
        """Start all ``n_jobs`` workers and wait until they are ready and their initializers are done.

        Raises:
            InitializerError: the initializer failed.
            BrokenWorkerError: workers die at their start.
        """
        scheduler = self._use()
        scheduler.start_error = None
        try:
            await self._start_all(scheduler)
        finally:
            if self._backend.is_unsettled:
                await self._backend.settle()

    async def _start_all(self, scheduler: Scheduler) -> None:
        while scheduler.start_error is None and not self._closing:
            if scheduler.start_missing():
                self._backend.start_spare(scheduler.loop)
                return
            if scheduler.start_error is None:
                await scheduler.changed()
        if scheduler.start_error is None:
            raise ClosedPoolError("The pool was closed while its workers were starting.")
        raise scheduler.start_error

    def statistics(self) -> PoolStatistics:
        """Return what the pool is doing now."""
        if self._loop is None:
            return PoolStatistics(self._n_jobs, 0, 0, 0, 0, 0, 0, 0, 0, 0)
        return self._scheduler.statistics()

    @property
    def n_jobs(self) -> int:
        """The most workers that it may have."""
        return self._n_jobs

    def __repr__(self) -> str:
        nice = self._settings.nice
        start = f"<Pool {self._backend.name} n_jobs={self._n_jobs}" + ("" if nice is None else f" nice={nice}")
        if self._closing:
            return f"{start}: {'closed' if self._closed else 'closing'}>"
        now = self.statistics()
        starting = f"{now.starting} starting, " if now.starting else ""
        return f"{start}: {starting}{now.idle} idle, {now.busy} busy, {now.queued} queued>"

    def _use(self) -> Scheduler:
        """Check that the pool can be used here and now, and bind it to the running loop if it is new."""
        loop = running_loop()
        if self._loop is loop and not self._closing:
            return self._scheduler
        if not self._is_ours():
            raise WrongLoopError("This process is a forked copy of the one whose pool this is. Make a pool of its own.")
        if self._closing and (self._loop is None or self._loop is loop):
            raise ClosedPoolError(f"This pool is closed: {self!r}. Make a new one, or keep it open while it is used.")
        if self._loop is not None:
            raise WrongLoopError(
                f"{self!r} belongs to another event loop, "
                + ("which has closed. " if self._loop.is_closed() else "which runs in another thread. ")
                + "A pool serves the loop that it was first used on: make one per loop."
            )
        self._loop = loop
        self._owner = os.getpid()
        self._scheduler = Scheduler(
            loop,
            self._backend,
            self._n_jobs,
            self._settings.idle_timeout,
            self._settings.max_calls_per_worker,
            self._waiting,
        )
        self._encoder = self._backend.encoder(self._sharing, single=True)
        self._tie = LoopTie(loop, self._shut, self._on_loop_gone)
        return self._scheduler

    def adjust(self, workers: int, inner_threads: int | None) -> None:
        """For the pool that belongs to a loop: grow or shrink to what the gathers under way ask for."""
        scheduler = self._use()
        wanted = max([workers, *self._flows.values()])
        inner = inner_threads or max(cpu_count() // wanted, 1)
        if wanted != self._n_jobs:
            self._n_jobs = self._runs.limit = wanted
            scheduler.resize(wanted)
        if isinstance(self._backend, ProcessBackend) and self._backend.limit_threads(inner, inner_threads is not None):
            scheduler.renew()

    async def __aenter__(self) -> Self:
        self._use()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None and self._is_ours() and not self._closed:
            self._abort()
        await self.aclose()

    async def aclose(self, timeout: float | None = None) -> None:
        """Take no more calls, let those admitted finish, end the workers. Idempotent; of several, the hastiest wins.

        *timeout*: what runs and what waits has so many seconds to finish, None for ever. Then it ends with
        ClosedPoolError and the workers are killed. Nothing can kill a thread, or a coroutine that ignores its
        cancellation for a second: what it runs is left behind to end by itself, and holds no one up.

        Cancellation: the calls end with ClosedPoolError, and the workers end all the same. Without a *timeout*, threads
        are waited for.

        Raises:
            ValueError: *timeout* is not a number of seconds, 0 or more.
            WrongLoopError: the pool belongs to another loop.
        """
        timeout = parse_patience("timeout", timeout)
        if self._closed:
            return
        if self._loop is None or not self._is_ours():
            self._closing = self._closed = True
            return
        if running_loop() is not self._loop:
            raise WrongLoopError(f"{self!r} belongs to another event loop, and only there can it be closed.")
        self._closing = True
        deadline = None if timeout is None else self._loop.time() + timeout
        try:
            while (self._flows or self._waiting_runs) and not self._cut_off:
                self._quiet = self._quiet or self._loop.create_future()
                if not await self._until(self._quiet, deadline):
                    break
        finally:
            await outlast([asyncio.ensure_future(self._shut(deadline))])

    async def _until(self, event: asyncio.Future[None], deadline: float | None) -> bool:
        """Wait for *event*; return whether it came before *deadline*."""
        assert self._loop is not None
        left = None if deadline is None else max(deadline - self._loop.time(), 0)
        done, _ = await asyncio.wait([event], timeout=left)
        return bool(done)

    def _is_ours(self) -> bool:
        """Whether this is the process that the pool was made in. In a forked copy its workers are another's."""
        return self._loop is None or self._owner == os.getpid()

    def _tell_if_quiet(self) -> None:
        if self._quiet is not None and (self._cut_off or not (self._flows or self._waiting_runs)):
            quiet, self._quiet = self._quiet, None
            quiet.set_result(None)

    def _abort(self) -> None:
        """End all that was admitted with ClosedPoolError."""
        self._closing = True
        error = ClosedPoolError("The pool was closed while this call was under way.")
        for flow in list(self._flows):
            if not flow.finished.done():
                self._scheduler.cancel(flow)
                flow.stop(error)
        for future, place in list(self._waiting_runs.items()):
            if not future.done():
                if place is not None:
                    self._scheduler.cancel_run(*place)
                future.set_exception(error)

    async def _shut(self, deadline: float | None = None) -> None:
        """End the workers, and whatever they still run. May be begun again, by several, whoever is cancelled.

        Workers that nothing is sure to stop are waited for until *deadline*.
        """
        if self._closed or not self._is_ours():
            return
        self._abort()
        self._cut_off = True
        self._tell_if_quiet()
        scheduler = self._scheduler
        scheduler.retire_all()
        if self._backend.can_time:
            deadline = None
        elif deadline is not None and self._backend.can_kill:
            deadline = max(deadline, scheduler.loop.time()) + _PARTING_SECONDS
        while scheduler.has_ending_slots() and await self._until(scheduler.changed(), deadline):
            pass
        scheduler.abandon_all()
        await self._backend.aclose()
        self._tie.release()
        self._forget()

    def _on_loop_gone(self) -> None:
        """The loop was closed without a word, or the interpreter exits."""
        self._closing = True
        self._backend.kill_all()
        self._forget()

    def _forget(self) -> None:
        self._closed = True
        on_closed, self.on_closed = self.on_closed, None
        if on_closed is not None:
            on_closed()
