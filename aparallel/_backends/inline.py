"""Workers that are the event loop itself: no parallelism for sync functions, concurrency for coroutine functions."""

from __future__ import annotations

import asyncio
import functools
import time
from collections import deque
from collections.abc import Awaitable
from types import CoroutineType
from typing import TYPE_CHECKING, Any

from aparallel._ground.exceptions import wrap_bare
from aparallel._ground.loops import task_in_turn
from aparallel.abc import Backend, Batch, DirectEncoder, Exit, Timings, Worker, WorkerEvents

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence
    from contextvars import Context

    from aparallel._ground.call import Call
    from aparallel.abc import Moments, OnCancel, Sharing

# What an initializer that is cancelled has for its clean-up.
_PARTING_SECONDS = 1.0

# After a call that held the loop for so long, no worker begins another for so many turns of the loop: a deadline or
# Ctrl-C that came meanwhile takes some, from task to task, until it has what waits here taken back.
_LONG_SECONDS = 0.001
_TURNS = 6


class _Pause:
    """The turns of the loop that its other users have before the next call."""

    def __init__(self) -> None:
        self._turns = 0
        self._end = asyncio.Event()

    def begin(self, loop: asyncio.AbstractEventLoop) -> None:
        """A call held the loop for long."""
        if not self._turns:
            self._end.clear()
            loop.call_soon(self._turn, loop)
        self._turns = _TURNS

    def _turn(self, loop: asyncio.AbstractEventLoop) -> None:
        self._turns -= 1
        if self._turns:
            loop.call_soon(self._turn, loop)
        else:
            self._end.set()

    async def over(self) -> None:
        """Return when there is none; at once, as a rule."""
        while self._turns:  # who waits as well may have begun another
            await self._end.wait()


class InlineBackend(Backend):
    """Runs calls on the loop, which other tasks get back between two calls."""

    name = "inline"
    can_kill = True  # a coroutine can; while a sync call runs, nobody can ask
    can_time = False
    on_cancel: OnCancel = "kill"
    runs_on_loop = True

    def __init__(self, *, initializer: Callable[..., object] | None = None, initargs: tuple[Any, ...] = ()) -> None:
        self._timings = Timings()
        self._initialize = None if initializer is None else functools.partial(initializer, *initargs)
        self._initializing: asyncio.Task[tuple[Any, bool]] | None = None
        self._workers: set[InlineWorker] = set()
        self._pause = _Pause()

    def encoder(self, sharing: Sharing, moments: Moments) -> DirectEncoder:
        return DirectEncoder(self._timings)

    def start(self, loop: asyncio.AbstractEventLoop, events: WorkerEvents) -> InlineWorker:
        worker = InlineWorker(loop, events, self._workers, self._pause, self._initialized)
        self._workers.add(worker)
        return worker

    async def _initialized(self) -> None:
        """Run the initializer, or wait until it has run: all workers are one thread, so once is enough.

        Raises what it raises; the next worker tries again.
        """
        if self._initialize is None:
            return
        if self._initializing is None:
            loop = asyncio.get_running_loop()
            initializing = _settle(_call(self._initialize), loop)
            self._initializing = task_in_turn(loop, initializing, "aparallel-inline-initializer")
        # A worker that is ended meanwhile leaves it to the others, and to aclose().
        task = self._initializing
        value, failed = await asyncio.shield(task)
        if self._initializing is task:
            self._initializing = None
        if failed:
            raise value
        self._initialize = None

    async def aclose(self) -> None:
        if self._initializing is not None:
            self._initializing.cancel()
            await asyncio.wait([self._initializing], timeout=_PARTING_SECONDS)

    def kill_all(self) -> None:
        self._workers.clear()


class InlineWorker(Worker):
    """One task on the loop, while there are calls."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        events: WorkerEvents,
        alive: set[InlineWorker],
        pause: _Pause,
        initialized: Callable[[], Coroutine[Any, Any, None]],
    ) -> None:
        self._loop = loop
        self._events = events
        self._alive = alive
        self._pause = pause
        self._calls: deque[tuple[Context, Call[Any]]] = deque()
        self._since: float | None = None
        self._task: asyncio.Task[None] | None = None
        self._running: asyncio.Task[tuple[Any, bool]] | None = None
        self._ended = False
        self._ready = False
        self._error: BaseException | None = None
        self._initialized = initialized
        # Told by callbacks, because a task that is cancelled before its first step runs no ``finally``.
        self._starting = task_in_turn(loop, self._start(), "aparallel-inline-start")
        self._starting.add_done_callback(self._on_started)

    def send(self, batches: Sequence[Batch]) -> None:
        for batch in batches:
            context = batch.owner.context
            self._calls.extend((context, call) for call in batch.payloads)
        self._wake()

    def _wake(self) -> None:
        if self._task is None and self._ready and self._calls:
            self._task = task_in_turn(self._loop, self._serve(), "aparallel-inline")
            self._task.add_done_callback(self._on_served)

    def recall(self) -> None:
        self._events.on_recalled(self._take_back())

    def _take_back(self) -> int:
        count = len(self._calls)
        self._calls.clear()
        return count

    def look(self) -> None:
        """Outcomes are told at once; none is ever kept back."""

    def running_since(self) -> float | None:
        return self._since

    def kill(self) -> None:
        self._ended = True
        if not self._starting.done():
            self._starting.cancel()
        elif self._running is not None:
            self._running.cancel()
        elif self._task is None:
            self._loop.call_soon(self._end)

    def retire(self) -> None:
        self.kill()

    async def _start(self) -> None:
        try:
            await self._initialized()
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self._error = wrap_bare(error)
        else:
            self._ready = True

    def _on_started(self, task: asyncio.Task[None]) -> None:
        if self._ready and not self._ended:
            self._events.on_ready()
            self._wake()
        else:
            self._end()

    async def _serve(self) -> None:
        while True:
            await self._pause.over()
            if not self._calls or self._ended:
                return
            context, call = self._calls.popleft()
            started = self._since = time.monotonic()
            value, failed = await self._outcome(context.copy(), call, started)
            self._since = None
            if self._ended:  # we were stopped: this outcome is nobody's
                return
            self._events.on_outcomes([value], [0] if failed else [], time.monotonic() - started)
            del context, call, value
            await asyncio.sleep(0)

    def _on_served(self, task: asyncio.Task[None]) -> None:
        self._task = None
        if self._ended or task.cancelled():  # cancelled: the loop is shutting down
            self._ended = True
            self._end()
        else:
            self._wake()

    async def _outcome(self, context: Context, call: Call[Any], started: float) -> tuple[Any, bool]:
        """Return what the call gave, or raised, and whether it failed."""
        try:
            value = context.run(call)
        except BaseException as error:
            return wrap_bare(error), True
        finally:
            if time.monotonic() - started > _LONG_SECONDS:
                self._pause.begin(self._loop)
        if not hasattr(type(value), "__await__"):
            return value, False
        self._running = self._loop.create_task(_settle(value, self._loop), context=context)
        try:
            await asyncio.wait([self._running])
            if self._running.cancelled():
                return wrap_bare(asyncio.CancelledError()), True
            return self._running.result()
        finally:
            running, self._running = self._running, None
            if not running.done() and not self._loop.is_closed():  # we are cancelled, and the call must not outlive us
                running.cancel()
                await asyncio.wait([running])
            if isinstance(value, CoroutineType):
                value.close()  # it may have been cancelled before its first step

    def _end(self) -> None:
        if self in self._alive:
            self._alive.discard(self)
            self._events.on_exit(Exit(unstarted=self._take_back(), ready=self._ready, error=self._error))


async def _call(fn: Callable[[], object]) -> None:
    value = fn()
    if isinstance(value, Awaitable):
        await value


async def _settle(awaitable: Any, loop: asyncio.AbstractEventLoop) -> tuple[Any, bool]:
    """Await it and return its outcome. A task that raised SystemExit would end the loop."""
    try:
        return await awaitable, False
    except asyncio.CancelledError:
        raise
    except BaseException as error:
        if loop.is_closed():  # a GeneratorExit: nobody asks for the outcome
            raise
        return wrap_bare(error), True
