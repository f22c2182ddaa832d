"""Runs the work of load and inspect in a thread, and reads for it on the event loop what only the loop can read."""

from __future__ import annotations

import inspect
import io
import os
from typing import TYPE_CHECKING, Any, TypeVar

from aparallel._ground.awaiting import is_coroutine_function
from aparallel._ground.handover import Inflow
from aparallel._ground.stoppable import Stop, Stopped, ended, in_stoppable_thread
from aparallel._ground.threads import start_apart
from aparallel._persist.progress import Meter, Progress

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from aparallel._ground.bars import ProgressOption

T = TypeVar("T")


class OnLoop:
    """A source that is read on the event loop.

    Attributes:
        read: returns about as many bytes as asked for, none at the end.
        file: the file that is read, if it is one: others may read what follows.
    """

    def __init__(self, read: Callable[[int], Awaitable[Any]], file: Any = None) -> None:
        self.read = read
        self.file = file

    @property
    def exact(self) -> bool:
        return self.file is not None

    async def goes_back(self) -> bool:
        """Whether it can go back to where it was before."""
        seekable = getattr(self.file, "seekable", None)
        if not (callable(seekable) and is_coroutine_function(getattr(self.file, "seek", None))):
            return False
        found = seekable()
        return bool(await found if inspect.isawaitable(found) else found)

    async def give(self, size: int) -> Any:
        """Answer a request of :class:`~aparallel._persist.sources.StreamSource`'s."""
        if size >= 0:
            return await self.read(size)
        await self.file.seek(size, os.SEEK_CUR)
        return b""


def reader_back(file: Any) -> Callable[[int], Any] | None:
    """A reader of *file* that goes back when it is asked for fewer bytes than none, if that is cheap."""
    if not (isinstance(file, (io.BytesIO, io.BufferedReader, io.BufferedRandom, io.FileIO)) and file.seekable()):
        return None

    def read(size: int) -> Any:
        if size >= 0:
            return file.read(size)
        file.seek(size, os.SEEK_CUR)
        return b""

    return read


def reader_of(source: Any, what: str) -> OnLoop | Callable[[int], Any]:
    """How to read from something that is no path.

    Raises:
        TypeError: nobody can.
    """
    read = getattr(source, "read", None)
    if callable(read) and not isinstance(source, io.TextIOBase):
        if is_coroutine_function(read):
            return OnLoop(read, source)
        return read  # type: ignore[no-any-return]
    if hasattr(source, "__aiter__"):
        return OnLoop(_next_chunk(source.__aiter__()))
    hint = ""
    if isinstance(source, (bytes, bytearray, memoryview)):
        hint = " For bytes there is loads()." if what == "load" else " Put bytes into an io.BytesIO."
    raise TypeError(
        f"{what} reads a path, a binary file, an asynchronous file or an asynchronous iterator of bytes, "
        f"not {type(source).__name__}. Open text files in binary mode.{hint}"
    )


def _next_chunk(chunks: AsyncIterator[Any]) -> Callable[[int], Awaitable[Any]]:
    async def read(size: int) -> Any:
        async for chunk in chunks:
            # An empty one is not the end: servers send some. What is no chunk, the reader refuses.
            if not hasattr(chunk, "__len__") or len(chunk):
                return chunk
        return b""

    return read


async def in_thread_with(
    work: Callable[[Stop, Meter], T], progress: ProgressOption, name: str, *, file: Any = None
) -> T:
    """Run *work* in a thread until it is done or the caller is cancelled, and tell its progress.

    Args:
        file: the user's own that is read or written, if one is.
    """
    # Who reads a pipe may wait for who writes to it, and must not have the thread that he needs.
    apart = file is not None and not isinstance(file, io.BytesIO)
    stop, meter = Stop(), Meter()
    reporter = await Progress.opened(progress, name)
    watching = reporter.watching(meter)
    if watching is not None:
        meter.tell_all = reporter.telling(meter, stop)
    try:
        result = await in_stoppable_thread(lambda: work(stop, meter), stop.set, meanwhile=watching, apart=apart)
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
        reporter.close()
