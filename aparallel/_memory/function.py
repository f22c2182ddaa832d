"""A memoized function: a call becomes a key, the key a hit or a computation."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import logging
import math
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING, Any, Concatenate, Final, Generic, NamedTuple, ParamSpec, TypeVar, overload

from aparallel._ground.call import Call
from aparallel._ground.hop import import_anyio, in_thread
from aparallel._memory.behind import behind
from aparallel._memory.canonical import TooLarge
from aparallel._memory.digest import digest
from aparallel._memory.directory import Mark, Place
from aparallel._memory.entry import Body, Damaged, Entry, NotOurs, metadata_of
from aparallel._memory.eviction import age
from aparallel._memory.explain import explain_missing
from aparallel._memory.hashing import LOOP_BUDGET
from aparallel._memory.keys import Key, KeyMaker
from aparallel._memory.pickled import reduce_function
from aparallel._memory.results import Explanation, FunctionStatistics, MemorizedResult, ShelvedValue
from aparallel._memory.single_flight import End, Flight, Outcome, fly, is_nested
from aparallel._memory.tier import TRUSTED_FOR, Kept, copy_of, keepable, size_of
from aparallel._memory.values import is_frozen, pickle_error, pickle_small
from aparallel.errors import UntrustedDirectoryError

if TYPE_CHECKING:
    import anyio

    from aparallel._memory.memory import Memory
    from aparallel._memory.tracking import Track

P = ParamSpec("P")
Q = ParamSpec("Q")
T = TypeVar("T")
S = TypeVar("S")

_logger = logging.getLogger("aparallel.memory")

# Waiting for a computation in another process: seconds between two looks.
_FIRST_WAIT = 0.001
_LONGEST_WAIT = 0.05
# A call inside another memoized one waits at most so many seconds for another process, which may be waiting for us:
# then it computes, too.
_NESTED_PATIENCE = 30.0

_ARGUMENT_DIGEST = 8  # bytes


@dataclass(frozen=True, slots=True)
class FunctionOptions:
    """How one function is memoized. Times are in seconds."""

    ignore: tuple[str, ...] = ()
    ttl: float | None = None
    stale_while_revalidate: float = 0.0
    tags: tuple[str, ...] | Callable[..., Iterable[str]] = ()
    mmap_mode: str | None = None
    validate: Callable[[Mapping[str, Any]], bool] | None = None
    depends_on: tuple[Any, ...] = ()
    track: Track = "deep"
    cache_errors: bool | tuple[type[BaseException], ...] = False
    pool: Any = None
    verbose: int = 0


class State(Enum):
    """What a look for a call's result found."""

    HIT = "hit"
    STALE = "stale"
    """Expired, but good enough to be served while a new one is computed."""
    MISSING = "missing"
    EXPIRED = "expired"
    INVALIDATED = "invalidated"
    REFUSED = "refused"
    DAMAGED = "damaged"
    NOT_SIGNED = "not signed"


class Look(NamedTuple):
    """What a look for a call's result found, and the result if it is good."""

    state: State
    value: Any = None
    is_error: bool = False


class _Begun(Enum):
    BUSY = 1
    """Another process, or another call of this one, computes it."""
    LOCKED = 2
    UNLOCKED = 3
    """There are no locks here: compute without."""


class _Computed(NamedTuple):
    value: Any
    is_error: bool
    is_shareable: bool
    problem: str = ""
    warned_as: str = ""
    """What has a problem: this function's results, or the directory."""


class _Call:
    """A call on its way: its parts, and whether its key's lock is held."""

    __slots__ = (
        "args",
        "deadline",
        "is_abandoned",
        "is_locked",
        "is_refresh",
        "key",
        "kwargs",
        "mutex",
        "place",
        "tags",
    )

    def __init__(self, place: Place, key: Key, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.place = place
        self.key = key
        self.args = args
        self.kwargs = kwargs
        self.tags: dict[str, str] = {}
        self.is_refresh = False
        self.deadline = math.inf
        # Guarded by the mutex: a thread takes the lock while the task that asked for it may be cancelled.
        self.mutex = threading.Lock()
        self.is_locked = False
        self.is_abandoned = False


class MemorizedFunction(Generic[P, T]):
    """A function whose results a :class:`Memory` remembers. Await it as you would call the function.

    It may be used from any number of tasks, event loops, threads and processes, as a method, and in the workers of a
    pool; it pickles.
    """

    def __init__(self, memory: Memory, fn: Callable[P, Any], options: FunctionOptions) -> None:
        self._memory = memory
        self._options = options
        self._set_function(fn)

    def _set_function(self, fn: Callable[P, Any]) -> None:
        _refuse_generators(fn)
        functools.update_wrapper(self, fn)
        named = _named(fn)
        self.__wrapped__ = fn
        self.__module__ = module = str(getattr(named, "__module__", None))
        self.__qualname__ = qualname = getattr(named, "__qualname__", None) or type(named).__qualname__
        self.__name__ = qualname.rpartition(".")[2]
        self.func = fn  # joblib's name
        _mark_as_coroutine_function(self)
        self._name = qualname if module in ("__main__", "None", "builtins") else f"{module}.{qualname}"
        self._identifier = digest(f"{module}\0{qualname}".encode("utf-8", "surrogatepass")).hex()[:24]
        self._is_async = _is_coroutine_function(fn)
        options = self._options
        self._keys = KeyMaker(
            fn, name=self._name, ignore=options.ignore, track=options.track, depends_on=options.depends_on
        )
        self._statistics = FunctionStatistics()
        # Whether a kept result may be used with no more than a look at its age.
        self._is_plain = options.validate is None
        self._noted_code = b""

    # Calling

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T:
        """Return the remembered result of this call, or compute and remember it.

        Raises:
            Exception: what the function raises. It is not remembered, unless ``cache_errors`` says so.
            UnstableValueError: no key can be made of an argument.
            UntrustedDirectoryError: others could have written to the memory's directory.
            RecursiveCallError: the computation awaits its own result.
        """
        memory = self._memory
        if memory._store is None:
            return await self._compute(args, kwargs)  # type: ignore[no-any-return]
        try:
            key = self._keys.make(args, kwargs, LOOP_BUDGET)
        except TooLarge:
            return await self._slow(None, args, kwargs)  # type: ignore[no-any-return]
        kept = memory._tier.get(key.digest)
        if (
            kept is not None
            and self._is_plain
            and kept.is_quick
            and time.monotonic() - kept.checked < TRUSTED_FOR
            and (self._options.ttl is None or age(kept.created, time.time()) <= self._options.ttl)
        ):
            self._statistics.hits += 1
            self._statistics.memory_hits += 1
            memory._tier.used(key.digest)
            memory._store.touch(kept.place)
            if kept.is_error:
                raise kept.value()
            return kept.value()  # type: ignore[no-any-return]
        return await self._slow(key, args, kwargs)  # type: ignore[no-any-return]

    async def _slow(self, key: Key | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call, look = await in_thread(self._find, key, args, kwargs)
        if look.state is State.HIT:
            self._statistics.hits += 1
            return _given(look)
        if look.state is State.STALE:
            self._statistics.hits += 1
            self._memory._in_background(self._fly(call))
            return _given(look)
        return await self._fly(call)

    async def _fly(self, call: _Call) -> Any:
        """Wait for the computation of *call*, which other callers share, and return its result."""
        memory = self._memory
        if is_nested():
            call.deadline = time.monotonic() + _NESTED_PATIENCE
        key = (memory._shared_name, call.place.key, call.is_refresh)
        outcome, is_first = await fly(key, self._name, lambda flight: self._lead(flight, call))
        if outcome.end is End.ERROR:
            raise outcome.value
        computed: _Computed = outcome.value
        if not is_first:
            self._statistics.shared += 1
            if not computed.is_shareable:
                look = (await in_thread(self._find, call.key, call.args, call.kwargs))[1]
                if look.state is State.HIT:
                    return _given(look)
        elif computed.problem:
            memory._warn_once(computed.warned_as, f"The results of {self._name} are not stored: {computed.problem}")
        if computed.is_error:
            raise computed.value
        return computed.value

    async def _compute(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the function where it belongs: on the loop, on the pool, or in a thread."""
        if self._is_async:
            return await self.__wrapped__(*args, **kwargs)
        pool = self._options.pool
        if pool is not None:
            return await pool.run(Call(RawFunction(self), *args, **kwargs))
        await import_anyio()
        from anyio import to_thread

        call = functools.partial(self._call_here, args, kwargs)
        return await to_thread.run_sync(call, limiter=_computing_limiter(), abandon_on_cancel=True)

    def _call_here(self, args: Any, kwargs: Any) -> Any:
        value = self.__wrapped__(*args, **kwargs)
        if inspect.iscoroutine(value):
            value.close()
            raise TypeError(f"{self._name} is no coroutine function, but returned a coroutine. Make it `async def`.")
        return value

    # A computation, led by one task for all who wait

    async def _lead(self, flight: Flight, call: _Call) -> None:
        wait = _FIRST_WAIT
        is_for_thread = not self._is_async and self._options.pool is None
        while True:
            if is_for_thread:
                if not flight.enter_thread():
                    return
                from anyio import to_thread

                step = functools.partial(self._compute_in_thread, flight, call)
                begun = await to_thread.run_sync(step, limiter=_computing_limiter(call), abandon_on_cancel=True)
            else:
                begun = await self._compute_on_loop(flight, call)
            if begun is not _Begun.BUSY:
                return
            await asyncio.sleep(wait)
            wait = min(1.5 * wait, _LONGEST_WAIT)

    def _compute_in_thread(self, flight: Flight, call: _Call) -> _Begun | Look:
        """Look, lock, compute, store and unlock, all in this thread, which nobody can stop."""
        try:
            begun = self._begin(call)
            if begun is _Begun.BUSY:
                flight.leave_thread()
                return begun
            if isinstance(begun, Look):
                flight.end(Outcome(End.VALUE, _shared(begun)))
            elif not flight.is_wanted:
                self._unlock(call)
                flight.leave_thread()
            else:
                self._say(2, "computing")
                started = time.perf_counter()
                try:
                    value = self._call_here(call.args, call.kwargs)
                except BaseException as error:
                    flight.end(self._failed(call, error, time.perf_counter() - started))
                else:
                    flight.end(self._finish(call, value, time.perf_counter() - started))
        except BaseException as error:
            self._unlock(call)
            flight.end(Outcome(End.ERROR, error))
        return _Begun.UNLOCKED

    async def _compute_on_loop(self, flight: Flight, call: _Call) -> _Begun | Look:
        """Do the same on the loop, but for what touches the disk."""
        try:
            begun = await in_thread(self._begin, call)
            if begun is _Begun.BUSY:
                return begun
            if isinstance(begun, Look):
                flight.end(Outcome(End.VALUE, _shared(begun)))
                return begun
            self._say(2, "computing")
            started = time.perf_counter()
            try:
                value = await self._compute(call.args, call.kwargs)
            except Exception as error:
                flight.end(await in_thread(self._failed, call, error, time.perf_counter() - started))
            else:
                flight.end(await in_thread(self._finish, call, value, time.perf_counter() - started))
            return begun
        except BaseException:
            self._abandon(call)
            raise

    def _begin(self, call: _Call) -> _Begun | Look:
        """Take the lock of the call's key. If its result is there by now, give the lock back and return the result."""
        store = self._store
        try:
            is_locked = store.try_lock(call.place.key)
        except UntrustedDirectoryError:
            raise
        except OSError:
            is_locked = None
        if is_locked is False and time.monotonic() < call.deadline:
            return _Begun.BUSY
        with call.mutex:
            call.is_locked = bool(is_locked)
            if call.is_abandoned:
                self._unlock_now(call)
                return _Begun.BUSY
        call.tags = self._tag_states(call.args, call.kwargs)
        if not call.is_refresh:
            look = self._look(call)
            if look.state is State.HIT:
                self._unlock(call)
                self._statistics.hits += 1
                return look
        return _Begun.LOCKED if call.is_locked else _Begun.UNLOCKED

    def _finish(self, call: _Call, value: Any, seconds: float) -> Outcome:
        """Store the result and give the lock back. What goes wrong with storing is told, never raised."""
        self._statistics.misses += 1
        self._say(1, f"computed in {seconds:.3g} s")
        problem, warned_as = self._store_result(call, value, seconds, is_error=False)
        if not problem and self._options.mmap_mode is not None and not is_frozen(value):
            look = self._look(call)  # mapped from the first call on: everyone shares the pages
            value = look.value if look.state is State.HIT else value
        is_shareable = is_frozen(value) or bool(problem)
        return Outcome(End.VALUE, _Computed(value, False, is_shareable, problem, warned_as))

    def _failed(self, call: _Call, error: BaseException, seconds: float) -> Outcome:
        """Store the exception if that is asked for, and give the lock back."""
        self._statistics.misses += 1
        wanted = self._options.cache_errors
        kinds = (Exception,) if wanted is True else wanted or ()
        if not isinstance(error, kinds):
            self._unlock(call)
            return Outcome(End.ERROR, error)
        problem, warned_as = self._store_result(call, error, seconds, is_error=True)
        return Outcome(End.VALUE, _Computed(error, True, True, problem, warned_as))

    def _store_result(self, call: _Call, value: Any, seconds: float, *, is_error: bool) -> tuple[str, str]:
        """Store, and return what went wrong, if anything did, and what with: the directory or this function."""
        try:
            self._write(call, value, seconds, is_error=is_error)
        except Exception as error:
            self._statistics.not_stored += 1
            _logger.info("A result of %s is not stored: %r", self._name, error)
            warned_as = "the directory" if isinstance(error, OSError) else self._identifier
            return f"{type(error).__name__}: {error}", warned_as
        else:
            self._statistics.stored += 1
            return "", ""
        finally:
            self._unlock(call)

    def _write(self, call: _Call, value: Any, seconds: float, *, is_error: bool) -> None:
        memory = self._memory
        created = time.time()
        is_mapped = self._options.mmap_mode is not None
        if is_error:
            kind, body = Body.ERROR, pickle_error(value)
        else:
            kind, found = Body.VALUE, pickle_small(value, compressed=memory._is_compressed, mapped=is_mapped)
            if found is None:
                kind, body = Body.BESIDE, b""
            else:
                body = found
        entry = Entry(kind, created, self._metadata(call, seconds), body)
        write_beside = functools.partial(memory._write_beside, value) if kind is Body.BESIDE else None
        self._note_function(call.key)
        mark = self._store.write(call.place, entry, write_beside)
        if kind is not Body.BESIDE:
            self._keep(call.place, mark, entry, value, is_error=is_error, tags=call.tags)
        if self._options.ttl is not None:
            self._store.sweep_soon()

    def _metadata(self, call: _Call, seconds: float) -> bytes:
        parts = {
            "function": self._name,
            "seconds": seconds,
            "code": _code_of(call.key),
            "arguments": [digest(part).hex()[: 2 * _ARGUMENT_DIGEST] for part in (*call.key.arguments, call.key.held)],
        }
        if call.tags:
            parts["tags"] = call.tags
        if self._memory._store_arguments:
            binder = self._keys.binder
            parts["values"] = dict(zip(binder.names, map(_short, binder.bind(call.args, call.kwargs)), strict=True))
        return metadata_of(parts)

    def _note_function(self, key: Key) -> None:
        """Write down, once per process and version, what entries need not repeat."""
        if self._noted_code == key.fingerprint.static:
            return
        with contextlib.suppress(OSError):
            names = [*self._keys.binder.names, "what it closes over"]
            self._store.prepare()
            self._store.note_function(self._identifier, {"name": self._name, "ttl": self._lifetime})
            parts = {name: part.hex()[:16] for name, part in key.fingerprint.parts.items()}
            self._store.note_function(f"{self._identifier}.{_code_of(key)}", {"parts": parts, "names": names})
            self._noted_code = key.fingerprint.static

    @property
    def _lifetime(self) -> float | None:
        ttl = self._options.ttl
        return None if ttl is None else ttl + self._options.stale_while_revalidate

    def _unlock(self, call: _Call) -> None:
        with call.mutex:
            self._unlock_now(call)

    def _unlock_now(self, call: _Call) -> None:
        if call.is_locked:
            call.is_locked = False
            self._store.unlock(call.place.key)

    def _abandon(self, call: _Call) -> None:
        """Give the lock back from the loop, also if a thread is about to take it."""
        with call.mutex:
            call.is_abandoned = True
            is_locked = call.is_locked
        if is_locked:
            behind.call_later(0.0, functools.partial(self._unlock, call))

    # Looking

    @property
    def _store(self) -> Any:
        return self._memory._store

    def _find(self, key: Key | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[_Call, Look]:
        """Make the key, if it is not made yet, and look for its result: one hop for both."""
        if key is None:
            key = self._keys.make(args, kwargs)
        call = _Call(Place(self._identifier, key.digest), key, args, kwargs)
        return call, self._look(call)

    def _look(self, call: _Call) -> Look:
        """Look for the result, in memory and then on disk. What cannot be read is missing."""
        place = call.place
        tier = self._memory._tier
        try:
            kept = tier.get(place.key)
            if kept is not None and self._is_plain and self._store.mark(place) == kept.mark:
                state = self._state_of(kept.created, kept.tags)
                if state is State.HIT:
                    kept.checked = time.monotonic()
                    tier.used(place.key)
                    self._store.touch(place)
                    self._statistics.memory_hits += 1
                    return Look(state, kept.value(), kept.is_error)
            tier.drop(place.key)
            return self._read(place)
        except UntrustedDirectoryError:
            raise
        except OSError as error:
            _logger.warning("A result of %s cannot be read: %s", self._name, error)
            return Look(State.MISSING)

    def _read(self, place: Place) -> Look:
        try:
            found = self._store.read(place)
            if found is None:
                return Look(State.MISSING)
            entry: Entry = found.entry
            meta = entry.meta() if b'"tags"' in entry.metadata or self._options.validate is not None else {}
            state = self._state_of(entry.created, meta.get("tags"))
            if state is State.HIT and self._options.validate is not None and not self._is_valid(entry, meta):
                state = State.REFUSED
            if state not in (State.HIT, State.STALE):
                return Look(state)
            value = self._memory._load(place, entry, self._options.mmap_mode)
        except Damaged as error:
            _logger.warning("A stored result of %s is damaged and will be replaced: %s", self._name, error)
            return Look(State.DAMAGED)
        except NotOurs as error:
            _logger.warning("A stored result of %s is not used: %s", self._name, error)
            return Look(State.NOT_SIGNED)
        is_error = entry.body_kind is Body.ERROR
        if state is State.HIT:
            self._keep(place, found.mark, entry, value, is_error=is_error, tags=meta.get("tags"))
            self._store.touch(place)
        self._say(10, "found")
        return Look(state, value, is_error)

    def _keep(
        self, place: Place, mark: Mark, entry: Entry, value: Any, *, is_error: bool, tags: dict[str, str] | None
    ) -> None:
        """Put a result into the memory tier."""
        tier = self._memory._tier
        if is_error or (entry.body_kind is not Body.BESIDE and not is_frozen(value)):
            tier.put(Kept(place, mark, entry.created, body=entry.body, is_error=is_error, tags=tags))
        elif keepable(value):
            tier.put(Kept(place, mark, entry.created, value=copy_of(value), size=size_of(value), tags=tags))

    def _state_of(self, created: float, tags: dict[str, str] | None) -> State:
        if tags and self._store.tag_states(tags) != tags:
            return State.INVALIDATED
        ttl = self._options.ttl
        if ttl is None:
            return State.HIT
        old = age(created, time.time())
        if old <= ttl:
            return State.HIT
        return State.STALE if old <= ttl + self._options.stale_while_revalidate else State.EXPIRED

    def _is_valid(self, entry: Entry, meta: dict[str, Any]) -> bool:
        assert self._options.validate is not None
        told = {"duration": meta.get("seconds"), "time": entry.created, "input_args": meta.get("values", {})}
        return bool(self._options.validate(told))

    def _tag_states(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, str]:
        tags = self._options.tags
        if callable(tags):
            tags = tuple(tags(*args, **kwargs))
        return dict(self._store.tag_states(tags)) if tags else {}

    # What else can be asked of a function

    async def refresh(self, *args: P.args, **kwargs: P.kwargs) -> T:
        """Compute the result anew, whether it is stored or not, store it and return it."""
        if self._memory._store is None:
            return await self._compute(args, kwargs)  # type: ignore[no-any-return]
        call = await in_thread(self._call_of, args, kwargs)
        call.is_refresh = True
        return await self._fly(call)  # type: ignore[no-any-return]

    call = refresh  # joblib's name

    async def check_call_in_cache(self, *args: P.args, **kwargs: P.kwargs) -> bool:
        """Return whether this call would be a hit. Nothing is computed."""
        if self._memory._store is None:
            return False
        _, look = await in_thread(self._find, None, args, kwargs)
        return look.state is State.HIT

    async def call_and_shelve(self, *args: P.args, **kwargs: P.kwargs) -> MemorizedResult[T]:
        """Make sure that the result is stored, and return a small stand-in for it."""
        value = await self(*args, **kwargs)
        if self._memory._store is None:
            return ShelvedValue(self._name, value)
        call = await in_thread(self._call_of, args, kwargs)
        if await in_thread(self._memory._mark, call.place) is None:  # it could not be stored
            return ShelvedValue(self._name, value)
        return MemorizedResult(self._memory, self._name, call.place, self._options.mmap_mode)

    async def forget(self, *args: P.args, **kwargs: P.kwargs) -> bool:
        """Remove the result of this one call, and return whether it was stored."""
        if self._memory._store is None:
            return False
        call = await in_thread(self._call_of, args, kwargs)
        return await self._memory._forget(call.place)

    async def clear(self) -> int:
        """Remove all results of this function, of every version of its code. Return how many there were."""
        return await self._memory._clear(self._identifier)

    async def explain(self, *args: P.args, **kwargs: P.kwargs) -> Explanation:
        """Say whether this call would be a hit, or why it would be a miss. Nothing is computed."""
        if self._memory._store is None:
            return Explanation(hit=False, reason="not cached")
        return await in_thread(self._explain, args, kwargs)

    def _explain(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Explanation:
        call, look = self._find(None, args, kwargs)
        fingerprint = call.key.fingerprint
        if look.state is State.HIT:
            return Explanation(hit=True, reason="hit", unseen=fingerprint.unseen)
        if look.state is not State.MISSING:
            reason = State.EXPIRED if look.state is State.STALE else look.state
            return Explanation(hit=False, reason=reason.value, unseen=fingerprint.unseen)
        meta = Entry(Body.VALUE, 0.0, self._metadata(call, 0.0), b"").meta()
        names = [*self._keys.binder.names, "what it closes over"]
        parts = {name: part.hex()[:16] for name, part in fingerprint.parts.items()}
        explanation = explain_missing(self._store, call.place, meta, names, parts)
        return replace(explanation, unseen=fingerprint.unseen)

    def statistics(self) -> FunctionStatistics:
        """Return what happened in this process so far. It does not touch the disk."""
        return replace(self._statistics)

    def _call_of(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Call:
        key = self._keys.make(args, kwargs)
        return _Call(Place(self._identifier, key.digest), key, args, kwargs)

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
        return reduce_function(self)

    def __aparallel_key__(self) -> Any:
        return self.__wrapped__

    def _options_to_send(self) -> FunctionOptions:
        return replace(self._options, pool=None)  # a pool belongs to its process

    def __repr__(self) -> str:
        return f"<MemorizedFunction {self._name} in {self._memory!r}>"

    def _say(self, level: int, what: str) -> None:
        if self._options.verbose >= level:
            sys.stderr.write(f"[memory] {self._name}: {what}\n")


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
        _mark_as_coroutine_function(self)

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T:
        """See :meth:`MemorizedFunction.__call__`."""
        return await self.__func__(self.__self__, *args, **kwargs)

    async def refresh(self, *args: P.args, **kwargs: P.kwargs) -> T:
        """See :meth:`MemorizedFunction.refresh`."""
        return await self.__func__.refresh(self.__self__, *args, **kwargs)

    call = refresh

    async def check_call_in_cache(self, *args: P.args, **kwargs: P.kwargs) -> bool:
        """See :meth:`MemorizedFunction.check_call_in_cache`."""
        return await self.__func__.check_call_in_cache(self.__self__, *args, **kwargs)

    async def call_and_shelve(self, *args: P.args, **kwargs: P.kwargs) -> MemorizedResult[T]:
        """See :meth:`MemorizedFunction.call_and_shelve`."""
        return await self.__func__.call_and_shelve(self.__self__, *args, **kwargs)

    async def forget(self, *args: P.args, **kwargs: P.kwargs) -> bool:
        """See :meth:`MemorizedFunction.forget`."""
        return await self.__func__.forget(self.__self__, *args, **kwargs)

    async def explain(self, *args: P.args, **kwargs: P.kwargs) -> Explanation:
        """See :meth:`MemorizedFunction.explain`."""
        return await self.__func__.explain(self.__self__, *args, **kwargs)

    async def clear(self) -> int:
        """See :meth:`MemorizedFunction.clear`: the results of all objects."""
        return await self.__func__.clear()

    def statistics(self) -> FunctionStatistics:
        """See :meth:`MemorizedFunction.statistics`."""
        return self.__func__.statistics()

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

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._function.__wrapped__(*args, **kwargs)


def _named(fn: Any) -> Any:
    """The function that gives a callable its name."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    return fn if getattr(fn, "__qualname__", None) else type(fn)


def _mark_as_coroutine_function(thing: Any) -> None:
    """Answer frameworks that ask whether *thing* is to be awaited: from Python 3.12 on inspect, before it asyncio."""
    mark = getattr(inspect, "_is_coroutine_mark", None)
    if mark is not None:
        thing._is_coroutine_marker = mark
    thing._is_coroutine = getattr(asyncio.coroutines, "_is_coroutine", None)


def _is_coroutine_function(fn: Any) -> bool:
    while isinstance(fn, functools.partial):
        fn = fn.func
    return inspect.iscoroutinefunction(fn) or (
        not inspect.isroutine(fn)
        and not isinstance(fn, type)
        and inspect.iscoroutinefunction(getattr(fn, "__call__", None))  # noqa: B004
    )


def _refuse_generators(fn: Any) -> None:
    if isinstance(fn, staticmethod | classmethod):
        raise TypeError("Put @memory.cache below @staticmethod or @classmethod, next to the function.")
    if not callable(fn):
        raise TypeError(f"memory.cache() takes a function, got {fn!r} ({type(fn).__name__}).")
    inner = fn
    while isinstance(inner, functools.partial):
        inner = inner.func
    called = inner if inspect.isroutine(inner) or isinstance(inner, type) else getattr(inner, "__call__", inner)  # noqa: B004
    if inspect.isgeneratorfunction(called) or inspect.isasyncgenfunction(called):
        name = getattr(inner, "__qualname__", repr(inner))
        raise TypeError(f"{name} is a generator function: what it yields cannot be remembered. Return a list instead.")


def _given(look: Look) -> Any:
    if look.is_error:
        raise look.value
    return look.value


def _shared(look: Look) -> _Computed:
    return _Computed(look.value, look.is_error, is_frozen(look.value) or look.is_error)


def _code_of(key: Key) -> str:
    return key.fingerprint.static.hex()[:16]


def _short(value: object) -> str:
    try:
        text = repr(value)
    except Exception:  # a repr is user code
        text = f"<{type(value).__qualname__}>"
    return text if len(text) <= 200 else f"{text[:199]}…"


# Threads that compute. Those of nested calls are not counted: they would wait for threads that wait for them.
_COMPUTING_THREADS: Final = 32
_limiters: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, anyio.CapacityLimiter] = weakref.WeakKeyDictionary()


def _computing_limiter(call: _Call | None = None) -> anyio.CapacityLimiter:
    from anyio import CapacityLimiter

    if (call is not None and call.deadline != math.inf) or (call is None and is_nested()):
        return CapacityLimiter(math.inf)
    loop = asyncio.get_running_loop()
    limiter = _limiters.get(loop)
    if limiter is None:
        limiter = _limiters[loop] = CapacityLimiter(_COMPUTING_THREADS)
    return limiter
