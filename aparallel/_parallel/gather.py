"""The functions that need no pool: they use one that belongs to the running loop."""

from __future__ import annotations

import asyncio
import functools
import weakref
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Unpack, overload

from aparallel._ground.call import Call
from aparallel._ground.loops import running_loop
from aparallel._ground.nesting import nesting_level
from aparallel._parallel.calls import runner_of
from aparallel._parallel.engine import Engine
from aparallel._parallel.lifetime import Phase
from aparallel._parallel.many_calls import single_source
from aparallel._parallel.options import Options, choose_kind, resolve
from aparallel._parallel.runner import Runner
from aparallel._parallel.settings import Settings
from aparallel._parallel.stream import ResultStream
from aparallel.abc import Backend

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Iterable

    from aparallel._parallel.config import GatherOptions
    from aparallel._parallel.stream import StreamFlow

T = TypeVar("T")
T1 = TypeVar("T1")
T2 = TypeVar("T2")
T3 = TypeVar("T3")
T4 = TypeVar("T4")
T5 = TypeVar("T5")

# What a loop knows its own pools by: a Backend that was given, or the kind of workers that was asked for, and how deep
# in workers that was.
_Key = Backend | tuple[str, int]

# The pools that belong to each loop. They are only touched on that loop, and a pool ends itself with its loop.
_pools: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[_Key, Engine]] = weakref.WeakKeyDictionary()


@overload
async def gather_parallel(
    calls: Iterable[Call[T]] | AsyncIterable[Call[T]],
    /,
    *,
    return_exceptions: Literal[False] = False,
    **options: Unpack[GatherOptions],
) -> list[T]: ...
@overload
async def gather_parallel(
    calls: Iterable[Call[T]] | AsyncIterable[Call[T]], /, *, return_exceptions: bool, **options: Unpack[GatherOptions]
) -> list[T | BaseException]: ...
@overload
async def gather_parallel(  # type: ignore[overload-overlap]
    call1: Call[T1], call2: Call[T2], /, *, return_exceptions: Literal[False] = False, **options: Unpack[GatherOptions]
) -> tuple[T1, T2]: ...
@overload
async def gather_parallel(  # type: ignore[overload-overlap]
    call1: Call[T1],
    call2: Call[T2],
    call3: Call[T3],
    /,
    *,
    return_exceptions: Literal[False] = False,
    **options: Unpack[GatherOptions],
) -> tuple[T1, T2, T3]: ...
@overload
async def gather_parallel(  # type: ignore[overload-overlap]
    call1: Call[T1],
    call2: Call[T2],
    call3: Call[T3],
    call4: Call[T4],
    /,
    *,
    return_exceptions: Literal[False] = False,
    **options: Unpack[GatherOptions],
) -> tuple[T1, T2, T3, T4]: ...
@overload
async def gather_parallel(  # type: ignore[overload-overlap]
    call1: Call[T1],
    call2: Call[T2],
    call3: Call[T3],
    call4: Call[T4],
    call5: Call[T5],
    /,
    *,
    return_exceptions: Literal[False] = False,
    **options: Unpack[GatherOptions],
) -> tuple[T1, T2, T3, T4, T5]: ...
@overload
async def gather_parallel(  # type: ignore[overload-overlap]
    *calls: Call[T], return_exceptions: Literal[False] = False, **options: Unpack[GatherOptions]
) -> list[T]: ...
@overload
async def gather_parallel(
    call1: Call[T1], call2: Call[T2], /, *, return_exceptions: bool, **options: Unpack[GatherOptions]
) -> tuple[T1 | BaseException, T2 | BaseException]: ...
@overload
async def gather_parallel(
    call1: Call[T1], call2: Call[T2], call3: Call[T3], /, *, return_exceptions: bool, **options: Unpack[GatherOptions]
) -> tuple[T1 | BaseException, T2 | BaseException, T3 | BaseException]: ...
@overload
async def gather_parallel(
    call1: Call[T1],
    call2: Call[T2],
    call3: Call[T3],
    call4: Call[T4],
    /,
    *,
    return_exceptions: bool,
    **options: Unpack[GatherOptions],
) -> tuple[T1 | BaseException, T2 | BaseException, T3 | BaseException, T4 | BaseException]: ...
@overload
async def gather_parallel(
    call1: Call[T1],
    call2: Call[T2],
    call3: Call[T3],
    call4: Call[T4],
    call5: Call[T5],
    /,
    *,
    return_exceptions: bool,
    **options: Unpack[GatherOptions],
) -> tuple[T1 | BaseException, T2 | BaseException, T3 | BaseException, T4 | BaseException, T5 | BaseException]: ...
@overload
async def gather_parallel(
    *calls: Call[T], return_exceptions: bool, **options: Unpack[GatherOptions]
) -> list[T | BaseException]: ...
async def gather_parallel(*calls: Any, return_exceptions: bool = False, **options: Any) -> Any:
    """Run calls on workers and return their results, in the order of the calls.

    ::

        results = await gather_parallel(delayed(f)(x) for x in xs)
        results = await gather_parallel((delayed(f)(x) for x in xs), n_jobs=4)
        a, b = await gather_parallel(delayed(f)(1), delayed(g)("x"))

    *calls* is one iterable or async iterable, or calls one by one. Calls are drawn only as workers free
    up, so an iterable may be longer than memory; it is iterated on the event loop.

    Options:
        n_jobs: workers at most; -1 (the default) for all cores, -2 for all but one.
        backend: ``"process"`` (the default), ``"thread"``, ``"inline"``, or joblib's names for them.
        prefer, require: ``"threads"``/``"processes"``, a hint; ``"sharedmem"``, a demand for threads.
        pool: a :class:`Pool` to use, or what its ``limit`` returned; then ``n_jobs`` caps this gather.
        batch_size: calls per message; ``"auto"`` goes by measured time.
        pre_dispatch: calls drawn and unfinished at most; ``"auto"``: what the workers finish in 50 ms.
        timeout: seconds that each call may run; waiting does not count.
        retries: how often a call is run again after its worker died.
        on_cancel: ``"kill"``, ``"wait"`` or ``"abandon"``: what cancelling does to running calls.
        return_exceptions: put failures into the list instead of raising the first.
        verbose, progress: lines like joblib's on stderr; a bar, or a function of (done, total).
        inner_max_num_threads: BLAS and OpenMP threads in each worker process.
        max_nbytes: buffers of more bytes (``"1M"`` by default; None for none) go to worker processes, and come back,
            through shared memory. Results are writable and live as long as they are referred to.
        mmap_mode: how workers map such arguments: ``"r"`` (the default), ``"c"`` or ``"r+"``.
        temp_folder: where a file without a name takes the place of memory that is short.

    A call sees its arguments as they were when it was drawn; the calls of a list are drawn at once.

    The workers belong to the running loop and are reused by later calls. Without ``pool=`` they grow and
    shrink with ``n_jobs``.

    Cancellation: calls that have not started never run. Process workers that run our calls are killed and
    replaced; threads are waited for.

    Raises:
        Exception: the first failure of any call, with the worker's traceback as its last cause; the
            other calls are cancelled.
        BrokenWorkerError: a worker died; its exit code or signal is in the message.
        CallTimeoutError: a call ran longer than ``timeout``.
        ClosedPoolError, PoolSaturatedError: ``pool`` is closed, or too many calls wait for it already.
        RemoteCallError: a call failed with what cannot be raised here.
        SharedMemoryError: large arguments or results find no room.
        TypeError, ValueError: a bad option, or something that is not a call.
        UnpicklableCallError, UnpicklableResultError: a call or its result cannot travel.
        WrongLoopError: no asyncio loop is running, or it is not that of ``pool``.
    """
    source, resolved = single_source(calls), resolve(options)
    runner, workers = _runner_for(resolved)
    return await runner.gather(source, resolved, return_exceptions, workers)


@overload
def stream_parallel(
    calls: Iterable[Call[T]] | AsyncIterable[Call[T]],
    *,
    ordered: bool = True,
    return_exceptions: Literal[False] = ...,
    **options: Unpack[GatherOptions],
) -> ResultStream[T]: ...
@overload
def stream_parallel(
    calls: Iterable[Call[T]] | AsyncIterable[Call[T]],
    *,
    ordered: bool = True,
    return_exceptions: bool,
    **options: Unpack[GatherOptions],
) -> ResultStream[T | BaseException]: ...
def stream_parallel(
    calls: Any, *, ordered: bool = True, return_exceptions: bool = False, **options: Any
) -> ResultStream[Any]:
    """Run calls on workers and give their results while others still run.

    ::

        async with stream_parallel((delayed(f)(x) for x in xs), ordered=False) as results:
            async for result in results: ...

    Results come in the order of the calls, or, with ``ordered=False``, as they finish; ``results.index`` is
    the index of the one given last, and ``results.indexed()`` iterates over both. Calls are drawn
    ahead only as far as the consumer keeps pace: an unread stream stops drawing.

    Takes the options of :func:`gather_parallel`. Leaving the block early cancels what is left, as
    cancellation does there. A failure is raised as soon as it arrives, in any order.

    Raises:
        TypeError, ValueError: a bad option. What :func:`gather_parallel` raises otherwise, entering the block or the
            iteration raises.
    """
    source, resolved = single_source((calls,)), resolve(options)

    def begin() -> StreamFlow:
        runner, workers = _runner_for(resolved)
        return runner.begin_stream(source, resolved, ordered, return_exceptions, workers)

    return ResultStream(resolved, begin)


def _forget(loop: weakref.ref[asyncio.AbstractEventLoop], key: _Key) -> None:
    """Drop a pool that has ended: it refers to its loop, and would keep it alive."""
    living = loop()
    if living is not None and (pools := _pools.get(living)) is not None:
        pools.pop(key, None)


def _runner_for(options: Options) -> tuple[Runner, int | None]:
    """Return what runs this gather and, if its pool is the loop's own, how many workers it asks that one for."""
    loop = running_loop()
    if options.pool is not None:
        return runner_of(options.pool), None
    asked: Any = options.backend if isinstance(options.backend, Backend) else choose_kind(options)
    workers = options.workers()
    key: _Key = asked if isinstance(asked, Backend) else (asked, nesting_level())
    pools = _pools.setdefault(loop, {})
    engine = pools.get(key)
    if engine is None or engine.phase > Phase.OPEN:
        engine = pools[key] = Engine(Settings(n_jobs=workers, backend=asked))
        engine.on_closed = functools.partial(_forget, weakref.ref(loop), key)
    engine.adjust(workers, options.inner_max_num_threads)
    return Runner(engine, engine.single_queue), workers
