"""Memory: what memoized functions share. A directory, its bounds, and the newest results in memory."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import warnings
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar, overload

from aparallel._ground.cpus import cpu_count
from aparallel._ground.hop import in_thread
from aparallel._ground.units import parse_bytes, parse_seconds
from aparallel._memory.beside import read_value, write_value
from aparallel._memory.directory import DirectoryStore, Place
from aparallel._memory.entry import Body, Damaged, Entry, NotOurs, secret_of
from aparallel._memory.eviction import Limits
from aparallel._memory.function import MemorizedFunction
from aparallel._memory.lookup import FunctionOptions
from aparallel._memory.results import MemoryStatistics, StoredCall
from aparallel._memory.tier import Tier
from aparallel._memory.values import unpickle
from aparallel._persist.compressors import chosen
from aparallel._persist.dump import DumpOptions
from aparallel._persist.load import LoadOptions
from aparallel.errors import MissingResultError, NotStoredWarning, UnsupportedPlatformError

if TYPE_CHECKING:
    from datetime import timedelta

    from aparallel._memory.directory import Found, Listed, Mark
    from aparallel._memory.tracking import Track

P = ParamSpec("P")
T = TypeVar("T")

_logger = logging.getLogger("aparallel.memory")

_TIER_BYTES = "64MB"


class Memory:
    """Remembers the results of functions on disk, for all processes that use the same directory.

    Args:
        location: the directory; made, for its owner alone, when first needed. None caches nothing.
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

    Raises:
        TypeError, ValueError: a bad option.
        UnsupportedPlatformError: this system has no file locks (Windows).
    """

    def __init__(
        self,
        location: str | os.PathLike[str] | None,
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
        _check_mmap_mode(mmap_mode, compress)
        _check_pool(pool)
        _check_track(track)
        signing_key = _checked_key(signing_key)
        limits = Limits(
            None if max_entries is None else _checked_entries(max_entries),
            None if max_bytes is None else parse_bytes(max_bytes),
        )
        self._options: dict[str, Any] = {
            "verbose": verbose,
            "mmap_mode": mmap_mode,
            "compress": compress,
            "max_bytes": limits.bytes,
            "max_entries": limits.entries,
            "ttl": None if ttl is None else parse_seconds(ttl),
            "signing_key": signing_key,
            "trust_group": trust_group,
            "store_arguments": store_arguments,
            "memory_bytes": parse_bytes(memory_bytes),
            "track": track,
        }
        self.location = None if location is None else os.path.abspath(os.fspath(location))
        self._pool = pool
        self._compress = compress
        chosen(compress, None)  # raises what dump would
        self._dump_options: DumpOptions | None = None  # made where files may be read: it counts the cores
        self._is_compressed = compress not in (None, False, 0)
        self._signing_key = signing_key
        self._store_arguments = store_arguments
        self._tier = Tier(self._options["memory_bytes"])
        self._warned: set[str] = set()
        # Computations that no caller waits for, by loop; a loop forgets a task that nobody holds.
        self._background: set[asyncio.Task[None]] = set()
        self._store: DirectoryStore | None = None
        if self.location is not None:
            if sys.platform == "win32":
                raise UnsupportedPlatformError(
                    "Memory needs the file locks of Linux or macOS, and this is Windows. "
                    "Use Memory(None), which caches nothing."
                )
            secret = None if signing_key is None else secret_of(signing_key)
            self._store = DirectoryStore(self.location, secret=secret, trust_group=trust_group, limits=limits)
        # What computations are known by in this process: two memories of one directory share them.
        self._shared_name = (self.location, signing_key)

    @overload
    def cache(
        self,
        fn: Callable[P, Coroutine[Any, Any, T]],
        /,
        *,
        ignore: Sequence[str] = (),
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
    ) -> MemorizedFunction[P, T]: ...
    @overload
    def cache(
        self,
        fn: Callable[P, T],
        /,
        *,
        ignore: Sequence[str] = (),
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
    ) -> MemorizedFunction[P, T]: ...
    @overload
    def cache(
        self,
        fn: None = None,
        /,
        *,
        ignore: Sequence[str] = (),
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
    ) -> _Decorator: ...
    def cache(
        self,
        fn: Any = None,
        /,
        *,
        ignore: Sequence[str] = (),
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
        if validate is not None and cache_validation_callback is not None:
            raise TypeError("validate= and cache_validation_callback= are the same. Give one.")
        own = self._options
        mode = own["mmap_mode"] if mmap_mode is None else mmap_mode
        _check_mmap_mode(mode, self._compress)
        _check_pool(pool)
        options = FunctionOptions(
            ignore=ignore if isinstance(ignore, str) else tuple(ignore),  # type: ignore[arg-type]  # refused later
            ttl=own["ttl"] if ttl is None else parse_seconds(ttl),
            stale_while_revalidate=parse_seconds(stale_while_revalidate),
            tags=tags if callable(tags) else _checked_tags(tags),
            mmap_mode=mode,
            validate=validate or cache_validation_callback,
            depends_on=tuple(depends_on),
            track=_check_track(own["track"] if track is None else track),
            cache_errors=(cache_errors,) if isinstance(cache_errors, type) else cache_errors,
            pool=self._pool if pool is None else pool,
            verbose=own["verbose"] if verbose is None else verbose,
        )
        if fn is None:
            return _Decorator(self, options)
        return MemorizedFunction(self, fn, options)

    async def eval(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Return the result of ``fn(*args, **kwargs)``, remembered or computed."""
        return await self.cache(fn)(*args, **kwargs)

    async def clear(self) -> int:
        """Remove all results of all functions. Return how many there were."""
        return await self._clear(None)

    async def reduce_size(
        self,
        bytes_limit: str | int | None = None,
        items_limit: int | None = None,
        age_limit: str | float | timedelta | None = None,
    ) -> int:
        """Remove results, least recently used first, until the limits hold. Return how many went.

        *age_limit* removes what was not used for so long. Without any limit, the memory's own are enforced.
        """
        if self._store is None:
            return 0
        limits = Limits(items_limit, None if bytes_limit is None else parse_bytes(bytes_limit))
        if limits == (None, None) and age_limit is None:
            limits = self._store.limits
        unused_for = None if age_limit is None else parse_seconds(age_limit)
        return await in_thread(lambda: self._reduce(limits, unused_for))

    def _reduce(self, limits: Limits, unused_for: float | None) -> int:
        assert self._store is not None
        removed = self._store.reduce(limits, unused_for=unused_for)
        if removed:
            self._tier.clear()
        return removed

    async def invalidate(self, tags: str | Iterable[str]) -> None:
        """Make every result with one of these tags a miss from now on, also those being computed."""
        if self._store is not None:
            await in_thread(self._store.invalidate, [tags] if isinstance(tags, str) else _checked_tags(tags))
            self._tier.clear()

    async def statistics(self) -> MemoryStatistics:
        """Return how much is stored. It reads one small file, however much there is."""
        if self._store is None:
            return MemoryStatistics(0, 0, 0, 0)
        totals = await in_thread(self._store.totals)
        return MemoryStatistics(*totals, *self._tier.totals)

    async def entries(self) -> AsyncIterator[StoredCall]:
        """Yield what is stored, in no order: ``async for entry in memory.entries()``."""
        if self._store is None:
            return
        listing = self._store.listing()
        while batch := await in_thread(self._next_entries, listing):
            for entry in batch:
                yield entry

    def _next_entries(self, listing: Any) -> list[StoredCall]:
        assert self._store is not None
        found: list[StoredCall] = []
        for listed in listing:
            entry = stored_call(self._store, listed)
            if entry is not None:
                found.append(entry)
            if len(found) == 100:
                break
        return found

    # What memoized functions use

    def _load(self, place: Place, entry: Entry, mmap_mode: str | None) -> Any:
        """Return the value of an entry. Raises Damaged if it cannot be rebuilt."""
        assert self._store is not None
        if entry.body_kind is Body.BESIDE:
            options = LoadOptions(mmap_mode=mmap_mode, signing_key=self._signing_key, threads=cpu_count())
            return read_value(self._store.beside(place), entry.body, options)
        try:
            return unpickle(entry.body)
        except Exception as error:
            raise Damaged(f"it cannot be unpickled here: {type(error).__name__}: {error}") from error

    def _write_beside(self, value: Any, path: str) -> bytes:
        if self._dump_options is None:
            self._dump_options = DumpOptions.checked(self._compress, durable=False, signing_key=self._signing_key)
        return write_value(path, value, self._dump_options)

    async def _get(self, place: Place, function: str, mmap_mode: str | None) -> Any:
        problem = "it was cleared, evicted or replaced"
        if self._store is not None:
            try:
                found: Found | None = await in_thread(self._store.read, place)
                if found is not None:
                    value = await in_thread(self._load, place, found.entry, mmap_mode)
                    if found.entry.body_kind is Body.ERROR:
                        raise value
                    return value
            except (Damaged, NotOurs) as error:
                problem = str(error)
        raise MissingResultError(
            f"The result of {function} with the key {place.key.hex()[:12]}… is not there: {problem}. "
            f"Call the function again.",
            call=function,
        )

    def _mark(self, place: Place) -> Mark | None:
        assert self._store is not None
        return self._store.mark(place)

    async def _forget(self, place: Place) -> bool:
        self._tier.drop(place.key)
        if self._store is None:
            return False
        removed = await in_thread(self._store.remove, place)
        self._tier.drop(place.key)
        return removed

    async def _clear(self, function: str | None) -> int:
        if self._store is None:
            return 0
        removed = await in_thread(self._store.clear, function)
        self._tier.clear()
        return removed

    def _in_background(self, doing: Coroutine[Any, Any, Any]) -> None:
        """Compute without anyone waiting; what it raises is the next caller's to see."""
        task = asyncio.get_running_loop().create_task(_quietly(doing))
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def _warn_once(self, what: str, message: str) -> None:
        if what not in self._warned:
            self._warned.add(what)
            warnings.warn(f"{message}. The function works as without a memory.", NotStoredWarning, stacklevel=2)

    def __aparallel_key__(self) -> Any:
        return self.location

    def __reduce__(self) -> Any:
        return _same_memory, (self.location, self._options)

    def __repr__(self) -> str:
        return f"Memory({self.location!r})"


class _Decorator:
    """What ``memory.cache(...)`` with options returns: it takes the function."""

    def __init__(self, memory: Memory, options: FunctionOptions) -> None:
        self._memory = memory
        self._options = options

    @overload
    def __call__(self, fn: Callable[P, Coroutine[Any, Any, T]], /) -> MemorizedFunction[P, T]: ...
    @overload
    def __call__(self, fn: Callable[P, T], /) -> MemorizedFunction[P, T]: ...
    def __call__(self, fn: Any, /) -> Any:
        return MemorizedFunction(self._memory, fn, self._options)


# Memories that came out of a pickle: equal ones are one, so that they share what they hold in memory.
_arrived: weakref.WeakValueDictionary[str, Memory] = weakref.WeakValueDictionary()


def _same_memory(location: str | None, options: dict[str, Any]) -> Memory:
    name = repr((location, sorted(options.items())))
    memory = _arrived.get(name)
    if memory is None:
        memory = _arrived[name] = Memory(location, **options)
    return memory


async def _quietly(doing: Coroutine[Any, Any, Any]) -> None:
    try:
        await doing
    except Exception:
        _logger.warning("Computing a stale result anew failed; the old one is served on.", exc_info=True)


def stored_call(store: DirectoryStore, listed: Listed) -> StoredCall | None:
    """Read what there is to tell of an entry; None if it is gone or cannot be read."""
    try:
        found = store.read(listed.place)
        if found is None:
            return None
        meta = found.entry.meta()
    except (OSError, ValueError, Damaged, NotOurs):
        return None
    return StoredCall(
        function=meta.get("function", listed.place.function),
        key=listed.place.key.hex(),
        created=found.entry.created,
        last_used=listed.used,
        size=listed.size,
        seconds=meta.get("seconds", 0.0),
        tags=tuple(meta.get("tags", ())),
        arguments=meta.get("values", {}),
    )


def _check_mmap_mode(mmap_mode: object, compress: object) -> None:
    if mmap_mode not in (None, "r", "c"):
        raise ValueError(
            f"mmap_mode={mmap_mode!r}: results can be mapped with 'r' or 'c'. "
            f"What others share must not be changed in place."
        )
    if mmap_mode is not None and compress not in (None, False, 0):
        raise ValueError("mmap_mode= and compress= exclude each other: what is compressed cannot be mapped.")


def _check_pool(pool: object) -> None:
    if pool is not None and not callable(getattr(pool, "run", None)):
        raise TypeError(f"pool={pool!r} has no method run. Give a Pool, or leave it out to compute in threads.")


def _check_track(track: Track) -> Track:
    if track not in ("deep", "own", "none"):
        raise ValueError(f"track={track!r} is none of 'deep', 'own', 'none'.")
    return track


def _checked_key(key: bytes | str | None) -> bytes | None:
    if key is None:
        return None
    if not isinstance(key, bytes | str):
        raise TypeError(f"signing_key is bytes or text, got {type(key).__name__}.")
    if not key:
        raise ValueError("signing_key is empty: anybody could sign with it.")
    return key.encode() if isinstance(key, str) else key


def _checked_entries(count: int) -> int:
    if isinstance(count, bool) or not isinstance(count, int):
        raise TypeError(f"max_entries={count!r} is not a whole number.")
    if count < 1:
        raise ValueError(f"max_entries={count!r} is not a positive number. Memory(None) caches nothing.")
    return count


def _checked_tags(tags: Iterable[str]) -> tuple[str, ...]:
    if isinstance(tags, str):
        raise TypeError(f"tags={tags!r} is a text. Write tags=[{tags!r}].")
    return tuple(tags)
