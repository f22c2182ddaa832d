"""Tells pickles of protocols 0 and 1 from anything else: unlike those after them, they begin with no mark of their own.

Their first opcode may be a letter, as the first byte of any text may be. So the beginning is walked, as far as it is at
hand. Text has an opcode that does not exist, or one that takes what is not there, within a few bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aparallel._persist.standins import Global, Watcher
from aparallel._persist.walk import Walk
from aparallel._persist.window import Window
from aparallel.errors import CorruptFileError, TruncatedFileError

if TYPE_CHECKING:
    from aparallel._ground.stoppable import Stop
    from aparallel._persist.sources import Source

FIRST_OPCODES = frozenset(b"(]})NIJKMLFGSTUVXc")
"""What pickles of protocols 0 and 1 begin with."""
# Of a joblib's file, its first array's description.
_ENOUGH = 1024


def is_old_pickle(source: Source, stop: Stop) -> bool:
    """Whether *source* holds a pickle of protocol 0 or 1, as far as its beginning tells."""
    start = source.peek(2)  # a pickle may be no longer
    # EMPTY_LIST is the first byte of LZMA's files, too; no opcode is the second.
    if not start or start[0] not in FIRST_OPCODES or start == b"]\0":
        return False
    # What follows may not be ours to read.
    return not source.reads_ahead or _is_walked(source.peek(_ENOUGH), stop)


def _is_walked(start: bytes, stop: Stop) -> bool:
    parts = iter([start])
    try:
        Walk(Window(lambda _: next(parts, b""), stop), _Doubter()).run()
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
