"""Large values: a container, in the format of ``dump`` and ``load``, before the entry that describes it."""

from __future__ import annotations

import contextlib
import os
from io import FileIO
from typing import TYPE_CHECKING, Any

from aparallel._memory.disk.files import write_all
from aparallel._memory.entry import TAIL_SIZE, Damaged, ending
from aparallel._persist.dump import dump_to_bytes, dump_to_descriptor
from aparallel._persist.load import load_from_bytes, load_from_file
from aparallel._persist.options import LoadOptions
from aparallel.errors import CorruptFileError

if TYPE_CHECKING:
    from collections.abc import Callable

    from aparallel._persist.options import DumpOptions

    Seal = Callable[[bytes], bytes]


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
