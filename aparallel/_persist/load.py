"""load and loads: an object out of a file, bytes or chunks, in one hop to a thread."""

from __future__ import annotations

import contextlib
import functools
import os
from typing import TYPE_CHECKING, Any

from aparallel._ground.stoppable import Stop
from aparallel._persist.opening import Naming, Opened, read_given, read_path
from aparallel._persist.options import LoadOptions
from aparallel._persist.running import Meter, in_thread_with
from aparallel.errors import SignatureError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from aparallel._ground.bars import ProgressOption
    from aparallel._ground.sharing import MmapMode
    from aparallel._persist.sources import Source
    from aparallel._persist.trust import Trust
    from aparallel.abc import Compressor


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
            NumPy's data types. Everything else is refused by name before anything runs. (Files of joblib's and
            pickle's are checked and then read again: copy one first that others may write meanwhile.)
        signing_key: the secret that the file was signed with. Any other file is refused before it is unpickled. (Mapped
            arrays stay the file's: whoever may write it can change their numbers later.)
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
    return await read_given(source, functools.partial(_load, options), progress, "load", mmap_mode)


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
    return read_path(
        path, functools.partial(_load, options), stop or Stop(), meter or Meter(), mmap_mode=options.mmap_mode
    )


def load_from_file(file: Any, size: int, options: LoadOptions) -> Any:
    """Return the object in the first *size* bytes of an open regular file, in this thread. Errors as :func:`load`."""
    from aparallel._persist.sources import FileSource

    os.lseek(file.fileno(), 0, os.SEEK_SET)
    stop = Stop()
    source = FileSource(file.fileno(), stop, size, is_mapped=options.mmap_mode is not None)
    opened = Opened(source, whole=True, file=file)
    return _load(options, opened, stop, Meter())


def load_from_bytes(
    data: memoryview | bytes, options: LoadOptions, stop: Stop | None = None, meter: Meter | None = None
) -> Any:
    """Return the object in *data*, in this thread. Errors as :func:`load`."""
    from aparallel._persist.sources import MemorySource

    stop = stop or Stop()
    view = memoryview(data)
    with Naming("the data"):
        opened = Opened(MemorySource(view, stop), whole=True, again=lambda: MemorySource(view, stop))
        return _load(options, opened, stop, meter or Meter())


def _load(options: LoadOptions, opened: Opened, stop: Stop, meter: Meter) -> Any:
    """Return one object, from the first byte to the last, in this thread."""
    from aparallel._persist.recognizing import pickle_codec

    source = opened.source
    meter.total = source.size
    meter.done = lambda: source.position
    codec = pickle_codec(source, stop)
    trust = None
    if options.trusted is not None:
        from aparallel._persist.trust import Trust

        trust = Trust(options.trusted)
    if codec is None:
        return _load_container(options, trust, opened, stop, meter)
    if options.signing_key is not None:
        raise SignatureError("it is not signed, and a signing key was given")
    return _load_pickle(codec, options, trust, opened, stop, meter)


def _load_container(options: LoadOptions, trust: Trust | None, opened: Opened, stop: Stop, meter: Meter) -> Any:
    from aparallel._persist.unpickling import read_object

    if options.mmap_mode is not None:
        from aparallel._persist.mapping import map_container

        source: Any = opened.source  # it has a path
        meter.done = lambda: 0  # what comes last is read first
        content = map_container(source, opened.file, options)
        meter.done = lambda: source.size
    else:
        from aparallel._persist.reader import read_container

        content = read_container(opened.source, options, whole=opened.whole)
    with contextlib.closing(content):
        return read_object(content, trust, stop)


def _load_pickle(
    codec: str, options: LoadOptions, trust: Trust | None, opened: Opened, stop: Stop, meter: Meter
) -> Any:
    from aparallel._persist.joblib_files import PickleReader, decompressed, load_pickle

    source, _, file, again = opened
    mapped = None
    if options.mmap_mode is not None:
        from aparallel._persist.mapping import check_mappable, mapped_file

        check_mappable(codec)
        mapped = mapped_file(file, options.mmap_mode)

    def plain(source: Source) -> Source:
        return decompressed(source, codec, stop) if codec else source

    if trust is None:
        return load_pickle(plain(source), stop, None, mapped, threads=options.threads)
    # It is read more than once: checked, then built.
    with contextlib.ExitStack() as stack:
        from aparallel._persist.checking import check
        from aparallel._persist.unpickling import NamingDamage, spooled

        start = again if again is not None else stack.enter_context(spooled(source, stop))

        def from_start() -> Source:
            source = start()
            # Who watches is told of the pass that is farthest.
            meter.done = lambda: source.position
            return plain(source)

        is_data = check(lambda: PickleReader(from_start(), stop), trust, stop, foreign=True)
        last = from_start()
        with NamingDamage(is_data=is_data):
            result = load_pickle(last, stop, trust, mapped, threads=options.threads)
        if again is None and not codec:  # all of it was read; of what is compressed, nobody knows the end
            source.give_back(source.position - last.position)
        return result
