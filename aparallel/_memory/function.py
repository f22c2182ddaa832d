"""A memoized function: a call becomes a key, the key a hit or a computation."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, TypeVar, overload

from aparallel._ground.awaiting import is_coroutine_function, mark_as_coroutine_function
from aparallel._ground.hop import in_thread
from aparallel._memory.computation import Computation
from aparallel._memory.digest import digest
from aparallel._memory.hashing import LOOP_BUDGET, TooLarge
from aparallel._memory.lookup import Lookup, State, given
from aparallel._memory.options import FunctionOptions
from aparallel._memory.pickled import reduce_function
from aparallel._memory.results import Explanation, FunctionStatistics, MemorizedResult, ShelvedValue
from aparallel._memory.storing import Storing

if TYPE_CHECKING:
    from aparallel._memory.shelf import Shelf

P = ParamSpec("P")
Q = ParamSpec("Q")
T = TypeVar("T")
S = TypeVar("S")


class MemorizedFunction(Generic[P, T]):
    """A function whose results a :class:`Memory` remembers. Await it as you would call the function.

    It may be used from any number of tasks, event loops, threads and processes, as a method, and in the workers of a
    pool; it pickles.

    Cancellation of what asks or changes the store and computes nothing: what a thread has begun to do, it does.
    """

    def __init__(self, shelf: Shelf, fn: Callable[P, Any], options: FunctionOptions) -> None:
        self._shelf = shelf
        if isinstance(fn, MemorizedFunction | BoundMemorizedFunction):
            fn = fn.__wrapped__
        _check_function(fn)
        functools.update_wrapper(self, fn)
        named = _named(fn)
        self.__wrapped__: Callable[P, Any] = fn
        self.__module__ = module = str(getattr(named, "__module__", None))
        self.__qualname__ = qualname = getattr(named, "__qualname__", None) or type(named).__qualname__
        self.__name__ = qualname.rpartition(".")[2]
        self.func = fn  # joblib's name
        mark_as_coroutine_function(self)
        name = qualname if module in ("__main__", "None", "builtins") else f"{module}.{qualname}"
        identifier = digest(f"{module}\0{qualname}".encode("utf-8", "surrogatepass")).hex()[:24]
        self._lookup = Lookup(shelf, fn, options, name, identifier)
        self._storing = Storing(self._lookup)
        self._computation = Computation(
            self._lookup, self._storing, fn, on_pool=RawFunction(self), is_async=is_coroutine_function(fn)
        )

    # Calling

    async def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Return the remembered result of this call, or compute and remember it.

        All who ask for it at the same time wait for one computation.

        Cancellation: this caller leaves, and the others go on. With the last one the computation ends: a coroutine
        function is cancelled, as is a pool's call; a thread runs on, and its result is stored.

        Raises:
            Exception: what the function raises. It is not remembered, unless ``cache_errors`` says so.
            UnstableValueError: no key can be made of an argument.
            UntrustedDirectoryError: others could have written to the memory's directory.
            RecursiveCallError: the computation awaits its own result.
        """
        own = self._lookup
        if own.store is None:
            return await self._computation.only_compute(args, kwargs)  # type: ignore[no-any-return]
        try:
            key = own.keys.make(args, kwargs, LOOP_BUDGET)
        except TooLarge:  # it is made in a thread, and what is raised there has nothing to do with this
            key = None
        look = None if key is None else own.look_at_once(key.digest)
        if look is not None:
            own.count_hit(look)
            return given(look)  # type: ignore[no-any-return]
        return await self._computation.answer(key, args, kwargs)  # type: ignore[no-any-return]

    # What else can be asked of a function

    async def refresh(self, /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Compute the result anew, whether it is stored or not, store it and return it.

        Cancellation and errors are those of a call.
        """
        if self._shelf.store is None:
            return await self._computation.only_compute(args, kwargs)  # type: ignore[no-any-return]
        call = await in_thread(functools.partial(self._lookup.call_of, args, kwargs, is_refresh=True))
        return await self._computation.compute_once(call)  # type: ignore[no-any-return]

    call = refresh  # joblib's name

    async def check_call_in_cache(self, /, *args: P.args, **kwargs: P.kwargs) -> bool:
        """Return whether this call would be a hit. Nothing is computed.

        Raises:
            UnstableValueError, UntrustedDirectoryError: as a call.
        """
        if self._shelf.store is None:
            return False
        _, look = await in_thread(self._lookup.find, None, args, kwargs)
        return look.state is State.HIT

    async def call_and_shelve(self, /, *args: P.args, **kwargs: P.kwargs) -> MemorizedResult[T]:
        """Make sure that the result is stored, and return a small stand-in for it.

        If it cannot be stored, the stand-in has the result itself.

        Raises:
            StoreError: the store cannot be read.
            Exception: what a call raises.
        """
        value = await self(*args, **kwargs)
        if self._shelf.store is None:
            return ShelvedValue(self._lookup.name, value)
        call = await in_thread(self._lookup.call_of, args, kwargs)
        if not await self._shelf.has(call.place):  # it could not be stored
            return ShelvedValue(self._lookup.name, value)
        return MemorizedResult(self._shelf, self._lookup.name, call.place, self._lookup.options.mmap_mode)

    async def forget(self, /, *args: P.args, **kwargs: P.kwargs) -> bool:
        """Remove the result of this one call, and return whether it was stored.

        If it is being computed, that result goes to those who asked for it and is not stored.

        Raises:
            StoreError: the store cannot be written.
        """
        if self._shelf.store is None:
            return False
        call = await in_thread(self._lookup.call_of, args, kwargs)
        return await self._shelf.forget(call.place)

    async def clear(self) -> int:
        """Remove all results of this function, of every version of its code. Return how many there were.

        What is being computed meanwhile goes to those who asked for it and is not stored.

        Raises:
            StoreError: the store cannot be written.
        """
        return await self._shelf.clear(self._lookup.identifier)

    async def explain(self, /, *args: P.args, **kwargs: P.kwargs) -> Explanation:
        """Say whether this call would be a hit, or why it would be a miss. Nothing is computed.

        Raises:
            UnstableValueError, UntrustedDirectoryError: as a call.
        """
        if self._shelf.store is None:
            return Explanation(hit=False, reason="not cached")
        return await in_thread(self._storing.explain, args, kwargs)

    def statistics(self) -> FunctionStatistics:
        """Return what happened in this process so far. It does not touch the disk."""
        return replace(self._lookup.statistics)

    # Being a function

    @overload
    def __get__(self, instance: None, owner: type, /) -> MemorizedFunction[P, T]: ...
    @overload
    def __get__(
        self: MemorizedFunction[Concatenate[S, Q], T], instance: S, owner: type | None = None, /
    ) -> BoundMemorizedFunction[Q, T]: ...
    def __get__(self, instance: Any, owner: Any = None, /) -> Any:
        return self if instance is None else BoundMemorizedFunction(self, instance)

    def __reduce__(self) -> Any:
        options = replace(self._lookup.options, pool=None)  # a pool belongs to its process
        return reduce_function(self, (self._shelf, self.__wrapped__, options))

    def __aparallel_key__(self) -> Any:
        return self.__wrapped__

    def __repr__(self) -> str:
        return f"<MemorizedFunction {self._lookup.name} in {self._shelf!r}>"


class BoundMemorizedFunction(Generic[P, T]):
    """A memoized method of one object: every call has it as the first argument."""

    def __init__(self, function: MemorizedFunction[Any, T], instance: object) -> None:
        self.__func__ = function
        self.__self__ = instance
        self.__wrapped__ = function.__wrapped__.__get__(instance)
        self.__name__ = function.__name__
        self.__qualname__ = function.__qualname__
        self.__module__ = function.__module__
        self.__doc__ = function.__doc__
        mark_as_coroutine_function(self)

    async def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> T:
        """See :meth:`MemorizedFunction.__call__`."""
        return await self.__func__(self.__self__, *args, **kwargs)

    async def refresh(self, /, *args: P.args, **kwargs: P.kwargs) -> T:
        """See :meth:`MemorizedFunction.refresh`."""
        return await self.__func__.refresh(self.__self__, *args, **kwargs)

    call = refresh

    async def check_call_in_cache(self, /, *args: P.args, **kwargs: P.kwargs) -> bool:
        """See :meth:`MemorizedFunction.check_call_in_cache`."""
        return await self.__func__.check_call_in_cache(self.__self__, *args, **kwargs)

    async def call_and_shelve(self, /, *args: P.args, **kwargs: P.kwargs) -> MemorizedResult[T]:
        """See :meth:`MemorizedFunction.call_and_shelve`."""
        return await self.__func__.call_and_shelve(self.__self__, *args, **kwargs)

    async def forget(self, /, *args: P.args, **kwargs: P.kwargs) -> bool:
        """See :meth:`MemorizedFunction.forget`."""
        return await self.__func__.forget(self.__self__, *args, **kwargs)

    async def explain(self, /, *args: P.args, **kwargs: P.kwargs) -> Explanation:
        """See :meth:`MemorizedFunction.explain`."""
        return await self.__func__.explain(self.__self__, *args, **kwargs)

    async def clear(self) -> int:
        """See :meth:`MemorizedFunction.clear`: the results of all objects."""
        return await self.__func__.clear()

    def statistics(self) -> FunctionStatistics:
        """See :meth:`MemorizedFunction.statistics`."""
        return self.__func__.statistics()

    def __reduce__(self) -> Any:
        return BoundMemorizedFunction, (self.__func__, self.__self__)

    def __aparallel_key__(self) -> Any:
        return self.__wrapped__

    def __repr__(self) -> str:
        return f"<bound {self.__func__!r}>"


class RawFunction:
    """The function behind a memoized one, as a pool's workers get it: by name where it can be imported."""

    def __init__(self, function: MemorizedFunction[Any, Any]) -> None:
        self._function = function
        self.__name__ = function.__name__
        self.__qualname__ = function.__qualname__
        self.__module__ = function.__module__

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        return self._function.__wrapped__(*args, **kwargs)


def _without_partials(fn: Any) -> Any:
    while isinstance(fn, functools.partial):
        fn = fn.func
    return fn


def _named(fn: Any) -> Any:
    """The function that gives a callable its name."""
    inner = _without_partials(fn)
    return inner if getattr(inner, "__qualname__", None) else type(inner)


def _check_function(fn: Any) -> None:
    """Refuse what is no function, and one whose result cannot be remembered."""
    if isinstance(fn, staticmethod | classmethod):
        raise TypeError("Put @memory.cache below @staticmethod or @classmethod, next to the function.")
    if not callable(fn):
        raise TypeError(f"memory.cache() takes a function, got {fn!r} ({type(fn).__name__}).")
    inner = _without_partials(fn)
    code = inner if inspect.isroutine(inner) or isinstance(inner, type) else getattr(inner, "__call__", inner)  # noqa: B004
    if inspect.isgeneratorfunction(code) or inspect.isasyncgenfunction(code):
        name = getattr(inner, "__qualname__", repr(inner))
        raise TypeError(f"{name} is a generator function: what it yields cannot be remembered. Return a list instead.")
