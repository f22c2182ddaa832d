"""What users give in the place of a file: told apart, opened, and handed to the work in a thread."""

from __future__ import annotations

import contextlib
import errno
import inspect
import io
import os
import stat
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from aparallel._ground.awaiting import is_coroutine_function
from aparallel._persist.running import in_thread_with, serve_thread
from aparallel.errors import CorruptFileError, UnsupportedFormatError, UntrustedTypeError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from aparallel._ground.bars import ProgressOption
    from aparallel._ground.sharing import MmapMode
    from aparallel._ground.stoppable import Stop
    from aparallel._persist.running import Meter
    from aparallel._persist.sources import Source

T = TypeVar("T")


class Opened(NamedTuple):
    """What is read.

    Attributes:
        source: where it is read from.
        whole: nothing may follow the object.
        file: the regular file that it is, if it is one with a path: it can be mapped.
        again: gives the same source from its beginning, if that can be had.
    """

    source: Source
    whole: bool
    file: Any = None
    again: Callable[[], Source] | None = None


if TYPE_CHECKING:
    Work = Callable[[Opened, Stop, Meter], T]


async def read_given(
    given: Any, work: Work[T], progress: ProgressOption, what: str, mmap_mode: MmapMode | None = None
) -> T:
    """Run *work* in a thread with what a user gave: a path, a file, or what is read on the event loop.

    Args:
        what: "load" or "inspect".
        mmap_mode: as of ``numpy.memmap``, if it is to be mapped.
    """
    path = path_of(given)
    if path is not None:
        return await in_thread_with(
            lambda stop, meter: read_path(path, work, stop, meter, mmap_mode=mmap_mode), progress, what
        )
    if mmap_mode is not None:
        raise ValueError("mmap_mode maps files that have a path. Give the path instead.")
    read = _reader_of(given, what)
    if isinstance(read, _OnLoop):
        exact, goes_back = read.file is not None, await read.goes_back()
        return await serve_thread(
            read.give,
            lambda ask, stop, meter: _read_stream(ask, work, stop, meter, exact=exact, goes_back=goes_back),
            progress,
        )

    def read_users(stop: Stop, meter: Meter) -> T:
        back = _reader_back(given)
        return _read_stream(back or read, work, stop, meter, exact=True, goes_back=back is not None)

    return await in_thread_with(read_users, progress, what, file=given)


def read_path(path: str, work: Work[T], stop: Stop, meter: Meter, *, mmap_mode: MmapMode | None = None) -> T:
    """Run *work* with a file, or a pipe, in this thread."""
    with Naming(path), _open_regular(path, mmap_mode) as file:
        if file is None:
            from aparallel._persist.pipes import reading_pipe

            with reading_pipe(path, stop) as read:
                return _read_stream(read, work, stop, meter, exact=True, name=path)
        from aparallel._persist.sources import FileSource

        def again() -> Source:
            os.lseek(file.fileno(), 0, os.SEEK_SET)
            return FileSource(file.fileno(), stop)

        source = FileSource(file.fileno(), stop, is_mapped=mmap_mode is not None)
        return work(Opened(source, whole=True, file=file, again=again), stop, meter)


def _read_stream(
    read: Callable[[int], Any],
    work: Work[T],
    stop: Stop,
    meter: Meter,
    *,
    exact: bool,
    goes_back: bool = False,
    name: str = "the source",
) -> T:
    from aparallel._persist.sources import StreamSource

    with Naming(name):
        source = StreamSource(read, stop, exact=exact, goes_back=goes_back)
        return work(Opened(source, whole=not exact), stop, meter)


@contextlib.contextmanager
def _open_regular(path: str, mmap_mode: MmapMode | None) -> Iterator[Any]:
    """Open a file for as long as the block lasts; None if it is no regular file, such as a pipe.

    Raises:
        OSError: it cannot be opened.
    """
    # Not a pipe: its writer would see it closed.
    if not stat.S_ISREG(os.stat(path).st_mode):
        if os.path.isdir(path):
            raise IsADirectoryError(errno.EISDIR, "Cannot load a folder. Name a file in it", path)
        if mmap_mode is not None:
            raise ValueError(f"{path} is no regular file, and only those can be mapped.")
        yield None
        return
    with open(path, "r+b" if mmap_mode == "r+" else "rb", buffering=0) as file:
        yield file


def path_of(target: object) -> str | None:
    """Return *target* as a path if it is one: text or an ``os.PathLike``, but not bytes, which may be content."""
    if isinstance(target, str):
        return target
    if isinstance(target, os.PathLike):
        return os.fsdecode(os.fspath(target))
    return None


class _OnLoop:
    """A source that is read on the event loop.

    Attributes:
        read: returns about as many bytes as asked for, none at the end.
        file: the file that is read, if it is one: others may read what follows.
    """

    def __init__(self, read: Callable[[int], Awaitable[Any]], file: Any = None) -> None:
        self.read = read
        self.file = file

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


def is_text(file: Any) -> bool:
    """Whether a file is open for text, whatever reads or writes it."""
    # Asynchronous files pass on what the file in them has.
    return isinstance(file, io.TextIOBase) or isinstance(getattr(file, "encoding", None), str)


def _reader_back(file: Any) -> Callable[[int], Any] | None:
    """A reader of *file* that goes back when it is asked for fewer bytes than none, if that is cheap."""
    if not (isinstance(file, (io.BytesIO, io.BufferedReader, io.BufferedRandom, io.FileIO)) and file.seekable()):
        return None

    def read(size: int) -> Any:
        if size >= 0:
            return file.read(size)
        file.seek(size, os.SEEK_CUR)
        return b""

    return read


def _reader_of(source: Any, what: str) -> _OnLoop | Callable[[int], Any]:
    """How to read from something that is no path.

    Raises:
        TypeError: nobody can.
    """
    read = getattr(source, "read", None)
    if callable(read) and not is_text(source):
        if is_coroutine_function(read):
            return _OnLoop(read, source)
        return read  # type: ignore[no-any-return]
    if hasattr(source, "__aiter__") and not callable(read):
        return _OnLoop(_next_chunk(source.__aiter__()))
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


class Naming:
    """Says in the errors of its block which file *source* it was, and what to do.

    No generator: from Python 3.12 on, one that raises another error leaves both, and their frames, in a cycle.
    """

    def __init__(self, source: str) -> None:
        self._source = source

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        source = self._source
        if isinstance(error, CorruptFileError | UnsupportedFormatError) and not error.source:
            advice = (
                "Take a copy that is whole, or dump it again."
                if isinstance(error, CorruptFileError)
                else "Check that it is the file that you meant."
            )
            raise type(error)(f"{source} cannot be loaded: {error}. {advice}", source=source) from error.__cause__
        if isinstance(error, UntrustedTypeError) and not error.source:
            raise UntrustedTypeError(
                f"{source} was not loaded: {error}. Nothing of it has run. If you trust what it asks for, "
                f"pass it in trusted=[...]; inspect() lists all that a file would build.",
                names=error.names,
                source=source,
            ) from None
        says_it = isinstance(error, OSError | CorruptFileError | UnsupportedFormatError | UntrustedTypeError)
        if isinstance(error, Exception) and not says_it:
            error.add_note(f"while loading {source}")
