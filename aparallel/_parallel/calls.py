"""How calls are given to a pool, one by one and many at a time: what a Pool and what stands for one have in common."""

from __future__ import annotations

import asyncio
import contextvars
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal, TypeVar, TypeVarTuple, Unpack, cast, overload

from aparallel._backends.process import ProcessBackend
from aparallel._ground.call import Call, not_a_function
from aparallel._ground.nesting import call_context
from aparallel._ground.shield import outlast
from aparallel._parallel.flow import Flow, GatherFlow, Source, prepare, single_source
from aparallel._parallel.options import Options, PoolOptions, Unset, parse_patience, resolve
from aparallel._parallel.stream import ResultStream, StreamFlow

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Callable, Coroutine

    from aparallel._parallel.pool import Pool
    from aparallel._parallel.runs import RunQueue
    from aparallel.abc import Function, OnCancel

F = TypeVar("F", bound=Flow)
T = TypeVar("T")
Ts = TypeVarTuple("Ts")
T1 = TypeVar("T1")
T2 = TypeVar("T2")
T3 = TypeVar("T3")

# Calls in other processes see none of the caller's context but what travels with them.
_NO_CONTEXT = contextvars.Context()


class Calls(ABC):
    """Runs calls on the workers of a pool."""

    # What single calls wait in.
    _runs: RunQueue

    @property
    @abstractmethod
    def _pool(self) -> Pool:
        """The pool whose workers run the calls."""

    @property
    def backend_name(self) -> str:
        """The kind of workers: ``"process"``, ``"thread"``, ``"inline"``, or a Backend's own name."""
        return self._pool._backend.name

    @overload
    async def run(
        self,
        fn: Callable[[*Ts], Coroutine[Any, Any, T]],
        /,
        *args: *Ts,
        timeout: float | None = None,
        on_cancel: OnCancel | None = None,
        queue_timeout: float | Literal[Unset.UNSET] | None = Unset.UNSET,
    ) -> T: ...
    @overload
    async def run(
        self,
        fn: Callable[[*Ts], T],
        /,
        *args: *Ts,
        timeout: float | None = None,
        on_cancel: OnCancel | None = None,
        queue_timeout: float | Literal[Unset.UNSET] | None = Unset.UNSET,
    ) -> T: ...
    async def run(
        self,
        fn: Callable[..., Any],
        /,
        *args: object,
        timeout: float | None = None,
        on_cancel: OnCancel | None = None,
        queue_timeout: float | Literal[Unset.UNSET] | None = Unset.UNSET,
    ) -> Any:
        """Run one call on a worker and return its result.

        *fn* is a function for *args*, or a ``Call`` (``delayed(fn)(1, key=2)``). Calls made at the same
        moment share messages to the workers; each keeps its own outcome.

        *timeout* is in seconds of execution: waiting for a worker does not count, nor does what a worker imports to
        have the function. *queue_timeout* is how long the call may wait until a worker starts it, in seconds from
        when its arguments are pickled; the pool's own by default, None for ever. Then it is withdrawn: a call that
        raises PoolSaturatedError has not run and never will. One that was sent to a worker is taken back first,
        which takes a few milliseconds; if the worker starts it meanwhile, it runs. 0: only if a worker, or the room
        to start one, is free for it right now.

        Cancellation: a queued call never runs; a running one is treated as *on_cancel* says, the pool's own by
        default.

        Raises:
            Exception: what the call raised, with the worker's traceback as its last cause.
            BrokenWorkerError: its worker died.
            CallTimeoutError: it ran longer than *timeout*.
            PoolSaturatedError: ``max_queued`` calls are waiting already, or it waited longer than *queue_timeout*.
            ClosedPoolError, WrongLoopError: this pool cannot be used, or not here.
            UnpicklableCallError, UnpicklableResultError: it cannot travel.
        """
        pool = self._pool
        scheduler = pool._use()
        if type(fn) is not Call:
            if not callable(fn):
                raise not_a_function(fn, "run(f, x), or run(delayed(f)(x))")
            fn = Call(fn, *args)
        elif args:
            raise TypeError("run() got a Call and further arguments. Give them to the call: delayed(fn)(...).")
        policy = pool._policy.usual
        if on_cancel is not None or timeout is not None:
            policy = pool._policy.of_call(on_cancel, timeout)
        patience = (
            pool._queue_timeout if queue_timeout is Unset.UNSET else parse_patience("queue_timeout", queue_timeout)
        )
        runs = self._runs
        if pool._max_queued is not None or patience == 0 or runs.quota is not None:
            pool._check_room(runs, patience)
        context = _NO_CONTEXT if isinstance(pool._backend, ProcessBackend) else call_context()
        future: asyncio.Future[Any] = scheduler.loop.create_future()
        place = pool._waiting_runs[future] = None
        expiry: asyncio.Handle | None = None
        try:
            encoded = pool._encoder.encode(fn) or await self._encode_large(fn)
            if not future.done():  # the pool may have been closed meanwhile
                scheduler.admit(runs)
                place = runs.enter(*encoded, future, context, timeout, policy)
                pool._waiting_runs[future] = place
                scheduler.dispatch_soon()
                if patience is not None:
                    expiry = scheduler.withdraw_after(patience, *place)
            del encoded  # its memory is the scheduler's from here on
            if not pool._is_inline:
                try:
                    return await future
                finally:
                    if pool._backend.is_unsettled and not future.cancelled():
                        await pool._backend.settle()
            with pool._place_for_nested(context, runs.quota):
                return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                future.exception()  # it came in the same moment, and nobody else will look at it
            if place is not None:
                await outlast(scheduler.cancel_run(*place))
            raise
        finally:
            if expiry is not None:
                expiry.cancel()
            del pool._waiting_runs[future]
            del future  # an error that it holds refers to this frame
            if pool._closing:
                pool._tell_if_quiet()

    async def _encode_large(self, call: Call[Any]) -> tuple[Function, Any]:
        """Encode a call off the loop. Meanwhile it counts as waiting: many at a time would fill the memory."""
        runs = self._runs
        runs.add_to_coming(1)
        try:
            function, payload, _ = await self._pool._encoder.encode_large(call, None)
        finally:
            runs.add_to_coming(-1)
        return function, payload

    @overload
    async def gather(
        self,
        calls: Iterable[Call[T]] | AsyncIterable[Call[T]],
        /,
        *,
        return_exceptions: Literal[False] = False,
        **options: Unpack[PoolOptions],
    ) -> list[T]: ...
    @overload
    async def gather(
        self,
        calls: Iterable[Call[T]] | AsyncIterable[Call[T]],
        /,
        *,
        return_exceptions: bool,
        **options: Unpack[PoolOptions],
    ) -> list[T | BaseException]: ...
    @overload
    async def gather(
        self, call: Call[T], /, *, return_exceptions: Literal[False] = False, **options: Unpack[PoolOptions]
    ) -> list[T]: ...
    @overload
    async def gather(  # type: ignore[overload-overlap]
        self,
        call1: Call[T1],
        call2: Call[T2],
        /,
        *,
        return_exceptions: Literal[False] = False,
        **options: Unpack[PoolOptions],
    ) -> tuple[T1, T2]: ...
    @overload
    async def gather(  # type: ignore[overload-overlap]
        self,
        call1: Call[T1],
        call2: Call[T2],
        call3: Call[T3],
        /,
        *,
        return_exceptions: Literal[False] = False,
        **options: Unpack[PoolOptions],
    ) -> tuple[T1, T2, T3]: ...
    @overload
    async def gather(  # type: ignore[overload-overlap]
        self, *calls: Call[T], return_exceptions: Literal[False] = False, **options: Unpack[PoolOptions]
    ) -> list[T]: ...
    @overload
    async def gather(
        self, call: Call[T], /, *, return_exceptions: bool, **options: Unpack[PoolOptions]
    ) -> list[T | BaseException]: ...
    @overload
    async def gather(
        self, call1: Call[T1], call2: Call[T2], /, *, return_exceptions: bool, **options: Unpack[PoolOptions]
    ) -> tuple[T1 | BaseException, T2 | BaseException]: ...
    @overload
    async def gather(
        self,
        call1: Call[T1],
        call2: Call[T2],
        call3: Call[T3],
        /,
        *,
        return_exceptions: bool,
        **options: Unpack[PoolOptions],
    ) -> tuple[T1 | BaseException, T2 | BaseException, T3 | BaseException]: ...
    @overload
    async def gather(
        self, *calls: Call[T], return_exceptions: bool, **options: Unpack[PoolOptions]
    ) -> list[T | BaseException]: ...
    async def gather(self, *calls: Any, return_exceptions: bool = False, **options: Any) -> Any:
        """Run calls on this pool and return their results in order: see :func:`aparallel.gather_parallel`.

        ``n_jobs`` caps the workers that this gather uses at a time.
        """
        return await self._gather(single_source(calls), self._resolve(options), return_exceptions)

    @overload
    def stream(
        self,
        calls: Iterable[Call[T]] | AsyncIterable[Call[T]],
        *,
        ordered: bool = True,
        return_exceptions: Literal[False] = ...,
        **options: Unpack[PoolOptions],
    ) -> ResultStream[T]: ...
    @overload
    def stream(
        self,
        calls: Iterable[Call[T]] | AsyncIterable[Call[T]],
        *,
        ordered: bool = True,
        return_exceptions: bool,
        **options: Unpack[PoolOptions],
    ) -> ResultStream[T | BaseException]: ...
    def stream(
        self, calls: Any, *, ordered: bool = True, return_exceptions: bool = False, **options: Any
    ) -> ResultStream[Any]:
        """Run calls on this pool and give their results as they come: see :func:`aparallel.stream_parallel`."""
        source, resolved = single_source((calls,)), self._resolve(options)
        return ResultStream(resolved, lambda: self._begin_stream(source, resolved, ordered, return_exceptions))

    @overload
    async def map(
        self, fn: Callable[[T1], Coroutine[Any, Any, T]], first: Iterable[T1], /, **options: Unpack[PoolOptions]
    ) -> list[T]: ...
    @overload
    async def map(self, fn: Callable[[T1], T], first: Iterable[T1], /, **options: Unpack[PoolOptions]) -> list[T]: ...
    @overload
    async def map(
        self,
        fn: Callable[[T1, T2], Coroutine[Any, Any, T]],
        first: Iterable[T1],
        second: Iterable[T2],
        /,
        **options: Unpack[PoolOptions],
    ) -> list[T]: ...
    @overload
    async def map(
        self, fn: Callable[[T1, T2], T], first: Iterable[T1], second: Iterable[T2], /, **options: Unpack[PoolOptions]
    ) -> list[T]: ...
    @overload
    async def map(
        self,
        fn: Callable[..., Coroutine[Any, Any, T]],
        first: Iterable[Any],
        second: Iterable[Any],
        third: Iterable[Any],
        /,
        *more: Iterable[Any],
        **options: Unpack[PoolOptions],
    ) -> list[T]: ...
    @overload
    async def map(
        self,
        fn: Callable[..., T],
        first: Iterable[Any],
        second: Iterable[Any],
        third: Iterable[Any],
        /,
        *more: Iterable[Any],
        **options: Unpack[PoolOptions],
    ) -> list[T]: ...
    async def map(self, fn: Callable[..., Any], /, *iterables: Iterable[Any], **options: Any) -> list[Any]:
        """Call *fn* with the items of *iterables*, as ``map`` does, and return the results in order."""
        if not callable(fn):
            raise not_a_function(fn, "map(f, xs)")
        if not iterables:
            raise TypeError("map() needs at least one iterable of arguments.")
        for position, iterable in enumerate(iterables, 1):
            if not isinstance(iterable, Iterable):
                raise TypeError(
                    f"Argument {position} of map() is a {type(iterable).__name__}, and not an iterable. "
                    f"For an async one, write gather(delayed(f)(x) async for x in xs)."
                )
        calls = (Call(fn, *args) for args in zip(*iterables, strict=False))
        return cast("list[Any]", await self._gather(calls, self._resolve(options), False))

    def _resolve(self, options: dict[str, Any]) -> Options:
        if options.get("pool") not in (None, self):
            raise ValueError("pool= names another pool than the one whose method this is.")
        resolved = resolve({**options, "pool": self})
        if options.get("backend") is not None:
            raise ValueError("A pool has its backend already; backend= cannot change it.")
        return resolved

    async def _gather(
        self, source: Source, options: Options, return_exceptions: bool, workers: int | None = None
    ) -> Any:
        """Run a whole gather; *workers*, if given, is what the pool that belongs to the loop is to have."""
        await prepare(options)
        flow = self._begin(GatherFlow, source, options, return_exceptions, "gather_parallel", workers)
        try:
            with self._pool._place_for_nested(flow.context, flow.quota):
                if hasattr(source, "__aiter__"):
                    flow.draw_in_background()
                else:
                    await flow.draw()
                await flow.finished
        finally:
            try:
                await flow.end()
            finally:
                self._pool._end_flow(flow)
        if self._pool._backend.is_unsettled:
            await self._pool._backend.settle()
        if flow.error is not None:
            try:
                raise flow.error
            finally:
                del flow  # the error's traceback refers to this frame
        return flow.results

    def _begin_stream(
        self, source: Source, options: Options, ordered: bool, return_exceptions: bool, workers: int | None = None
    ) -> tuple[StreamFlow, Callable[[], None]]:
        flow = self._begin(StreamFlow, source, options, return_exceptions, "stream_parallel", workers, ordered=ordered)
        return flow, lambda: self._pool._end_flow(flow)

    def _begin(
        self,
        kind: type[F],
        source: Source,
        options: Options,
        return_exceptions: bool,
        name: str,
        workers: int | None,
        **more: Any,
    ) -> F:
        pool = self._pool
        scheduler = pool._use()
        policy = pool._policy.of_call(options.on_cancel, options.timeout)
        if pool._max_queued is not None or self._runs.quota is not None:
            pool._check_room(self._runs, None)
        if workers is None:
            workers = pool._n_jobs if options.n_jobs is None else min(options.workers(), pool._n_jobs)
        sharing = options.sharing(pool._sharing)
        flow = kind(
            scheduler,
            pool._backend.encoder(sharing, at_once=isinstance(source, list | tuple)),
            source,
            options,
            workers,
            sharing=sharing,
            on_cancel=policy,
            return_exceptions=return_exceptions,
            name=name,
            quota=self._runs.quota,
            **more,
        )
        pool._flows[flow] = workers
        return flow
