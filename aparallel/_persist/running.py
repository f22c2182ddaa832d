"""Runs the work of dump, load and inspect in a thread, and reads for it what only the event loop can read."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any, TypeVar

from aparallel._ground.handover import Inflow
from aparallel._ground.stoppable import Stop, Stopped, WaitsLong, ended, in_stoppable_thread
from aparallel._ground.threads import start_apart
from aparallel._persist.progress import Meter, Progress

if TYPE_CHECKING:
    from collections.abc import Callable

    from aparallel._ground.bars import ProgressOption
    from aparallel._persist.given import OnLoop

T = TypeVar("T")


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
        reporter.finish(meter.done)
    except Stopped:
        reporter.raise_failure()
        raise
    finally:
        reporter.close()
    return result


async def serve_thread(
    source: OnLoop, work: Callable[[Callable[[int], Any], Stop, Meter], T], progress: ProgressOption
) -> T:
    """Run *work* in a thread that reads a source of the loop's through us, in the caller's task."""
    reporter = await Progress.opened(progress, "load")
    inflow, stop, meter = Inflow(), Stop(), Meter()

    async def read(size: int) -> Any:
        chunk = await source.give(size)
        reporter.advance(meter.done, meter.total)
        return chunk

    running = start_apart(lambda: work(inflow.ask, stop, meter))
    running.add_done_callback(lambda _: inflow.finish())
    try:
        await inflow.serve(read)
        result = running.result()
        reporter.finish(meter.done)
        return result
    finally:
        stop.set()
        inflow.close()
        await ended(running)
        del running  # an error that it holds refers to this frame
        reporter.close()
