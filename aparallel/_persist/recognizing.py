"""Tells pickles of protocols 0 and 1 from anything else: unlike those after them, they begin with no mark of their own.

Their first opcode may be a letter, as the first byte of any text may be. So the beginning is walked, as far as it is at
hand. Text has an opcode that does not exist, or one that takes what is not there, within a few bytes.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from aparallel._persist.standins import Global, Watcher
from aparallel._persist.walk import walk
from aparallel.errors import CorruptFileError, TruncatedFileError

if TYPE_CHECKING:
    from aparallel._ground.stoppable import Stop
    from aparallel._persist.sources import Source

FIRST_OPCODES = frozenset(b"(]})NIJKMLFGSTUVXc")
"""What pickles of protocols 0 and 1 begin with."""
# How the argument of the first opcode but MARKs begins, as far as it is there: of INT LONG, FLOAT, STRING, GLOBAL. That
# of others may be anything.
_ARGUMENT = re.compile(
    rb"\(*+(?:[IL](?:[-\d]|\Z)|F(?:[-\d]|inf|nan|in?\Z|na?\Z|\Z)|S(?:['\"]|\Z)"
    rb"|c(?:[^\W\d][\w.]*(?:\n|\Z)|\Z)|[^ILFSc]|\Z)",
    re.DOTALL,
)
# BINSTRING BINUNICODE: a length and a text. The first letters of a text say that half a gigabyte or more follows.
_COUNTED = frozenset(b"TX")
_LARGE = 0x20 << 24
# Of a joblib's file, its first array's description.
_ENOUGH = 1024


def is_old_pickle(source: Source, stop: Stop) -> bool:
    """Whether *source* holds a pickle of protocol 0 or 1, as far as its beginning tells."""
    start = source.peek(2)  # a pickle may be no longer
    # EMPTY_LIST is the first byte of LZMA's files, too; no opcode is the second.
    if not start or start[0] not in FIRST_OPCODES or start == b"]\0":
        return False
    if not source.reads_ahead:  # what follows may not be ours to read
        return _ARGUMENT.match(start) is not None
    start = source.peek(_ENOUGH)
    return _ARGUMENT.match(start) is not None and _holds_its_text(start, source) and _is_walked(start, stop)


def _holds_its_text(start: bytes, source: Source) -> bool:
    """False for a pickle of one huge text that is not there."""
    size = int.from_bytes(start[1:5], "little")
    return start[0] not in _COUNTED or size < _LARGE or (source.size is not None and size < source.size)


def _is_walked(start: bytes, stop: Stop) -> bool:
    parts = iter([start])
    try:
        walk(lambda _: next(parts, b""), _Doubter(), stop)
    except (TruncatedFileError, _Enough):
        return True
    except CorruptFileError:
        return False
    return True


class _Enough(Exception):
    """What follows may be the bytes of an array."""


class _Doubter(Watcher):
    def on_global(self, found: Global) -> None:
        if not all(part.isidentifier() for part in (*found.module.split("."), *found.name.split("."))):
            raise CorruptFileError("its pickle has a name that is none")

    def on_build(self, target: Any, state: Any) -> None:
        raise _Enough
