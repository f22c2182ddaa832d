"""Computing a result that is not there: once for all who ask, here, in a thread or on a pool; and storing it."""

from __future__ import annotations

import asyncio
import functools
import inspect
import math
import time
from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple

from aparallel._ground.call import Call
from aparallel._ground.hop import in_thread
from aparallel._memory.behind import behind
from aparallel._memory.computing_threads import ComputingThreads
from aparallel._memory.constants import is_frozen
from aparallel._memory.lookup import Look, Lookup, PendingCall, State, given
from aparallel._memory.single_flight import End, Flight, Outcome, fly, is_nested
from aparallel._memory.storing import NotStored, Storing
from aparallel.errors import UntrustedDirectoryError

if TYPE_CHECKING:
    from aparallel._memory.keys import Key


# Waiting for a computation in another process: seconds between two looks.
_FIRST_WAIT = 0.001
_LONGEST_WAIT = 0.05
# Bytes of a result that each of those who shared a computation unpickles on the loop, all in the same turn of it.
_SMALL = 2 << 10
# A call inside another memoized one waits at most so many seconds for another process, which may be waiting for us:
# then it computes, too.
_NESTED_PATIENCE = 30.0


class _Begun(Enum):
    BUSY = 1
    """Another process, or another call of this one, computes it."""
    READY = 2
    """It is ours to compute: its lock is held, where there are locks."""


class _Computed(NamedTuple):
    value: Any
    is_error: bool
    is_shareable: bool
    not_stored: NotStored | None = None


class Computation:
    """Answers the calls of one function: finds its results, and computes those that are not there.

    Args:
        on_pool: what stands for the function on a pool, which pickles.
        is_async: it runs on the loop.
    """

    def __init__(
        self, lookup: Lookup, storing: Storing, fn: Callable[..., Any], *, on_pool: Callable[..., Any], is_async: bool
    ) -> None:
        self._fn = fn
        self._on_pool = on_pool
        self._is_async = is_async
        self._lookup = lookup
        self._storing = storing
        self._options = lookup.options
        self._statistics = lookup.statistics
        self._name = lookup.name
        self._is_for_loop = is_async or lookup.options.pool is not None
        self._threads = ComputingThreads(fn)

    async def answer(self, key: Key | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the result of a call, or raise it; *key* is None if it has still to be made."""
        if key is not None and self._may_look_late():
            return await self.compute_once(self._lookup.call_of(args, kwargs, key, is_new=True))
        call, look = await in_thread(self._lookup.find, key, args, kwargs)
        if look.state is State.HIT:
            self._lookup.count_hit(look)
            return given(look)
        if look.state is State.STALE:
            self._lookup.count_hit(look)
            self._lookup.shelf.in_background(self.compute_once(call))
            return given(look)
        return await self.compute_once(call)

    def _may_look_late(self) -> bool:
        """Whether to look for a result where it would be computed, which saves a hop if it has to be.

        Not if it may be served stale, nor if it would have to wait until one of those threads has computed.
        """
        if not self._lookup.expects_miss or self._options.stale_while_revalidate:
            return False
        return self._is_for_loop or self._threads.has_free()

    async def compute_once(self, call: PendingCall) -> Any:
        """Wait for the computation of *call*, which other callers share, and return its result."""
        shelf = self._lookup.shelf
        if is_nested():
            call.deadline = time.monotonic() + _NESTED_PATIENCE
        key = (shelf.name, call.place.key, call.is_refresh, shelf.generation(call.place))
        outcome, is_first = await fly(key, self._name, lambda flight: self._lead(flight, call))
        if outcome.end is End.ERROR:
            try:
                raise outcome.value
            finally:
                del outcome  # or this frame would keep the error, which has this frame
        computed: _Computed = outcome.value
        if not is_first:
            self._statistics.shared += 1
            if not computed.is_shareable:
                look = self._lookup.look_at_once(call.place.key, _SMALL)
                if look is None:
                    look = (await in_thread(self._lookup.find, call.key, call.args, call.kwargs))[1]
                if look.state is State.HIT:
                    return given(look)
        elif computed.not_stored is not None:
            problem, part = computed.not_stored
            shelf.warn_once(part, f"The results of {self._name} are not stored: {problem}")
        if computed.is_error:
            try:
                raise computed.value
            finally:
                del computed, outcome
        return computed.value

    async def _compute(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the function where it belongs: on the loop, on the pool, or in a thread."""
        if self._is_async:
            return await self._fn(*args, **kwargs)
        pool = self._options.pool
        if pool is not None:
            return await pool.run(Call(self._on_pool, *args, **kwargs))
        return await self._threads.run(functools.partial(self._call_here, args, kwargs), is_nested=is_nested())

    async def only_compute(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The same where nothing is remembered. It counts as a miss once it is done."""
        try:
            value = await self._compute(args, kwargs)
        except Exception:
            self._statistics.misses += 1
            raise
        self._statistics.misses += 1
        return value

    def _call_here(self, args: Any, kwargs: Any) -> Any:
        value = self._fn(*args, **kwargs)
        if inspect.iscoroutine(value):
            value.close()
            raise TypeError(f"{self._name} is no coroutine function, but returned a coroutine. Make it `async def`.")
        return value

    # A computation, led by one task for all who wait

    async def _lead(self, flight: Flight, call: PendingCall) -> None:
        if call.is_abandoned:  # with an earlier flight, of which a thread may still have it
            call = call.again()
        wait = _FIRST_WAIT
        while not await self._try(flight, call):
            await asyncio.sleep(wait)
            wait = min(1.5 * wait, _LONGEST_WAIT)

    async def _try(self, flight: Flight, call: PendingCall) -> bool:
        """Return False if somebody else computes it."""
        if self._is_for_loop:
            return await self._compute_on_loop(flight, call)
        step = functools.partial(self._compute_in_thread, flight, call)
        return await self._threads.run(step, is_nested=call.deadline != math.inf)

    def _compute_in_thread(self, flight: Flight, call: PendingCall) -> bool:
        """Look, lock, compute, store and unlock, all in this thread, which nobody can stop."""
        if not flight.enter_thread():
            return True
        try:
            begun = self._begin(call)
            if begun is _Begun.BUSY:
                flight.leave_thread()
                return False
            if isinstance(begun, Look):
                flight.end(Outcome(End.VALUE, _shared(begun)))
            elif not flight.is_wanted:
                self._unlock(call)
                flight.leave_thread()
            else:
                self._lookup.say(2, "computing")
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
        return True

    async def _compute_on_loop(self, flight: Flight, call: PendingCall) -> bool:
        """Do the same on the loop, but for what touches the disk."""
        flight.give_up = functools.partial(self._abandon, call)
        try:
            begun = await in_thread(self._begin, call)
            if begun is _Begun.BUSY:
                return False
            if isinstance(begun, Look):
                flight.end(Outcome(End.VALUE, _shared(begun)))
                return True
            self._lookup.say(2, "computing")
            started = time.perf_counter()
            try:
                value = await self._compute(call.args, call.kwargs)
            except Exception as error:
                flight.end(await in_thread(self._failed, call, error, time.perf_counter() - started))
            else:
                flight.end(await in_thread(self._finish, call, value, time.perf_counter() - started))
            return True
        except BaseException:
            self._abandon(call)
            raise

    def _begin(self, call: PendingCall) -> _Begun | Look:
        """Take the lock of the call's key. If its result is there by now, give the lock back and return the result."""
        try:
            is_locked = self._lookup.store.try_lock(call.place.key)
        except UntrustedDirectoryError:
            raise
        except OSError:
            is_locked = None
        if is_locked is False:
            found = self._found(call) if call.is_new else None  # whoever has the lock may be computing it anew
            call.is_new = False
            if found is not None:
                return found
            if time.monotonic() < call.deadline:
                return _Begun.BUSY
        with call.mutex:
            call.is_locked = bool(is_locked)
            is_abandoned = call.is_abandoned
        if is_abandoned:
            self._unlock(call)
            return _Begun.BUSY
        call.tags = self._lookup.tags_of(call)
        call.removals = self._lookup.removals_at(call.place)
        found = None if call.is_refresh else self._found(call)
        if found is not None:
            self._unlock(call)
            return found
        return _Begun.READY

    def _found(self, call: PendingCall) -> Look | None:
        """Return the result, if it is there."""
        look = self._lookup.look_for(call)
        if look.state is not State.HIT:
            return None
        self._lookup.count_hit(look)
        return look

    def _finish(self, call: PendingCall, value: Any, seconds: float) -> Outcome:
        """Store the result and give the lock back. What goes wrong with storing is told, never raised."""
        self._statistics.misses += 1
        self._lookup.say(1, f"computed in {seconds:.3g} s")
        not_stored = self._store(call, value, seconds, is_error=False)
        if not_stored is None and self._options.mmap_mode is not None and not is_frozen(value):
            look = self._lookup.look_for(call)  # mapped from the first call on: everyone shares the pages
            value = look.value if look.state is State.HIT else value
        is_shareable = is_frozen(value) or not_stored is not None
        return Outcome(End.VALUE, _Computed(value, False, is_shareable, not_stored))

    def _failed(self, call: PendingCall, error: BaseException, seconds: float) -> Outcome:
        """Store the exception if that is asked for, and give the lock back."""
        self._statistics.misses += 1
        wanted = self._options.cache_errors
        kinds = (Exception,) if wanted is True else wanted or ()
        if not isinstance(error, kinds):
            self._unlock(call)
            return Outcome(End.ERROR, error)
        not_stored = self._store(call, error, seconds, is_error=True)
        return Outcome(End.VALUE, _Computed(error, True, True, not_stored))

    def _store(self, call: PendingCall, value: Any, seconds: float, *, is_error: bool) -> NotStored | None:
        """Store, and give the lock back. Returns what went wrong."""
        try:
            return self._storing.store(call, value, seconds, is_error=is_error)
        finally:
            self._unlock(call)

    def _unlock(self, call: PendingCall) -> None:
        with call.mutex:
            if call.is_locked:
                call.is_locked = False
                self._lookup.store.unlock(call.place.key)

    def _abandon(self, call: PendingCall) -> None:
        """Give the lock back without waiting, also if a thread is about to take it."""
        with call.mutex:
            call.is_abandoned = True
            is_locked = call.is_locked
        if is_locked:
            behind.call_later(0.0, functools.partial(self._unlock, call))


def _shared(look: Look) -> _Computed:
    return _Computed(look.value, look.is_error, is_frozen(look.value) or look.is_error)
