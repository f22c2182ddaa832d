"""What the arguments of a pickle's opcodes say: numbers, bytes and text, as far as the walk keeps them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from aparallel._persist.standins import BYTES, LONGEST_BYTES, LONGEST_TEXT, OPAQUE, TEXT
from aparallel.errors import CorruptFileError

if TYPE_CHECKING:
    from collections.abc import Callable

    from aparallel._persist.standins import Opaque

# As of numbers whose bytes are counted: more than 16 bytes do not matter.
_MOST_DIGITS = 38


def counted(kind: Opaque, raw: bytes) -> Any:
    """Return what an argument that begins with its length says, or what stands for that: *kind*, if it is long."""
    if kind is TEXT:
        try:
            return raw.decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            raise CorruptFileError("its pickle has text that is none") from None
    if kind is BYTES:
        return raw if len(raw) <= LONGEST_BYTES else kind
    return int.from_bytes(raw, "little", signed=True) if len(raw) <= 16 else kind


def _integer(line: bytes) -> Any:
    # The unpickler takes more: 010 for 8, 0x10 for 16. What is written in another way than a pickler's is refused.
    if re.fullmatch(rb"-?[1-9][0-9]*|0", line) is None:
        raise ValueError
    return int(line) if len(line) <= _MOST_DIGITS else OPAQUE


def _integer_or_bool(line: bytes) -> Any:
    return line == b"01" if line in (b"00", b"01") else _integer(line)


def _long(line: bytes) -> Any:
    return _integer(line.removesuffix(b"L"))


def _float(line: bytes) -> Any:
    float(line)
    return OPAQUE


def _quoted(line: bytes) -> Any:
    if len(line) < 2 or line[:1] not in (b"'", b'"') or line[-1:] != line[:1]:
        raise ValueError
    return _text_without_escapes(line[1:-1])


def _text_without_escapes(line: bytes) -> Any:
    is_plain = len(line) <= LONGEST_TEXT and line.isascii() and b"\\" not in line
    return line.decode("ascii") if is_plain else OPAQUE


LINES: dict[int, Callable[[bytes], Any]] = {
    ord("I"): _integer_or_bool,
    ord("L"): _long,
    ord("F"): _float,
    ord("S"): _quoted,
    ord("V"): _text_without_escapes,
}
"""By opcode (INT LONG FLOAT STRING UNICODE), what its argument says, which is a line; or what stands for that.

They raise ValueError for a line that no pickler writes.
"""
