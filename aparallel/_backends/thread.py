"""Workers that are threads, one each. A thread cannot be stopped: it is waited for, or abandoned."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import queue
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from aparallel._ground.exceptions import wrap_bare
from aparallel._ground.outcomes import await_on
from aparallel.abc import Backend, Batch, DirectEncoder, Exit, Timings, Worker, WorkerEvents

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextvars import Context

    from aparallel._ground.call import Call
    from aparallel.abc import Moments, OnCancel, Sharing

# Outcomes of short calls are told together, but wait no longer than this while calls go on finishing.
_PATIENCE_SECONDS = 0.001


class ThreadBackend(Backend):
    """Starts a thread per worker: not anyio's, whose limiter frees a slot while its thread still runs."""

    name = "thread"
    can_kill = False
    can_time = False
    on_cancel: OnCancel = "wait"

    def __init__(self, *, initializer: Callable[..., object] | None = None, initargs: tuple[Any, ...] = ()) -> None:
        self._timings = Timings()
        self._initialize = None if initializer is None else functools.partial(initializer, *initargs)
        self._workers: set[ThreadWorker] = set()

    def encoder(self, sharing: Sharing, moments: Moments) -> DirectEncoder:
        return DirectEncoder(self._timings)

    def start(self, loop: asyncio.AbstractEventLoop, events: WorkerEvents) -> ThreadWorker:
        worker = ThreadWorker(loop, events, self._workers, self._initialize)
        self._workers.add(worker)
        return worker

    async def aclose(self) -> None:
        for worker in list(self._workers):  # what they run is nobody's
            worker.abandon()

    def kill_all(self) -> None:
        for worker in self._workers:
            worker.abandon()
        self._workers.clear()


class ThreadWorker(Worker):
    """One thread. It takes calls from the left of a deque; the loop takes unstarted ones back from the right."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        events: WorkerEvents,
        alive: set[ThreadWorker],
        initialize: Callable[[], object] | None,
    ) -> None:
        self._loop = loop
        self._events = events
        self._alive = alive
        self._calls: deque[tuple[Context, Call[Any]]] = deque()
        # Outcomes on their way: value or exception, whether it failed, seconds.
        self._finished: deque[tuple[Any, bool, float]] = deque()
        self._since: float | None = None
        self._told = 0.0
        self._wakes: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._runner: asyncio.Runner | None = None
        # The coroutine that runs, with its loop. Set in the thread, looked at from outside.
        self._awaited: tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]] | None = None
        self._initialize = initialize
        self._ready = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._serve, name="aparallel-worker", daemon=True)
        self._thread.start()

    def send(self, batches: Sequence[Batch]) -> None:
        for batch in batches:
            context = batch.owner.context
            self._calls.extend((context, call) for call in batch.payloads)
        self._wakes.put(True)

    def recall(self) -> None:
        self._events.on_recalled(self._take_back())

    def _take_back(self) -> int:
        count = 0
        with contextlib.suppress(IndexError):
            while True:
                self._calls.pop()
                count += 1
        return count

    def look(self) -> None:
        values: list[Any] = []
        failed: list[int] = []
        total = 0.0
        while self._finished:
            value, is_failure, seconds = self._finished.popleft()
            if is_failure:
                failed.append(len(values))
            values.append(value)
            total += seconds
        if values:
            self._events.on_outcomes(values, failed, total)

    def running_since(self) -> float | None:
        return self._since

    def kill(self) -> None:
        raise NotImplementedError("a thread cannot be stopped")

    def retire(self) -> None:
        self._wakes.put(False)

    def abandon(self) -> None:
        """The pool or its loop is gone: start nothing more, and end after the current call. Cancel a coroutine."""
        self._calls.clear()
        self.retire()
        if (awaited := self._awaited) is not None:
            loop, task = awaited
            with contextlib.suppress(RuntimeError):  # it has just ended
                loop.call_soon_threadsafe(task.cancel)

    # In the thread

    def _serve(self) -> None:
        try:
            if self._initialize is not None:
                value = self._initialize()
                if hasattr(type(value), "__await__"):
                    self._await(value, None)
            self._in_loop(self._on_ready)
        except BaseException as error:
            self._error = wrap_bare(error)
        else:
            while self._wakes.get():
                self._run_all()
        if self._runner is not None:
            self._runner.close()
        self._in_loop(self._on_end)

    def _run_all(self) -> None:
        while self._calls:
            try:
                context, call = self._calls.popleft()
            except IndexError:  # taken back in between
                return
            self._run(context.copy(), call)
            del context, call

    def _run(self, context: Context, call: Call[Any]) -> None:
        started = self._since = time.monotonic()
        try:
            value = context.run(call)
            if hasattr(type(value), "__await__"):
                value = self._await(value, context)
            failed = False
        except BaseException as error:  # SystemExit too: it is the call's outcome, not the thread's end
            value, failed = wrap_bare(error), True
        ended = time.monotonic()
        self._since = None
        self._finished.append((value, failed, ended - started))
        del value  # an error's traceback has this frame
        if not self._calls or ended - self._told > _PATIENCE_SECONDS:
            self._told = ended
            self._in_loop(self.look)

    def _on_ready(self) -> None:
        self._ready = True
        self._events.on_ready()

    def _await(self, awaitable: Any, context: Context | None) -> Any:
        if self._runner is None:
            self._runner = asyncio.Runner()

        async def wait() -> Any:
            task = asyncio.current_task()
            assert task is not None
            self._awaited = task.get_loop(), task
            try:
                return await awaitable
            finally:
                self._awaited = None

        return await_on(self._runner, wait(), context)

    def _in_loop(self, callback: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has closed: nobody is there to be told
            self._loop.call_soon_threadsafe(callback)

    def _on_end(self) -> None:
        self._thread.join()  # it has nothing left to do
        self._alive.discard(self)
        self.look()
        self._events.on_exit(Exit(unstarted=self._take_back(), ready=self._ready, error=self._error))
