"""Runs the work of dump, load and inspect in a thread, reads for it what only the loop can, and tells how far it is."""

from __future__ import annotations

import asyncio
import io
import threading
from typing import TYPE_CHECKING, Any, TypeVar

from aparallel._ground.bars import checked_progress, load_tqdm
from aparallel._ground.handover import Inflow
from aparallel._ground.hop import in_thread
from aparallel._ground.stoppable import Stop, Stopped, WaitsLong, ended, in_stoppable_thread
from aparallel._ground.threads import start_apart

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from aparallel._ground.bars import Bar, ProgressOption

T = TypeVar("T")

_LOOK_AT_LOOP_EVERY = 0.1  # seconds


async def in_thread_with(
    work: Callable[[Stop, Meter], T], progress: ProgressOption, name: str, *, file: Any = None
) -> T:
    """Run *work* in a thread until it is done or the caller is cancelled, and tell its progress.

    Args:
        file: the user's own that is read or written, if one is.
    """
    # Who reads a pipe may wait for who writes to it, and must not have the thread that he needs. What is behind a path
    # is found out in the thread.
    apart = file is not None and not isinstance(file, io.BytesIO)
    stop, meter = Stop(has_own_thread=apart), Meter()
    reporter = await Progress.opened(progress, name)
    watching = reporter.watching(meter)
    if watching is not None:
        meter.tell_all = reporter.telling(meter, stop)

    async def run() -> T:
        return await in_stoppable_thread(
            lambda: work(stop, meter), stop.set, meanwhile=watching, apart=stop.has_own_thread
        )

    try:
        try:
            result = await run()
        except WaitsLong:
            stop.has_own_thread = True
            result = await run()
        reporter.finish(meter.done())
    except Stopped:
        reporter.raise_failure()
        raise
    finally:
        reporter.close()
    return result


async def serve_thread(
    give: Callable[[int], Awaitable[Any]],
    work: Callable[[Callable[[int], Any], Stop, Meter], T],
    progress: ProgressOption,
) -> T:
    """Run *work* in a thread that is given what it asks for by *give*, which runs here, in the caller's task."""
    reporter = await Progress.opened(progress, "load")
    inflow, stop, meter = Inflow(), Stop(), Meter()

    async def read(size: int) -> Any:
        chunk = await give(size)
        reporter.advance(meter.done(), meter.total)
        return chunk

    running = start_apart(lambda: work(inflow.ask, stop, meter))
    running.add_done_callback(lambda _: inflow.finish())
    try:
        await inflow.serve(read)
        result = running.result()
        reporter.finish(meter.done())
        return result
    finally:
        stop.set()
        inflow.close()
        await ended(running)
        del running  # an error that it holds refers to this frame
        reporter.close()


class Meter:
    """How far a thread is, in bytes.

    Attributes:
        done: tells how many are done; set by the thread, called on the loop.
        total: how many there are, or None while nobody knows.
        tell_all: called by the thread when all is done that may still be undone; waits until the user was told.
    """

    __slots__ = ("done", "tell_all", "total")

    def __init__(self) -> None:
        self.done: Callable[[], int] = lambda: 0
        self.total: int | None = None
        self.tell_all: Callable[[], None] = lambda: None


class Progress:
    """Tells one run's progress.

    What the user's function raises, :meth:`advance` and :meth:`finish` raise. It is never given the same counts twice,
    and as the last ones, if the run succeeds, ``(n, n)``.
    """

    def __init__(self, fn: Callable[[int, int | None], object] | None, bar: Bar | None) -> None:
        self._fn = fn
        self._bar = bar
        self._given: tuple[int, int | None] = (0, None)
        self._failure: BaseException | None = None

    @classmethod
    async def opened(cls, progress: ProgressOption, name: str) -> Progress:
        """Open what ``progress=`` asks for.

        Raises:
            ModuleNotFoundError: ``progress=True`` and tqdm is not installed.
            TypeError: it can be none.
        """
        if not isinstance(checked_progress(progress), bool):
            return cls(progress, None)  # type: ignore[arg-type]
        return cls(None, (await in_thread(load_tqdm))(desc=name, unit="B", unit_scale=True) if progress else None)

    def watching(self, meter: Meter) -> Callable[[], None] | None:
        """Return a function that advances to where *meter* is, or None if nobody wants to know."""
        if self._fn is None and self._bar is None:
            return None
        return lambda: self.advance(meter.done(), meter.total)

    def telling(self, meter: Meter, stop: Stop) -> Callable[[], None]:
        """Return :attr:`Meter.tell_all` for *meter*, whose thread *stop* stops.

        What the user's function raises stops the thread, and is for :meth:`raise_failure`.
        """
        loop = asyncio.get_running_loop()

        def finish(told: threading.Event) -> None:
            try:
                self.finish(meter.done())
            except BaseException as error:
                self._failure = error
                stop.set()
            finally:
                told.set()

        def tell() -> None:
            told = threading.Event()
            loop.call_soon_threadsafe(finish, told)
            while not told.wait(_LOOK_AT_LOOP_EVERY) and loop.is_running():  # one that was left for good tells nobody
                pass

        return tell

    def raise_failure(self) -> None:
        """Raise what has stopped the thread, if that was the user's function."""
        failure, self._failure = self._failure, None
        if failure is not None:
            try:
                raise failure
            finally:
                del failure  # it refers to this frame

    def advance(self, done: int, total: int | None = None) -> None:
        """Take note that *done* bytes of *total* are done."""
        if done > self._given[0]:
            self._tell(done, total)

    def finish(self, total: int) -> None:
        """Take note that all is done."""
        if self._given != (total, total):
            self._tell(total, total)

    def _tell(self, done: int, total: int | None) -> None:
        before, _ = self._given
        self._given = (done, total)
        if self._bar is not None:
            self._bar.total = total
            self._bar.update(done - before)
        if self._fn is not None:
            self._fn(done, total)

    def close(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.close()
