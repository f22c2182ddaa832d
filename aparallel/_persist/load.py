"""load and loads: an object out of a file, bytes or chunks, in one hop to a thread."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import stat
from typing import TYPE_CHECKING, Any

from aparallel._ground.cpus import cpu_count, effective_n_jobs
from aparallel._ground.sharing import check_mmap_mode
from aparallel._ground.stoppable import Stop
from aparallel._persist.given import OnLoop, path_of, reader_back, reader_of
from aparallel._persist.keys import checked_key
from aparallel._persist.progress import Meter
from aparallel._persist.running import in_thread_with, serve_thread
from aparallel.errors import CorruptFileError, UnsupportedFormatError, UntrustedTypeError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from aparallel._ground.bars import ProgressOption
    from aparallel._ground.sharing import MmapMode
    from aparallel._persist.sources import Source
    from aparallel._persist.trust import Trust
    from aparallel.abc import Compressor


@dataclasses.dataclass(frozen=True, slots=True)
class LoadOptions:
    """What the keyword arguments of load mean, checked.

    Attributes:
        mmap_mode: "r", "r+", "c", or None.
        trusted: what the user trusts, or None for everything.
        signing_key: the secret, or None.
        verify: compare the checksums of mapped arrays too.
        threads: that read or decompress at a time.
        compressors: of the user's own.
    """

    mmap_mode: MmapMode | None = None
    trusted: tuple[Any, ...] | None = None
    signing_key: bytes | None = None
    verify: bool = False
    threads: int = 1
    compressors: tuple[Compressor, ...] = ()

    @classmethod
    def checked(
        cls,
        mmap_mode: MmapMode | None = None,
        *,
        trusted: Iterable[Any] | None = None,
        signing_key: str | bytes | None = None,
        verify: bool = False,
        compressors: Sequence[Compressor] = (),
        n_jobs: int = -1,
    ) -> LoadOptions:
        """Check what a user gave.

        Raises:
            ValueError: a mode or key that cannot be.
            TypeError: something of another type.
        """
        if mmap_mode is not None:
            check_mmap_mode(mmap_mode)
        if isinstance(trusted, (str, bytes, bool)) or (trusted is not None and not hasattr(trusted, "__iter__")):
            raise TypeError(
                f"trusted must be a list of types, functions or names such as 'module.Name', got {trusted!r}. "
                f"An empty list trusts plain data and NumPy's data types."
            )
        return cls(
            mmap_mode,
            None if trusted is None else tuple(trusted),
            checked_key(signing_key),
            verify,
            effective_n_jobs(n_jobs, cpu_count()),
            tuple(compressors),
        )


async def load(
    source: Any,
    mmap_mode: MmapMode | None = None,
    *,
    trusted: Iterable[Any] | None = None,
    signing_key: str | bytes | None = None,
    verify: bool = False,
    compressors: Sequence[Compressor] = (),
    n_jobs: int = -1,
    progress: ProgressOption = False,
) -> Any:
    """Return the object in *source* without holding the event loop.

    What :func:`aparallel.dump` wrote is read, and what joblib (0.10 and later) and pickle wrote. Which it is, and how
    it is compressed, is told by the content. A file of aparallel is verified as a whole before anything in it runs.

    Without *trusted* and *signing_key* this is as powerful as pickle: **a file may do whatever you may do**. Load so
    only what you wrote.

    Args:
        source: a path; a binary file, read in a thread; an asynchronous file (an ``async def read(n)``) or an
            asynchronous iterator of chunks, read on the loop. Of files, no more is read than the object, so several
            may follow each other; but a joblib file that is compressed is read on, and with *trusted*, one of joblib
            or pickle that cannot go back, such as a pipe, is read to its end.
        mmap_mode: "r", "r+" or "c", as of ``numpy.memmap``: arrays are not read but mapped where they lie in the file,
            which takes no memory and next to no time. For paths of files that are not compressed. With "r+" the file
            is marked: the checksums of its arrays do not hold from then on.
        trusted: types and functions, or their names ("module.Name"), that the file may use besides plain data and
            NumPy's data types. Everything else is refused by name before anything runs.
        signing_key: the secret that the file was signed with. Any other file is refused before it is unpickled.
        verify: also compare the checksums of mapped arrays, which reads them.
        compressors: :class:`aparallel.abc.Compressor` of your own that files may name.
        n_jobs: threads that read large arrays or decompress, -1 for one per core.
        progress: True for tqdm's bar, or a function of (bytes read, total or None), called on the loop.

    Cancellation: the thread stops at its next slice, usually within milliseconds, and is waited for.

    Raises:
        CorruptFileError: the file is damaged, cut short, empty, or not signed with the key. Its subclasses say which.
        UnsupportedFormatError: it is none of these, of a newer version, or compressed and to be mapped.
        UntrustedTypeError: it asks for something that is not trusted.
        OSError: it cannot be read.
        ModuleNotFoundError: the codec, or a module that the object needs, is not installed.
        ValueError, TypeError: an argument cannot be.
    """
    options = LoadOptions.checked(
        mmap_mode, trusted=trusted, signing_key=signing_key, verify=verify, compressors=compressors, n_jobs=n_jobs
    )
    path = path_of(source)
    if path is not None:
        return await in_thread_with(lambda stop, meter: load_from_path(path, options, stop, meter), progress, "load")
    if mmap_mode is not None:
        raise ValueError("mmap_mode maps files that have a path. Give the path instead.")
    read = reader_of(source, "load")
    if isinstance(read, OnLoop):
        exact, goes_back = read.exact, await read.goes_back()
        return await serve_thread(
            read,
            lambda ask, stop, meter: _load_from_function(ask, options, stop, meter, exact=exact, goes_back=goes_back),
            progress,
        )
    return await in_thread_with(
        lambda stop, meter: _load_from_users(source, read, options, stop, meter), progress, "load", file=source
    )


async def loads(
    data: bytes | bytearray | memoryview,
    *,
    trusted: Iterable[Any] | None = None,
    signing_key: str | bytes | None = None,
    compressors: Sequence[Compressor] = (),
    n_jobs: int = -1,
    progress: ProgressOption = False,
) -> Any:
    """Return the object in *data*, as :func:`load` does from a file.

    Arguments, errors and what cancellation does are the same.
    """
    options = LoadOptions.checked(trusted=trusted, signing_key=signing_key, compressors=compressors, n_jobs=n_jobs)
    try:
        view = memoryview(data)
        view = view.cast("B") if view.c_contiguous else memoryview(view.tobytes())
    except TypeError:
        raise TypeError(f"loads takes bytes, got {type(data).__name__}. For files and paths there is load().") from None
    return await in_thread_with(lambda stop, meter: load_from_bytes(view, options, stop, meter), progress, "load")


def load_from_path(path: str, options: LoadOptions, stop: Stop | None = None, meter: Meter | None = None) -> Any:
    """Return the object in a file, in this thread.

    Raises:
        Stopped: *stop* was set.
        Exception: as :func:`load`.
    """
    stop, meter = stop or Stop(), meter or Meter()
    with named(path), open_regular(path, options.mmap_mode) as file:
        if file is None:
            from aparallel._persist.pipes import reading_pipe

            with reading_pipe(path, stop) as read:
                return _load_from_function(read, options, stop, meter, exact=True, name=path)
        from aparallel._persist.sources import FileSource

        return _Loading(options, stop, meter).load(
            FileSource(file.fileno(), stop), whole=True, file=file, again=lambda: _reopened(file, stop)
        )


def load_from_file(file: Any, size: int, options: LoadOptions) -> Any:
    """Return the object in the first *size* bytes of an open regular file, in this thread. Errors as :func:`load`."""
    from aparallel._persist.sources import FileSource

    os.lseek(file.fileno(), 0, os.SEEK_SET)
    stop = Stop()
    return _Loading(options, stop, Meter()).load(FileSource(file.fileno(), stop, size), whole=True, file=file)


def load_from_bytes(
    data: memoryview | bytes, options: LoadOptions, stop: Stop | None = None, meter: Meter | None = None
) -> Any:
    """Return the object in *data*, in this thread. Errors as :func:`load`."""
    from aparallel._persist.sources import MemorySource

    stop = stop or Stop()
    view = memoryview(data)
    with named("the data"):
        return _Loading(options, stop, meter or Meter()).load(
            MemorySource(view, stop), whole=True, again=lambda: MemorySource(view, stop)
        )


def _load_from_users(file: Any, read: Callable[[int], Any], options: LoadOptions, stop: Stop, meter: Meter) -> Any:
    back = reader_back(file)
    return _load_from_function(back or read, options, stop, meter, exact=True, goes_back=back is not None)


def _load_from_function(
    read: Callable[[int], Any],
    options: LoadOptions,
    stop: Stop,
    meter: Meter,
    *,
    exact: bool,
    goes_back: bool = False,
    name: str = "the source",
) -> Any:
    from aparallel._persist.sources import StreamSource

    with named(name):
        source = StreamSource(read, stop, exact=exact, goes_back=goes_back)
        return _Loading(options, stop, meter).load(source, whole=not exact)


def _reopened(file: Any, stop: Stop) -> Source:
    from aparallel._persist.sources import FileSource

    os.lseek(file.fileno(), 0, os.SEEK_SET)
    return FileSource(file.fileno(), stop)


class _Loading:
    """One object, from the first byte to the last, in one thread."""

    def __init__(self, options: LoadOptions, stop: Stop, meter: Meter) -> None:
        self._options = options
        self._stop = stop
        self._meter = meter

    def load(self, source: Source, *, whole: bool, file: Any = None, again: Callable[[], Source] | None = None) -> Any:
        """Load from *source*.

        Args:
            whole: nothing may follow the object.
            file: what to map, if that is asked for.
            again: gives the same source from its beginning, if that can be had.
        """
        from aparallel._persist.joblib_files import pickle_codec

        self._meter.total = source.size
        self._meter.of = lambda: source.position
        codec = pickle_codec(source, self._stop)
        if codec is None:
            return self._load_container(source, whole=whole, file=file)
        if self._options.signing_key is not None:
            from aparallel.errors import SignatureError

            raise SignatureError("it is not signed, and a signing key was given")
        return self._load_pickle(source, codec, file, again)

    def _trust(self) -> Trust | None:
        if self._options.trusted is None:
            return None
        from aparallel._persist.trust import Trust

        return Trust(self._options.trusted)

    def _load_container(self, source: Source, *, whole: bool, file: Any) -> Any:
        from aparallel._persist.reader import ReadOptions, read_container
        from aparallel._persist.unpickling import read_object

        options = self._options
        trust = self._trust()
        reading = ReadOptions(options.signing_key, options.threads, options.compressors)
        if options.mmap_mode is not None:
            from aparallel._persist.mapping import map_container

            content = map_container(
                file, options.mmap_mode, reading, self._stop, verify=options.verify, size=source.size
            )
            self._meter.of = lambda: source.size or 0
        else:
            content = read_container(source, reading, whole=whole)
        with contextlib.closing(content):
            return read_object(content, trust, self._stop)

    def _load_pickle(self, source: Source, codec: str, file: Any, again: Callable[[], Source] | None) -> Any:
        from aparallel._persist.joblib_files import PickleReader, check_mappable, decompressed, load_pickle

        trust, stop = self._trust(), self._stop
        mapped = None
        if self._options.mmap_mode is not None:
            check_mappable(codec)
            from aparallel._persist.mapping import mapped_file

            mapped = mapped_file(file, self._options.mmap_mode)

        def opened(source: Source) -> Source:
            return decompressed(source, codec, stop) if codec else source

        if trust is None:
            return load_pickle(opened(source), stop, None, mapped, threads=self._options.threads)
        # It is read more than once: checked, then built.
        with contextlib.ExitStack() as stack:
            from aparallel._persist.checking import Found, check
            from aparallel._persist.unpickling import damage_named, spooled

            start = again if again is not None else stack.enter_context(spooled(source, stop))

            def from_start() -> Source:
                source = start()
                # Who watches is told of the pass that is farthest.
                self._meter.of = lambda: source.position
                return opened(source)

            found = check(lambda: PickleReader(from_start(), stop), trust, stop, foreign=True)
            last = from_start()
            with damage_named(is_data=found is Found.DATA or trust.is_of_data_only):
                result = load_pickle(last, stop, trust, mapped, threads=self._options.threads)
            if again is None and not codec:  # all of it was read; of what is compressed, nobody knows the end
                source.give_back(source.position - last.position)
            return result


@contextlib.contextmanager
def open_regular(path: str, mmap_mode: MmapMode | None) -> Iterator[Any]:
    """Open a file for as long as the block lasts; None if it is no regular file, such as a pipe.

    Raises:
        OSError: it cannot be opened.
    """
    # Not a pipe: its writer would see it closed.
    if not stat.S_ISREG(os.stat(path).st_mode):
        if os.path.isdir(path):
            raise IsADirectoryError(21, "Cannot load a folder. Name a file in it", path)
        if mmap_mode is not None:
            raise ValueError(f"{path} is no regular file, and only those can be mapped.")
        yield None
        return
    with open(path, "r+b" if mmap_mode == "r+" else "rb", buffering=0) as file:
        yield file


@contextlib.contextmanager
def named(source: str) -> Iterator[None]:
    """Say in errors which file it was, and what to do."""
    try:
        yield
    except (CorruptFileError, UnsupportedFormatError) as error:
        if error.source:
            raise
        advice = (
            "Take a copy that is whole, or dump it again."
            if isinstance(error, CorruptFileError)
            else "Check that it is the file that you meant."
        )
        raise type(error)(f"{source} cannot be loaded: {error}. {advice}", source=source) from error.__cause__
    except UntrustedTypeError as error:
        if error.source:
            raise
        raise UntrustedTypeError(
            f"{source} was not loaded: {error}. Nothing of it has run. If you trust what it asks for, "
            f"pass it in trusted=[...]; inspect() lists all that a file would build.",
            names=error.names,
            source=source,
        ) from None
    except Exception as error:
        if not isinstance(error, OSError):
            error.add_note(f"while loading {source}")
        raise
