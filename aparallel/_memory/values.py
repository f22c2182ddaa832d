"""Values as they are stored: small ones as pickles inside their entries, large ones in containers before them.

The containers have the format of ``dump`` and ``load``.
"""

from __future__ import annotations

import contextlib
import io
import os
import pickle
from typing import TYPE_CHECKING, Any, Final

import cloudpickle

from aparallel._ground.exceptions import ReducesExceptions
from aparallel._memory.disk.files import write_all
from aparallel._memory.entry import TAIL_SIZE, Damaged, ending
from aparallel._persist.dump import dump_to_bytes, dump_to_descriptor
from aparallel._persist.load import load_from_bytes, load_from_file
from aparallel._persist.options import LoadOptions
from aparallel.errors import CorruptFileError

if TYPE_CHECKING:
    from collections.abc import Callable
    from io import FileIO
    from pickle import PickleBuffer

    from aparallel._persist.options import DumpOptions

    Seal = Callable[[bytes], bytes]

SMALL: Final = 256 << 10  # bytes of a pickle that stands inside its entry
_SMALL_BUFFER = 64 << 10
_SMALL_COMPRESSED = 4 << 10


class _Large(Exception):
    pass


class _Bounded(io.BytesIO):
    def __init__(self, limit: int) -> None:
        super().__init__()
        self._limit = limit

    def write(self, data: Any) -> int:
        if self.tell() + len(data) > self._limit:
            raise _Large
        return super().write(data)


def pickle_small(value: object, *, compressed: bool, mapped: bool) -> bytes | None:
    """Return the pickle of *value*, or None if it belongs in a container.

    That is so if it is large, if arrays in it are to be *mapped*, and if the standard pickle cannot take it.
    """
    limit = _SMALL_COMPRESSED if compressed else SMALL
    buffer_limit = 0 if mapped else min(limit, _SMALL_BUFFER)

    def keep_inside(buffer: PickleBuffer) -> bool:
        with buffer.raw() as raw:
            if raw.nbytes > buffer_limit:
                raise _Large
        return True

    file = _Bounded(limit)
    try:
        pickle.Pickler(file, 5, buffer_callback=keep_inside).dump(value)
    except Exception:  # too large, or cloudpickle may know better; whoever writes the file finds out
        return None
    return file.getvalue()


def pickle_error(error: BaseException) -> bytes:
    """Return the pickle of an exception, with its attributes and without its traceback."""
    file = io.BytesIO()
    _ErrorPickler(file, 5).dump(error)
    return file.getvalue()


class _ErrorPickler(ReducesExceptions, cloudpickle.Pickler):  # type: ignore[misc]
    pass


def write_to_file(file: FileIO, value: Any, options: DumpOptions, seal: Seal) -> None:
    """Write *value* to an empty file, and after it what *seal* makes of the container's last bytes: its entry."""
    fd = file.fileno()
    size = dump_to_descriptor(value, fd, options)
    tail = os.pread(fd, TAIL_SIZE, size - TAIL_SIZE)
    write_all(fd, seal(tail) + ending(size))


def write_to_bytes(value: Any, options: DumpOptions, seal: Seal) -> bytes:
    """Return what :func:`write_to_file` writes."""
    container = dump_to_bytes(value, options)
    return b"".join((container, seal(container[-TAIL_SIZE:]), ending(len(container))))


def read_value(content: bytes | FileIO, size: int, options: LoadOptions) -> Any:
    """Return the value in the first *size* bytes of *content*.

    Raises:
        Damaged: it cannot be rebuilt.
    """
    try:
        if isinstance(content, bytes):
            return load_from_bytes(memoryview(content)[:size], options)
        return load_from_file(content, size, options)
    except OSError:
        raise
    except Exception as error:  # each kind of damage has its own error, and so has each value
        raise Damaged(f"its value cannot be loaded: {error}") from error


def verify_value(content: bytes | FileIO, size: int, signing_key: bytes | None) -> None:
    """Check a container against its checksums and signature. Nothing of it is built.

    Raises:
        Damaged: it is not what was written.
        UnsupportedFormatError: it is of a later version.
        OSError: it cannot be read.
    """
    from aparallel._ground.stoppable import Stop
    from aparallel._persist.reader import read_container
    from aparallel._persist.sources import FileSource, MemorySource

    source = (
        MemorySource(memoryview(content)[:size], Stop())
        if isinstance(content, bytes)
        else FileSource(content.fileno(), Stop(), size)
    )
    try:
        with contextlib.closing(read_container(source, LoadOptions(signing_key=signing_key), whole=True)):
            pass
    except CorruptFileError as error:
        raise Damaged(f"its value is damaged: {error}") from error
