"""Memory: what memoized functions share. A store, its bounds, and the newest results in memory."""

from __future__ import annotations

import itertools
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar, Unpack, overload

from aparallel._ground.store import Limits, Store
from aparallel._ground.units import parse_bytes, parse_seconds
from aparallel._memory.function import MemorizedFunction
from aparallel._memory.options import (
    FunctionOptions,
    FunctionSettings,
    MemoryOptions,
    checked_bytes,
    checked_count,
    checked_limits,
    checked_pool,
    checked_tags,
    function_options,
)
from aparallel._memory.results import MemoryStatistics, StoredCall
from aparallel._memory.shelf import Home, Shelf
from aparallel._persist.options import checked_key

if TYPE_CHECKING:
    from datetime import timedelta

    from aparallel._memory.tracking import Track

P = ParamSpec("P")
T = TypeVar("T")

_TIER_BYTES = "64MB"
_AT_ONCE = 100  # entries that are read in one hop


class Memory:
    """Remembers the results of functions on disk, for all processes that use the same directory.

    Args:
        location: the directory; made, for its owner alone, when first needed. None caches nothing. Or a
            :class:`aparallel.abc.Store`, which keeps the results instead and bounds itself.
        verbose: 1 tells on stderr what is computed, 2 also when that begins, 10 also what was found.
        mmap_mode: ``"r"`` or ``"c"``: arrays in results are mapped from their files, not read. All processes share
            the pages. With ``"c"`` they can be written to, which changes no file.
        compress: as of ``dump``: how values of more than a few kilobytes are written.
        max_bytes, max_entries: what the directory may hold: an integer, or text such as ``"10GB"``. About the least
            recently used results go first. Held within 10 % while several processes write.
        ttl: how long a result is good: seconds, a timedelta, or text such as ``"7d"``.
        signing_key: a secret. Entries are signed with it, and others are never used.
        pool: where plain functions are computed: anything with a ``run`` as a Pool's. By default, threads.
        trust_group: the directory's group may write to it.
        store_arguments: keep the arguments as text beside each result.
        memory_bytes: what the newest results may take in memory.
        track: how far the code of functions is followed to make keys: ``"deep"``, ``"own"`` or ``"none"``.

    Making one touches nothing; the directory is looked at when it is first needed. It may be used from any number of
    event loops, threads and processes, and pickles (without the pool).

    Cancellation: what a method has a thread do to the store, such as to remove results, is done once it has begun,
    whether or not anyone waits for it.

    Raises:
        TypeError, ValueError: a bad option.
        UnsupportedPlatformError: this system has no file locks (Windows).
    """

    def __init__(
        self,
        location: str | os.PathLike[str] | Store | None,
        *,
        verbose: int = 0,
        mmap_mode: Literal["r", "c"] | None = None,
        compress: Any = None,
        max_bytes: str | int | None = None,
        max_entries: int | None = None,
        ttl: str | float | timedelta | None = None,
        signing_key: bytes | str | None = None,
        pool: Any = None,
        trust_group: bool = False,
        store_arguments: bool = False,
        memory_bytes: str | int = _TIER_BYTES,
        track: Track = "deep",
    ) -> None:
        options = MemoryOptions(
            verbose=verbose,
            mmap_mode=mmap_mode,
            compress=compress,
            ttl=None if ttl is None else parse_seconds(ttl),
            signing_key=checked_key(signing_key),
            store_arguments=store_arguments,
            memory_bytes=parse_bytes(memory_bytes),
            track=track,
        )
        home = Home.at(location, checked_limits(max_entries, max_bytes), trust_group)
        home.check_can_map(mmap_mode)
        self._pool = checked_pool(pool)
        self._shelf = Shelf(home, options)

    @property
    def location(self) -> str | None:
        """The directory, as an absolute path; None without one."""
        return self._shelf.home.location

    @overload
    def cache(
        self,
        fn: Callable[P, Coroutine[Any, Any, T]],
        /,
        **settings: Unpack[FunctionSettings],
    ) -> MemorizedFunction[P, T]: ...
    @overload
    def cache(
        self,
        fn: Callable[P, T],
        /,
        **settings: Unpack[FunctionSettings],
    ) -> MemorizedFunction[P, T]: ...
    @overload
    def cache(
        self,
        fn: None = None,
        /,
        **settings: Unpack[FunctionSettings],
    ) -> _Decorator: ...
    def cache(
        self,
        fn: Any = None,
        /,
        *,
        ignore: Sequence[str] | None = None,
        ttl: str | float | timedelta | None = None,
        stale_while_revalidate: str | float | timedelta = 0.0,
        tags: Sequence[str] | Callable[..., Iterable[str]] = (),
        mmap_mode: Literal["r", "c"] | None = None,
        validate: Callable[[Mapping[str, Any]], bool] | None = None,
        cache_validation_callback: Callable[[Mapping[str, Any]], bool] | None = None,
        depends_on: Sequence[Any] = (),
        track: Track | None = None,
        cache_errors: bool | type[BaseException] | tuple[type[BaseException], ...] = False,
        pool: Any = None,
        verbose: int | None = None,
    ) -> Any:
        """Memoize a function, coroutine function or method: ``@memory.cache``, or ``@memory.cache(...)`` with options.

        Args:
            fn: the function.
            ignore: names of parameters that are not part of the key; ``"*"`` and ``"**"`` for the rest of them.
            ttl: instead of the memory's.
            stale_while_revalidate: for so long after its ttl a result is still served, while it is computed anew.
            tags: names by which results can be invalidated; or a function of the call's arguments that gives them.
            mmap_mode: instead of the memory's.
            validate: called with a mapping of ``time`` (when the result was computed, in seconds since 1970),
                ``duration`` (seconds) and ``input_args`` (if stored); False makes the call a miss. It runs in a thread.
            cache_validation_callback: joblib's name for *validate*.
            depends_on: functions, classes, modules or values that results depend on and tracking cannot see.
            track: instead of the memory's.
            cache_errors: True, or types of exceptions that are remembered as results are.
            pool: instead of the memory's. Coroutine functions run on the loop.
            verbose: instead of the memory's.

        Raises:
            TypeError: *fn* is no function, or a generator function.
            ValueError: *ignore* names no parameter; a bad option.
        """
        options = function_options(
            self._shelf.options,
            ignore=ignore,
            ttl=ttl,
            stale_while_revalidate=stale_while_revalidate,
            tags=tags,
            mmap_mode=mmap_mode,
            validate=validate,
            cache_validation_callback=cache_validation_callback,
            depends_on=depends_on,
            track=track,
            cache_errors=cache_errors,
            pool=self._pool if pool is None else pool,
            verbose=verbose,
        )
        self._shelf.home.check_can_map(options.mmap_mode)
        return _Decorator(self._shelf, options) if fn is None else MemorizedFunction(self._shelf, fn, options)

    @overload
    async def eval(self, fn: Callable[P, Coroutine[Any, Any, T]], /, *args: P.args, **kwargs: P.kwargs) -> T: ...
    @overload
    async def eval(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T: ...
    async def eval(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Return the result of ``fn(*args, **kwargs)``, remembered or computed.

        As ``await memory.cache(fn)(*args, **kwargs)``, with the memory's own options, errors and cancellation.
        """
        return await self.cache(fn)(*args, **kwargs)

    async def clear(self) -> int:
        """Remove all results of all functions. Return how many there were.

        What is being computed meanwhile, in whichever process, goes to those who asked for it and is not stored.

        Raises:
            StoreError: the store cannot be written.
            UntrustedDirectoryError: others could have written to the directory.
        """
        return await self._shelf.clear()

    async def reduce_size(
        self,
        bytes_limit: str | int | None = None,
        items_limit: int | None = None,
        age_limit: str | float | timedelta | None = None,
    ) -> int:
        """Remove results, least recently used first, until the limits hold. Return how many went.

        *age_limit* removes what was not used for so long. Without any limit, the memory's own are enforced.

        Raises:
            TypeError, ValueError: a limit is no such number, or negative.
            StoreError, UntrustedDirectoryError: as of :meth:`clear`.
        """
        limits = Limits(checked_count(items_limit, "items_limit"), checked_bytes(bytes_limit))
        if limits == (None, None) and age_limit is None and self._shelf.store is not None:
            limits = self._shelf.store.limits
        return await self._shelf.reduce(limits, None if age_limit is None else parse_seconds(age_limit))

    async def invalidate(self, tags: str | Iterable[str]) -> None:
        """Make every result with one of these tags a miss from now on, also those being computed.

        Raises:
            TypeError: *tags* are no texts.
            StoreError, UntrustedDirectoryError: as of :meth:`clear`.
        """
        await self._shelf.invalidate([tags] if isinstance(tags, str) else checked_tags(tags))

    async def statistics(self) -> MemoryStatistics:
        """Return how much is stored. Of a directory it reads one small file, however much there is.

        Raises:
            StoreError: the store cannot be read.
            UntrustedDirectoryError: as of :meth:`clear`.
        """
        if self._shelf.store is None:
            return MemoryStatistics(0, 0, 0, 0)
        totals = await self._shelf.reach("count its results", self._shelf.store.totals)
        return MemoryStatistics(*totals, *self._shelf.tier.totals)

    async def entries(self) -> AsyncIterator[StoredCall]:
        """Yield what is stored, in no order: ``async for entry in memory.entries()``.

        Raises:
            StoreError, UntrustedDirectoryError: as of :meth:`statistics`.
        """
        store = self._shelf.store
        if store is None:
            return
        read = self._shelf.sealed.stored_call
        found = await self._shelf.reach("list its results", lambda: filter(None, map(read, store.entries())))
        while batch := await self._shelf.reach("list its results", lambda: list(itertools.islice(found, _AT_ONCE))):
            for entry in batch:
                yield entry

    def __aparallel_key__(self) -> Any:
        return self.location

    def __reduce__(self) -> Any:
        return _with_shelf, (self._shelf,)

    def __repr__(self) -> str:
        return repr(self._shelf)


def _with_shelf(shelf: Shelf) -> Memory:
    memory = Memory.__new__(Memory)
    memory._shelf = shelf
    memory._pool = None  # a pool belongs to its process
    return memory


class _Decorator:
    """What ``memory.cache(...)`` with options returns: it takes the function."""

    def __init__(self, shelf: Shelf, options: FunctionOptions) -> None:
        self._shelf = shelf
        self._options = options

    @overload
    def __call__(self, fn: Callable[P, Coroutine[Any, Any, T]], /) -> MemorizedFunction[P, T]: ...
    @overload
    def __call__(self, fn: Callable[P, T], /) -> MemorizedFunction[P, T]: ...
    def __call__(self, fn: Any, /) -> Any:
        return MemorizedFunction(self._shelf, fn, self._options)
