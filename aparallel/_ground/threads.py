"""Threads for work that would hold an event loop: a few for each loop, which start when needed and end with it.

Not anyio's, because a job there and back is to cost little more than the two wake-ups: ``to_thread.run_sync`` also
takes three turns of the loop and a queue in Python, and its limiter frees a slot while its thread still runs.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import os
import sys
import threading
import weakref
from _queue import SimpleQueue
from contextvars import Context, copy_context
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from aparallel._ground.forks import renew_after_fork
from aparallel._ground.loops import LoopEnd, running_loop

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


class Threads:
    """At most *limit* threads for each event loop that uses them, and at most *idle* of them with nothing to do."""

    def __init__(self, limit: int, *, idle: int | None = None) -> None:
        self._limit = limit
        self._idle = limit if idle is None else idle
        self._crews: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Crew] = weakref.WeakKeyDictionary()
        renew_after_fork(self)
        _all.add(self)

    def start(self, fn: Callable[..., T], *args: object) -> asyncio.Future[T]:
        """Have a thread run ``fn(*args)``, in a copy of this context, and return the future of its result.

        Jobs begin in the order of their arrival. One whose future is cancelled before that never runs; later, it runs
        on to its end, and only then another has its place.
        """
        loop = running_loop()
        crew = self._crews.get(loop)
        if crew is None:
            crew = self._crews[loop] = _Crew(self._limit, self._idle)
            LoopEnd(loop, functools.partial(crew.jobs.put, _End.ALL))
        return crew.start(loop, fn, args)

    def has_free(self) -> bool:
        """Whether a job for the running loop could begin now."""
        crew = self._crews.get(running_loop())
        return crew is None or crew.has_free()

    def forget(self) -> None:
        """Begin anew: there are no threads any more."""
        self._crews.clear()

    def after_fork(self) -> None:
        self.forget()


def start_apart(fn: Callable[..., T], *args: object) -> asyncio.Future[T]:
    """Have a thread of its own run ``fn(*args)``, for jobs that may wait for others without end.

    Nor does the interpreter's exit wait for it.
    """
    loop = running_loop()
    future: asyncio.Future[T] = loop.create_future()
    job = _Job(loop, future, None, copy_context(), [fn, *args])
    _start_thread(threading.Thread(target=job.run, name="aparallel-thread-apart", daemon=True))
    return future


def _start_thread(thread: threading.Thread) -> None:
    """Start a thread, which outlives this context.

    Raises:
        RuntimeError: no more can be had.
    """
    if sys.is_finalizing():  # Python 3.11 would wait for it to begin, which it cannot any more
        raise RuntimeError("no thread can be started any more: the interpreter is ending")
    Context().run(thread.start)


def afterwards(fn: Callable[[], object]) -> None:
    """Call *fn*, which must not raise, when this thread has told its loop of its job's result; else at once.

    For what the job leaves to be done and nobody waits for. Until then the thread counts as busy.
    """
    if _leftovers.has_job:
        _leftovers.due.append(fn)
    else:
        fn()


def catch_up() -> None:
    """Do at once what this thread's job has left for :func:`afterwards`, as a job must before it waits for that."""
    _leftovers.clear_away()


class _Leftovers(threading.local):
    """What this thread does after its job."""

    def __init__(self) -> None:
        self.has_job = False
        self.due: list[Callable[[], object]] = []

    def clear_away(self) -> None:
        while self.due:
            self.due.pop()()


_leftovers = _Leftovers()


class _Job(NamedTuple):
    """What a thread is to run.

    Attributes:
        future: of the result, which belongs to *loop*.
        done: called on the loop when the thread is free for another job; None if it never is.
        call: a function and its arguments. Emptied when it has run: whoever is told may want that memory, and what is
            done :func:`afterwards` may take long.
    """

    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Any]
    done: Callable[[], None] | None
    context: Context
    call: list[Any]

    def run(self) -> None:
        """Run in a thread, and tell the loop."""
        value: object = None
        error: BaseException | None = None
        _leftovers.has_job = True
        if not self.future.cancelled():
            try:
                value = self.context.run(*self.call)
            except StopIteration as raised:  # which no future takes
                error = RuntimeError(f"{self.call[0]!r} raised StopIteration")
                error.__cause__ = raised
            except BaseException as raised:
                error = raised
        self.call.clear()
        loop, done = self.loop, self.done
        at_once, later = (None, done) if _leftovers.due else (done, None)
        with contextlib.suppress(RuntimeError):  # the loop has closed: nobody is there to be told
            loop.call_soon_threadsafe(_deliver, self.future, value, error, at_once)
        error = None  # its traceback has this frame,
        del self  # and the future has the error
        _leftovers.has_job = False
        _leftovers.clear_away()
        if later is not None:
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(later)


def _deliver(
    future: asyncio.Future[Any], value: object, error: BaseException | None, done: Callable[[], None] | None
) -> None:
    if done is not None:
        done()
    if future.cancelled():
        return
    if error is None:
        future.set_result(value)
    else:
        future.set_exception(error)


class _End(Enum):
    """What a thread finds in the place of a job when it is to end."""

    ALL = "all"
    """All threads of the crew: who gets it puts it back for the others."""
    ONE = "one"
    """Whichever gets it."""


class _Crew:
    """The threads of one loop, on which alone the methods are called and the counts change."""

    __slots__ = ("_idle", "_limit", "_threads", "_unfinished", "jobs")

    def __init__(self, limit: int, idle: int) -> None:
        self.jobs: SimpleQueue[_Job | _End] = SimpleQueue()
        self._limit = limit
        self._idle = idle
        self._threads = 0
        self._unfinished = 0

    def start(
        self, loop: asyncio.AbstractEventLoop, fn: Callable[..., T], args: tuple[object, ...]
    ) -> asyncio.Future[T]:
        if self._unfinished >= self._threads and self._threads < self._limit:
            self._add_thread()
        future: asyncio.Future[T] = loop.create_future()
        self._unfinished += 1
        self.jobs.put(_Job(loop, future, self._finished, copy_context(), [fn, *args]))
        return future

    def has_free(self) -> bool:
        return self._unfinished < self._limit

    def _finished(self) -> None:
        self._unfinished -= 1
        if self._threads - self._unfinished > self._idle:
            self._threads -= 1
            self.jobs.put(_End.ONE)

    def _add_thread(self) -> None:
        thread = threading.Thread(target=_serve, args=[self.jobs], name="aparallel-thread", daemon=True)
        _serving[thread] = self.jobs
        try:
            _start_thread(thread)
        except RuntimeError:
            del _serving[thread]
            if not self._threads:  # otherwise those that are there will do
                raise
        else:
            self._threads += 1


def _serve(jobs: SimpleQueue[_Job | _End]) -> None:
    while isinstance(job := jobs.get(), _Job):
        job.run()
        del job  # while we wait for the next
    if job is _End.ALL:
        jobs.put(job)
    _serving.pop(threading.current_thread(), None)


# Threads that have not ended, and what they take jobs from. They are daemons, so that one of a loop that was never
# closed does not keep the interpreter from exiting, but what they are doing then is done to its end.
_serving: dict[threading.Thread, SimpleQueue[_Job | _End]] = {}
_all: weakref.WeakSet[Threads] = weakref.WeakSet()


@atexit.register
def _end_all() -> None:
    serving = dict(_serving)
    for jobs in serving.values():
        jobs.put(_End.ALL)
    for thread in serving:
        thread.join()
    # A function that was registered with atexit before us runs after this one, and may use a loop that had threads.
    for threads in list(_all):
        threads.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_serving.clear)
