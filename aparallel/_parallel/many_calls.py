"""How calls are given to a pool many at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Unpack, cast, overload

from aparallel._ground.call import Call, MappedCalls, close_coroutines, is_function, not_a_function, wrong_item
from aparallel._parallel.options import Options, resolve
from aparallel._parallel.stream import ResultStream

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Callable, Coroutine

    from aparallel._parallel.flow import Source
    from aparallel._parallel.runner import Runner
    from aparallel._parallel.typed import PoolOptions

T = TypeVar("T")
T1 = TypeVar("T1")
T2 = TypeVar("T2")
T3 = TypeVar("T3")
T4 = TypeVar("T4")
T5 = TypeVar("T5")


class ManyCalls:
    """The half of :class:`~aparallel._parallel.calls.Calls` that takes many: gathers and streams."""

    _runner: Runner  # Calls sets it

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
        self,
        call1: Call[T1],
        call2: Call[T2],
        call3: Call[T3],
        call4: Call[T4],
        /,
        *,
        return_exceptions: Literal[False] = False,
        **options: Unpack[PoolOptions],
    ) -> tuple[T1, T2, T3, T4]: ...
    @overload
    async def gather(  # type: ignore[overload-overlap]
        self,
        call1: Call[T1],
        call2: Call[T2],
        call3: Call[T3],
        call4: Call[T4],
        call5: Call[T5],
        /,
        *,
        return_exceptions: Literal[False] = False,
        **options: Unpack[PoolOptions],
    ) -> tuple[T1, T2, T3, T4, T5]: ...
    @overload
    async def gather(  # type: ignore[overload-overlap]
        self, *calls: Call[T], return_exceptions: Literal[False] = False, **options: Unpack[PoolOptions]
    ) -> list[T]: ...
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
        self,
        call1: Call[T1],
        call2: Call[T2],
        call3: Call[T3],
        call4: Call[T4],
        /,
        *,
        return_exceptions: bool,
        **options: Unpack[PoolOptions],
    ) -> tuple[T1 | BaseException, T2 | BaseException, T3 | BaseException, T4 | BaseException]: ...
    @overload
    async def gather(
        self,
        call1: Call[T1],
        call2: Call[T2],
        call3: Call[T3],
        call4: Call[T4],
        call5: Call[T5],
        /,
        *,
        return_exceptions: bool,
        **options: Unpack[PoolOptions],
    ) -> tuple[T1 | BaseException, T2 | BaseException, T3 | BaseException, T4 | BaseException, T5 | BaseException]: ...
    @overload
    async def gather(
        self, *calls: Call[T], return_exceptions: bool, **options: Unpack[PoolOptions]
    ) -> list[T | BaseException]: ...
    async def gather(self, *calls: Any, return_exceptions: bool = False, **options: Any) -> Any:
        """Run calls on this pool and return their results in order: see :func:`aparallel.gather_parallel`.

        ``n_jobs`` caps the workers that this gather uses at a time.

        Cancellation: calls that have not started never run, and those that run are treated as ``on_cancel`` says, the
        pool's own by default. The pool stays usable.

        Raises:
            ClosedPoolError, WrongLoopError: this pool cannot be used, or not here.
            PoolSaturatedError: ``max_queued`` calls of ``run`` are waiting already.
            Exception: what :func:`aparallel.gather_parallel` raises.
        """
        return await self._runner.gather(single_source(calls), self._resolve(options), return_exceptions)

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
        """Run calls on this pool and give their results as they come: see :func:`aparallel.stream_parallel`.

        To enter it raises what :meth:`gather` raises before a call is drawn.
        """
        source, resolved = single_source((calls,)), self._resolve(options)
        return ResultStream(resolved, lambda: self._runner.begin_stream(source, resolved, ordered, return_exceptions))

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
    @overload
    async def map(
        self,
        fn: Callable[..., Coroutine[Any, Any, T]],
        /,
        *iterables: Iterable[Any],
        return_exceptions: bool,
        **options: Unpack[PoolOptions],
    ) -> list[T | BaseException]: ...
    @overload
    async def map(
        self,
        fn: Callable[..., T],
        /,
        *iterables: Iterable[Any],
        return_exceptions: bool,
        **options: Unpack[PoolOptions],
    ) -> list[T | BaseException]: ...
    async def map(
        self,
        fn: Callable[..., Any],
        /,
        *iterables: Iterable[Any],
        return_exceptions: bool = False,
        **options: Any,
    ) -> list[Any]:
        """Call *fn* with the items of *iterables*, as ``map`` does, and return the results in order.

        It ends with the shortest. Items are drawn on the event loop, and only as workers free up. Options, errors and
        what cancellation does are those of :meth:`gather`.

        Raises:
            TypeError: *fn* is not callable, or what should be an iterable is none; an async one is not, either.
        """
        if not is_function(fn):
            raise not_a_function(fn, "map(f, xs)")
        if not iterables:
            raise TypeError("map() needs at least one iterable of arguments.")
        for position, iterable in enumerate(iterables, 1):
            if not _is_iterable(iterable):
                error = TypeError(
                    f"Argument {position} of map() is of type {type(iterable).__name__}, which is no iterable. "
                    f"For an async one, write gather(delayed(f)(x) async for x in xs)."
                )
                close_coroutines(iterables)
                raise error
        calls = MappedCalls(fn, iterables)
        return cast("list[Any]", await self._runner.gather(calls, self._resolve(options), return_exceptions))

    def _resolve(self, options: dict[str, Any]) -> Options:
        if options.get("pool") not in (None, self):
            raise ValueError("pool= names another pool than the one whose method this is.")
        return resolve({**options, "pool": self})


def _is_iterable(thing: object) -> bool:
    """Whether *thing* gives items, if only by number, as data sets do.

    A future does not, though it has an ``__iter__`` from before there was ``await``.
    """
    if isinstance(thing, asyncio.Future):
        return False
    return isinstance(thing, Iterable) or (hasattr(type(thing), "__getitem__") and hasattr(type(thing), "__len__"))


def single_source(calls: tuple[Any, ...]) -> Source:
    """What ``gather_parallel(*calls)`` was given: an iterable, an async iterable, or calls one by one.

    Raises:
        TypeError: neither.
    """
    if len(calls) == 1 and type(calls[0]) is not Call:
        source = calls[0]
        if _is_iterable(source) or hasattr(source, "__aiter__"):
            return cast("Source", source)
        raise wrong_item(source, 0)
    return calls
