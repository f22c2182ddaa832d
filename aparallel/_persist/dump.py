"""dump, dumps and dump_chunks: an object into a file, bytes or chunks, in one hop to a thread."""

from __future__ import annotations

import asyncio
import inspect
import io
import sys
from typing import TYPE_CHECKING, Any, TypeVar

from aparallel._ground.awaiting import is_coroutine_function
from aparallel._ground.bars import checked_progress
from aparallel._ground.handover import Outflow
from aparallel._ground.stoppable import Stop, Stopped, ended
from aparallel._ground.threads import start_apart
from aparallel._persist.files import replacing
from aparallel._persist.opening import is_text, path_of
from aparallel._persist.options import DumpOptions
from aparallel._persist.running import Meter, Progress, in_thread_with
from aparallel._persist.sinks import CallableSink, FileSink
from aparallel.errors import AparallelError, UnpicklableObjectError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from aparallel._ground.bars import ProgressOption
    from aparallel._persist.compressors import Compress
    from aparallel._persist.writer import Sink

T = TypeVar("T")
# How messages of a RuntimeError end that are about a container, an array or a buffer that changed under us.
_OF_CHANGES = ("during iteration", "while it was written")


async def dump(
    obj: object,
    target: Any,
    compress: Compress = None,
    *,
    durable: bool = True,
    signing_key: str | bytes | None = None,
    n_jobs: int = -1,
    progress: ProgressOption = False,
) -> int:
    """Write *obj* to *target* without holding the event loop, and return how many bytes that were.

    What pickle and cloudpickle carry can be dumped. Arrays anywhere in it are stored raw, in any dtype and order,
    those that are not contiguous too, at multiples of 64 bytes; an object that occurs twice is stored once. Beyond
    what the pickler remembers, a plain file of any size takes at most 64 MB of memory, and beyond what an object's own
    reduction makes of it: a text has its size once more, in UTF-8, and so has an ``array.array``, in bytes.

    Args:
        obj: not to be changed by others before this is done. A durable dump to a path raises if a large array has
            changed meanwhile, and leaves the old file; any other makes a file that does not load:
            :class:`ChecksumError`.
        target: a path: the file is replaced as a whole when everything is written, and an error, a cancellation or the
            death of the process leaves what was there before. Or a binary file, used in a thread; or a file with an
            asynchronous ``write`` (aiofiles, anyio, an ``asyncio.StreamWriter``), used on the loop. These are written
            from where they stand, and stay open.
        compress: None for what the extension says (.z .gz .bz2 .xz .lzma .zst .lz4), else none; True for zlib; 0 to 9
            for that level of zlib; "zlib", "gzip", "bz2", "lzma", "xz", "zstd", "lz4" or "numeric"; a pair of name and
            level; or a :class:`aparallel.abc.Compressor`.
        durable: for a path: also survive a crash of the machine. It costs waiting for the disk.
        signing_key: a secret; who loads with the same one is sure that nobody else wrote the file.
        n_jobs: threads that compress, -1 for one per core. In a plain file, a second one sums up arrays of 16 MB or
            more while they are written.
        progress: True for tqdm's bar, or a function of (bytes written, total or None), called on the loop.

    Cancellation, and what *progress* raises: the thread stops at its next slice, usually within milliseconds, and is
    waited for. A path is as it was, unless it had just been replaced; what went to another kind of target stays there.

    Raises:
        UnpicklableObjectError: *obj* or a part of it cannot be pickled.
        OSError: the target cannot be written, such as ENOSPC for a full disk.
        ModuleNotFoundError: the codec is not installed.
        ValueError, TypeError: an argument cannot be, said before anything is written.
        Exception: what a compressor of your own raises.
    """
    path = path_of(target)
    options = DumpOptions.checked(compress, path=path, durable=durable, signing_key=signing_key, n_jobs=n_jobs)
    if path is not None:
        return await in_thread_with(lambda stop, meter: dump_to_path(obj, path, options, stop, meter), progress, "dump")
    write = getattr(target, "write", None)
    if not callable(write) or is_text(target):
        hint = "Decode the path with os.fsdecode()" if isinstance(target, bytes) else "Open text files in binary mode"
        raise TypeError(
            f"dump writes to a path, a binary file or an asynchronous file, not to {type(target).__name__}. "
            f"{hint}; for bytes there is dumps()."
        )
    if is_coroutine_function(write) or isinstance(target, asyncio.StreamWriter):
        return await _dump_to_async_file(obj, target, options, progress)
    return await in_thread_with(
        lambda stop, meter: _dump_to_file(obj, target, options, stop, meter), progress, "dump", file=target
    )


async def dumps(
    obj: object,
    compress: Compress = None,
    *,
    signing_key: str | bytes | None = None,
    n_jobs: int = -1,
    progress: ProgressOption = False,
) -> bytes:
    """Return *obj* as bytes, as :func:`dump` would write it to a file.

    Arguments, errors and what cancellation does are the same.
    """
    options = DumpOptions.checked(compress, signing_key=signing_key, n_jobs=n_jobs)
    return await in_thread_with(lambda stop, meter: dump_to_bytes(obj, options, stop, meter), progress, "dump")


def dump_chunks(
    obj: object,
    compress: Compress = None,
    *,
    signing_key: str | bytes | None = None,
    n_jobs: int = -1,
    progress: ProgressOption = False,
) -> AsyncGenerator[bytes, None]:
    """Iterate over *obj* in chunks of bytes, up to 1 MiB each, that together are the file that :func:`dump` writes.

    For a web response: the object is not held a second time. At most four chunks wait; the dump goes on as they are
    taken. The arguments and errors are those of :func:`dump`.

    Leaving the iteration early, by an error, cancellation or ``aclose()``, ends the thread and waits for it.
    """
    options = DumpOptions.checked(compress, signing_key=signing_key, n_jobs=n_jobs)
    return _chunks(obj, options, checked_progress(progress))


async def _chunks(obj: object, options: DumpOptions, progress: ProgressOption) -> AsyncGenerator[bytes, None]:
    reporter = await Progress.opened(progress, "dump")
    outflow, stop = Outflow(), Stop()
    running = start_apart(lambda: _dump(obj, CallableSink(outflow.put, stop), options, stop, Meter()))
    running.add_done_callback(lambda _: outflow.finish())
    given = 0
    try:
        while (chunk := await outflow.get()) is not None:
            given += len(chunk)
            reporter.advance(given)
            yield chunk
        running.result()
        reporter.finish(given)
    finally:
        stop.set()
        outflow.close()
        await ended(running)
        del running  # an error that it holds refers to this frame
        reporter.close()


def dump_to_path(
    obj: object, path: str, options: DumpOptions, stop: Stop | None = None, meter: Meter | None = None
) -> int:
    """Replace *path* by a file with *obj*, in this thread, and return its size in bytes.

    Raises:
        Stopped: *stop* was set; the file is as it was.
        Exception: as :func:`dump`.
    """
    stop, meter = stop or Stop(), meter or Meter()
    try:
        with replacing(path, durable=options.durable, stop=stop) as sink:
            # The disk is at it meanwhile.
            size = _dump(obj, sink, options, stop, meter, looks_again=options.durable)
            sink.flush()
            meter.tell_all()
            stop.check()
        return size
    except OSError as error:
        # Errors of writing have no name, and those of opening the one aside, which says nothing to the caller.
        error.filename = path
        raise


def dump_to_descriptor(obj: object, fd: int, options: DumpOptions) -> int:
    """Write what :func:`dump_to_path` would to where *fd* stands, in this thread, and return how many bytes."""
    stop = Stop()
    return _dump(obj, FileSink(fd, stop, reserve=sys.platform == "linux"), options, stop, Meter())


def dump_to_bytes(obj: object, options: DumpOptions, stop: Stop | None = None, meter: Meter | None = None) -> bytes:
    """Return what :func:`dump_to_path` would write, in this thread."""
    joined = _Joined()
    stop = stop or Stop()
    _dump(obj, CallableSink(joined.add, stop, keeps=False), options, stop, meter or Meter())
    return joined.value()


class _Joined:
    """Chunks made one while they come, which takes half the memory of a list that is joined at the end."""

    # From here on the C library grows memory without copying it. Zeros take none until they are written over, which is
    # done in place where nobody else has them.
    _ROOM = 64 << 20

    def __init__(self) -> None:
        self._first = b""
        self._all: io.BytesIO | None = None

    def add(self, chunk: bytes | memoryview) -> None:
        if not self._first:
            self._first = bytes(chunk)
            return
        if self._all is None:
            self._all = io.BytesIO(bytes(self._ROOM))
            self._all.write(self._first)
        self._all.write(chunk)

    def value(self) -> bytes:
        if self._all is None:
            return self._first
        self._all.truncate()
        return self._all.getvalue()


def _dump_to_file(obj: object, file: Any, options: DumpOptions, stop: Stop, meter: Meter) -> int:
    def write(chunk: bytes | memoryview) -> None:
        view = memoryview(chunk)
        while view:
            written = file.write(view)
            if written is None and isinstance(file, io.RawIOBase):
                written = 0
            view = view[_taken(written, len(view)) :]

    # Files of Python's own use what they are given only during the call.
    size = _dump(obj, CallableSink(write, stop, keeps=not isinstance(file, io.IOBase)), options, stop, meter)
    if callable(flush := getattr(file, "flush", None)):
        flush()
    return size


async def _dump_to_async_file(obj: object, target: Any, options: DumpOptions, progress: ProgressOption) -> int:
    size = 0
    chunks = _chunks(obj, options, progress)
    try:
        async for chunk in chunks:
            size += len(chunk)
            if isinstance(target, asyncio.StreamWriter):
                target.write(chunk)
                await target.drain()
            else:
                await _write_all(target.write, chunk)
    finally:
        await chunks.aclose()
    return size


async def _write_all(write: Callable[[Any], Awaitable[Any]], chunk: bytes) -> None:
    view = memoryview(chunk)
    while view:
        written = await write(bytes(view) if len(view) < len(chunk) else chunk)
        view = view[_taken(written, len(view)) :]


def _taken(written: Any, size: int) -> int:
    """How many of *size* bytes a file took whose ``write`` returned *written*.

    Raises:
        BlockingIOError: none.
        TypeError: nobody knows until *written* is awaited.
        ValueError: fewer than none.
    """
    if inspect.iscoroutine(written):
        written.close()
    if inspect.isawaitable(written):
        raise TypeError("The target's write() is no coroutine function and returns an awaitable. Make it an async def.")
    if not isinstance(written, int) or isinstance(written, bool):
        return size  # who does not say how many took all; only raw files take a part
    if written < 0:
        raise ValueError(f"The target's write() was given {size:,} bytes and says that it took {written:,}.")
    if not written:
        raise BlockingIOError("The target takes no data now. Give one that waits until it does.")
    return written


def _dump(obj: object, sink: Sink, options: DumpOptions, stop: Stop, meter: Meter, *, looks_again: bool = False) -> int:
    # In here, as this loads NumPy and cloudpickle.
    from aparallel._persist.pickling import write_object
    from aparallel._persist.writer import ContainerWriter

    compressor = None if options.choice is None else options.choice.create()
    writer = ContainerWriter(sink, compressor, options.threads, options.signing_key, looks_again=looks_again)
    meter.done = lambda: writer.position
    try:
        write_object(obj, writer, stop, compressed=compressor is not None)
        size = writer.finish()
        meter.done = lambda: size
        return size
    except Exception as error:
        # The pickler calls the sink and waits for the compressor, so their errors come out of the pickler.
        if (failure := writer.taken_failure()) is not None:
            try:
                raise failure from None
            finally:
                del failure  # it refers to this frame
        if isinstance(error, (Stopped, MemoryError, AparallelError)):
            raise
        raise _unpicklable(obj, error) from error
    finally:
        writer.close()


def _unpicklable(obj: object, reason: Exception) -> UnpicklableObjectError:
    kind = type(obj)
    name = f"{kind.__module__}.{kind.__qualname__}"
    shown = name.removeprefix("builtins.")
    article = "An" if shown[0].lower() in "aeiou" else "A"
    if isinstance(reason, RecursionError) or isinstance(reason.__cause__, RecursionError):
        advice = "It is nested too deeply. Make it flatter, or on Python 3.11 call sys.setrecursionlimit(10_000)."
    elif isinstance(reason, RuntimeError) and str(reason).endswith(_OF_CHANGES):
        advice = "Do not change it before the dump is done, or dump a copy."
    else:
        advice = (
            "Leave out what belongs to this process (open files, sockets, locks, running tasks), "
            "or say in its __reduce__ or __getstate__ how to make it anew."
        )
    return UnpicklableObjectError(
        f"{article} {shown} could not be dumped: {type(reason).__name__}: {reason}\n{advice}", type_name=name
    )
