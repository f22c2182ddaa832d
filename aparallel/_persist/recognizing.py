"""Tells by its first bytes what a file is: a container, or a pickle, by joblib or not, and how that is compressed."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from aparallel._persist.container import MAGIC
from aparallel._persist.standins import Global, Watcher
from aparallel.errors import CorruptFileError, EmptyFileError, TruncatedFileError, UnsupportedFormatError

if TYPE_CHECKING:
    from aparallel._ground.stoppable import Stop
    from aparallel._persist.sources import Source

XZ = b"\xfd7zXZ"
# The first bytes of each, to the codec's name. Those of zlib and of a bare pickle are told by more than a prefix.
_PREFIXES = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bz2",
    b"\x5d\x00\x00": "lzma",
    XZ: "xz",
    b"\x04\x22\x4d\x18": "lz4",
}
# So many bytes tell what a file is, and the first of them whether it is a pickle, which may have no more.
_TELLING = 8
_FEW = 2
# How a compressed file of joblib 0.9 and earlier begins.
_BEFORE_0_10 = b"ZF"
_PROTO = 0x80
# What pickles of protocols 0 and 1 begin with.
_FIRST_OPCODES = frozenset(b"(]})NIJKMLFGSTUVXc")
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


def pickle_codec(source: Source, stop: Stop) -> str | None:
    """How the pickle in *source* is compressed: a codec, "" if it is not. None if it holds a container.

    Raises:
        UnsupportedFormatError: it holds neither.
    """
    if (codec := _codec_of(source.peek(_FEW))) is not None:
        return codec
    if _is_old_pickle(source, stop):
        return ""
    start = source.peek(_TELLING)
    codec = _codec_of(start)
    if start.startswith(_BEFORE_0_10):
        raise too_old()
    if codec is None and not start.startswith(MAGIC[: len(start)]):
        raise UnsupportedFormatError(f"it begins with {start!r}, as no file of aparallel, joblib or pickle does")
    return codec


def _codec_of(start: bytes) -> str | None:
    if len(start) >= 2 and start[0] == _PROTO and 2 <= start[1] <= 5:
        return ""
    if len(start) >= 2 and start[0] == 0x78 and int.from_bytes(start[:2], "big") % 31 == 0:  # RFC 1950, 2.2
        return "zlib"
    return next((name for prefix, name in _PREFIXES.items() if start.startswith(prefix)), None)


def check_decompressed(content: Source, codec: str) -> None:
    """Raise if what a file holds, compressed, is no pickle.

    Raises:
        UnsupportedFormatError: it is something else.
        EmptyFileError: it is nothing.
    """
    start = content.peek(_TELLING)
    if not start:
        raise EmptyFileError(f"its {codec} data has nothing in it")
    if start.startswith(MAGIC):
        raise UnsupportedFormatError(f"it is a file of aparallel inside {codec} data: decompress that first")
    if start[0] != _PROTO and start[0] not in _FIRST_OPCODES:
        raise UnsupportedFormatError(f"it is {codec} data that begins with {start!r}, as no pickle does")


def too_old() -> UnsupportedFormatError:
    return UnsupportedFormatError("joblib 0.9 or earlier wrote it. Load it with joblib, and dump it again")


def _is_old_pickle(source: Source, stop: Stop) -> bool:
    """Whether *source* holds a pickle of protocol 0 or 1, as far as its beginning tells.

    Unlike those of later ones, they begin with no mark of their own. Their first opcode may be a letter, as the first
    byte of any text may be. So the beginning is walked, as far as it is at hand. Text has an opcode that does not
    exist, or one that takes what is not there, within a few bytes.
    """
    start = source.peek(_FEW)  # a pickle may be no longer
    # EMPTY_LIST is the first byte of LZMA's files, too; no opcode is the second.
    if not start or start[0] not in _FIRST_OPCODES or start == b"]\0":
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
    from aparallel._persist.walk import walk  # few files are so old

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
