"""The file beside an entry that holds a large value, in the format of ``dump`` and ``load``.

The entry keeps the last bytes of the file, which tell it from others: its size, and its signature if it has one. So a
file that was put in the place of another is not believed, even if it was signed with the same key.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any, Final

from aparallel._memory.entry import Damaged
from aparallel._persist.dump import dump_to_path
from aparallel._persist.load import load_from_path

if TYPE_CHECKING:
    from aparallel._persist.dump import DumpOptions
    from aparallel._persist.load import LoadOptions

_TAIL: Final = 64


def write_value(path: str, value: Any, options: DumpOptions) -> bytes:
    """Write *value* to *path*, and return what its entry keeps of it."""
    dump_to_path(value, path, options)
    return tail_of(path)


def read_value(path: str, tail: bytes, options: LoadOptions) -> Any:
    """Return the value in the file at *path*, if it is the one that its entry means.

    Raises:
        Damaged: it is not, or it cannot be read.
    """
    try:
        if tail_of(path) != tail:
            raise Damaged("the file beside it is another one")
        return load_from_path(path, options)
    except FileNotFoundError:
        raise Damaged("the file beside it is gone") from None
    except (OSError, Damaged):
        raise
    except Exception as error:  # each kind of damage has its own error, and so has each value
        raise Damaged(f"the file beside it cannot be loaded: {error}") from error


def verify_value(path: str, tail: bytes, signing_key: bytes | None) -> None:
    """Check the file at *path* against its checksums and signature. Nothing of it is built.

    Raises:
        Damaged: it is not the one that its entry means.
        AparallelError: it is damaged, or not signed with the key.
        OSError: it cannot be read.
    """
    from aparallel._ground.stoppable import Stop
    from aparallel._persist.reader import Keys, read_container
    from aparallel._persist.sources import FileSource

    if tail_of(path) != tail:
        raise Damaged("the file beside it is another one")
    with open(path, "rb", buffering=0) as file:
        source = FileSource(file.fileno(), Stop())
        with contextlib.closing(read_container(source, Keys(signing_key=signing_key), whole=True)):
            pass


def tail_of(path: str) -> bytes:
    """Return the last bytes of a file."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(fd).st_size
        return os.pread(fd, _TAIL, max(0, size - _TAIL))
    finally:
        os.close(fd)
