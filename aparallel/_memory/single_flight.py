"""One computation for all who ask at the same time, in whichever task, loop or thread of this process.

A computation is a *flight*. The first who asks starts it, as a task of its own on the loop of that first one; all, the
first included, wait for it. Who is cancelled leaves; when the last one has left, the flight is cancelled too, unless a
thread has it, which cannot be stopped. When the task ends before the flight does, or its loop runs no more, the others
start anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from contextvars import ContextVar, copy_context
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple

from aparallel.errors import RecursiveCallError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Hashable

_LOOK_AT_LOOP_EVERY = 0.5  # seconds


class End(Enum):
    """How a flight ended."""

    VALUE = 1
    ERROR = 2
    ABANDONED = 3
    """Whoever computed it is gone. Nothing is known about the result."""


class Outcome(NamedTuple):
    """What came of a flight: *value* is the result or the exception."""

    end: End
    value: Any = None


_GONE = Outcome(End.ABANDONED)


class Flight:
    """A computation under way. Its attributes are guarded by the module's mutex."""

    def __init__(self, key: Hashable, loop: asyncio.AbstractEventLoop) -> None:
        self.key = key
        self.loop = loop
        self.task: asyncio.Task[None] | None = None
        self.outcome: Outcome | None = None
        self.waiters: dict[asyncio.Future[None], asyncio.AbstractEventLoop] = {}
        # The flights that calls within this computation are waiting for.
        self.waits_for: list[Flight] = []
        # A thread has it, and will end it whatever happens to the task.
        self.in_thread = False
        # Lets go of what the task holds, if its loop runs no more. Called in any thread.
        self.give_up: Callable[[], object] = lambda: None

    @property
    def is_wanted(self) -> bool:
        """Whether anyone is waiting for it."""
        return bool(self.waiters)

    def end(self, outcome: Outcome) -> None:
        """End it, from any thread. Only the first end counts."""
        with _mutex:
            if self.outcome is not None:
                return
            self.outcome = outcome if self.waiters else _GONE
            if _flights.get(self.key) is self:
                del _flights[self.key]
            waiters = list(self.waiters.items())
        for future, loop in waiters:
            with contextlib.suppress(RuntimeError):  # that loop has closed
                loop.call_soon_threadsafe(_wake, future)

    def enter_thread(self) -> bool:
        """Note that this thread takes it; False if nobody wants it any more."""
        with _mutex:
            self.in_thread = self.is_wanted and self.outcome is None
            return self.in_thread

    def leave_thread(self) -> None:
        """Note that the thread gives it back unfinished; if there is nobody to take it, it ends."""
        with _mutex:
            self.in_thread = False
            task = self.task
            is_lost = task is None or task.done() or not self.is_wanted
        if is_lost:
            self.end(_GONE)

    def leave(self, future: asyncio.Future[None]) -> None:
        """One who waited is gone."""
        with _mutex:
            self.waiters.pop(future, None)
            if not self.waiters and self.outcome is not None:
                self.outcome = _GONE  # an error's traceback has frames that refer to this flight
            stop = not self.waiters and self.outcome is None and not self.in_thread
            if stop and _flights.get(self.key) is self:
                del _flights[self.key]
        if stop:
            self._cancel()

    def abandon(self) -> None:
        """End it, in any thread, as its loop runs no more. Should that go on, the task is cancelled."""
        self.end(_GONE)
        self.give_up()
        self._cancel()

    def _cancel(self) -> None:
        task = self.task  # which another thread may be about to take away
        if task is not None:
            with contextlib.suppress(RuntimeError):  # its loop has closed
                self.loop.call_soon_threadsafe(task.cancel)


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _reset() -> None:
    global _mutex
    _mutex = threading.Lock()
    _flights.clear()


# Every flight of this process that has not ended, by key; guarded by the mutex.
_flights: dict[Hashable, Flight] = {}
_mutex = threading.Lock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset)

# The flight whose computation this context runs in.
_current: ContextVar[Flight | None] = ContextVar("aparallel_flight", default=None)


def is_nested() -> bool:
    """Whether this runs inside a memoized call."""
    return _current.get() is not None


async def fly(key: Hashable, name: str, lead: Callable[[Flight], Coroutine[Any, Any, None]]) -> tuple[Outcome, bool]:
    """Wait for the flight of *key*, which *lead* begins if there is none: a coroutine that ends the flight it gets.

    Returns the outcome, never an abandoned one, and whether the flight was begun for this caller.

    Cancellation: leaves the flight to the others.

    Raises:
        RecursiveCallError: the flight waits for this very call.
    """
    loop = asyncio.get_running_loop()
    while True:
        future: asyncio.Future[None] = loop.create_future()
        outer = _current.get()
        with _mutex:
            flight = _flights.get(key)
            is_first = flight is None
            if flight is None:
                flight = _flights[key] = Flight(key, loop)
            elif outer is not None and _leads_to(flight, outer):
                raise RecursiveCallError(
                    f"{name} awaits its own result, directly or through other memoized functions, so it would wait "
                    f"for ever. "
                    f"Break the circle, for instance by calling the function itself (f.__wrapped__).",
                    call=name,
                )
            flight.waiters[future] = loop
            if outer is not None:
                outer.waits_for.append(flight)
        try:
            if is_first:
                context = copy_context()
                context.run(_current.set, flight)
                flight.task = loop.create_task(_run(flight, lead), context=context)
            await _wait(flight, future, loop)
            outcome = flight.outcome
        finally:
            flight.leave(future)
            if outer is not None:
                with _mutex:
                    outer.waits_for.remove(flight)
        if outcome is not None and outcome.end is not End.ABANDONED:
            return outcome, is_first


async def _wait(flight: Flight, future: asyncio.Future[None], loop: asyncio.AbstractEventLoop) -> None:
    if flight.loop is loop:
        await future
        return
    while not future.done():  # that loop may have been closed, or left, without a word
        await asyncio.wait([future], timeout=_LOOK_AT_LOOP_EVERY)
        if not flight.loop.is_running() and not flight.in_thread:
            flight.abandon()
            return


async def _run(flight: Flight, lead: Callable[[Flight], Coroutine[Any, Any, None]]) -> None:
    try:
        await lead(flight)
    except asyncio.CancelledError as error:
        if not _is_cancelled():  # the function raised it, perhaps of something that it waited for
            flight.end(Outcome(End.ERROR, error))
        elif not flight.in_thread:
            flight.end(_GONE)
        raise
    except BaseException as error:
        flight.end(Outcome(End.ERROR, error))
        if isinstance(error, SystemExit | KeyboardInterrupt):
            raise
    finally:
        if not flight.in_thread:
            flight.end(_GONE)
        flight.task = None  # whose context refers to the flight


def _is_cancelled() -> bool:
    """Whether somebody cancelled this very task."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _leads_to(start: Flight, goal: Flight) -> bool:
    """Whether *start* waits for *goal*, directly or through others."""
    seen = {id(start)}
    left = [start]
    while left:
        flight = left.pop()
        if flight is goal:
            return True
        for other in flight.waits_for:
            if id(other) not in seen:
                seen.add(id(other))
                left.append(other)
    return False
