"""A pool as its users see it, whole and as the calls of one key may use it."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, Self, TypeVar

from aparallel._ground.sharing import MmapMode, Opening, check_mmap_mode
from aparallel._parallel.calls import Calls
from aparallel._parallel.engine import Engine
from aparallel._parallel.runner import Runner
from aparallel._parallel.settings import Settings
from aparallel._parallel.statistics import LimitStatistics

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Hashable, Sequence
    from contextvars import ContextVar
    from types import TracebackType

    from aparallel._parallel.queues import Quota
    from aparallel._parallel.statistics import PoolStatistics
    from aparallel._parallel.typed import BackendName
    from aparallel.abc import Backend, OnCancel

T = TypeVar("T")


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
    ``async with`` block normally waits for the calls admitted; leaving it by an exception cancels them. One that is
    dropped without having been closed finishes what it has begun, and keeps no idle workers.

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
        executable: str | os.PathLike[str] | None = None,
        nice: int | None = None,
        max_nbytes: int | str | None = "1M",
        mmap_mode: MmapMode = "r",
        temp_folder: str | os.PathLike[str] | None = None,
        logs: bool = True,
    ) -> None:
        self._engine = Engine(
            Settings(
                n_jobs=n_jobs,
                backend=backend,
                initializer=initializer,
                initargs=initargs,
                idle_timeout=idle_timeout,
                max_calls_per_worker=max_calls_per_worker,
                max_queued=max_queued,
                queue_timeout=queue_timeout,
                inner_max_num_threads=inner_max_num_threads,
                on_cancel=on_cancel,
                context_vars=context_vars,
                executable=executable,
                nice=nice,
                max_nbytes=max_nbytes,
                mmap_mode=mmap_mode,
                temp_folder=temp_folder,
                logs=logs,
            )
        )
        super().__init__(Runner(self._engine, self._engine.single_queue))
        weakref.finalize(self, self._engine.let_go).atexit = False

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
        quota, queue = self._engine.limit(key, n, max_queued)
        return LimitedPool(self, Runner(self._engine, queue), quota)

    def share(self, value: T, *, mode: MmapMode = "r") -> Opening[T]:
        """Put *value* into memory that all workers map, for any number of calls.

        ::

            async with pool.share(table) as shared:
                sums = await pool.gather(delayed(column_sum)(shared, i) for i in range(columns))

        Awaited, it gives a :class:`Shared`, to be closed. Calls get the value where they are passed that object, or
        *value* itself, which counts as unchanged until then: changes to it are not seen. ``mode="r+"`` takes
        an array; what workers write to it, and what is written to the ``array`` of the Shared object, all see.
        With ``mode="c"`` each call gets a private copy of what it writes to.

        Thread and inline workers use *value* itself.

        Cancellation: nothing stays shared.

        Raises:
            TypeError: ``mode="r+"``, and *value* is no array.
            ValueError: *mode* is none of ``"r"``, ``"c"`` and ``"r+"``.
            SharedMemoryError: there is no room for it.
            ClosedPoolError, WrongLoopError: this pool cannot be used, or not here.
        """
        check_mmap_mode(mode, "mode")
        return Opening(lambda: self._engine.share(value, mode))

    async def warm_up(self) -> None:
        """Start all ``n_jobs`` workers and wait until they are ready and their initializers are done.

        What pickling by value takes (lambdas, closures, functions of ``__main__``) is imported meanwhile, off the loop.

        Cancellation: those that were started go on, and are there for the pool's calls.

        Raises:
            InitializerError: the initializer failed.
            BrokenWorkerError: workers die at their start.
            OSError, RuntimeError, UnsupportedPlatformError: none can be started, for want of descriptors or threads, or
                by that ``executable``.
            ClosedPoolError, WrongLoopError: this pool cannot be used, or not here.
        """
        await self._engine.warm_up()

    def statistics(self) -> PoolStatistics:
        """Return what the pool is doing now."""
        return self._engine.statistics()

    @property
    def n_jobs(self) -> int:
        """The most workers that it may have."""
        return self._engine.n_jobs

    def __repr__(self) -> str:
        return self._engine.describe()

    async def __aenter__(self) -> Self:
        self._engine.use()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None and self._engine.is_ours():
            self._engine.abort()
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
        await self._engine.aclose(timeout)


class LimitedPool(Calls):
    """A pool, on no more than so many of its workers at a time: what :meth:`Pool.limit` returns.

    It runs calls as its pool does, and can be given to ``gather_parallel`` and ``stream_parallel`` as ``pool=``. All
    views of the same key of a pool count together, so each request may ask for one of its own. The workers, and
    their end, are the pool's.
    """

    def __init__(self, pool: Pool, runner: Runner, quota: Quota) -> None:
        super().__init__(runner)
        self._pool = pool
        self._quota = quota

    @property
    def pool(self) -> Pool:
        """The pool whose workers it uses."""
        return self._pool

    @property
    def n(self) -> int:
        """The most workers that calls of this key occupy at a time, as the latest ``limit`` of the key said."""
        return self._quota.limit

    def statistics(self) -> LimitStatistics:
        """Return what the calls of this key are doing now."""
        quota = self._quota
        return LimitStatistics(quota.key, quota.limit, quota.max_queued, len(quota.serving), quota.count, quota.running)

    def __repr__(self) -> str:
        now = self.statistics()
        return f"<LimitedPool {self._quota.name} n={now.n}: {now.busy} busy, {now.queued} queued of {self.pool!r}>"
