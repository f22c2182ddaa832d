"""What the walk keeps of a pickle, as far as it can matter: of arguments of opcodes, and of the unpickler's memo."""

from __future__ import annotations

import re
from collections import deque
from typing import TYPE_CHECKING, Any

from aparallel._persist.nesting import FRAIL, levels_of, opaque_tuple
from aparallel._persist.standins import BYTES, LONGEST_BYTES, LONGEST_TEXT, OPAQUE, TEXT, Global, Made, Nested, Opaque
from aparallel.errors import CorruptFileError

if TYPE_CHECKING:
    from collections.abc import Callable

# As of numbers whose bytes are counted: more than 16 bytes do not matter.
_MOST_DIGITS = 38
# So much is kept in the memo, and so many texts beside those that are names.
_MOST_KEPT = 1 << 20
_MOST_TEXTS = 1 << 16

_KEPT = frozenset({str, Global, Made, tuple, Nested, Opaque, bytes})
# Small tuples (the shapes of arrays) are kept if they hold only these.
_SHORT = 32
_SIMPLE = frozenset({int, str, bytes, bool, type(None), Global})


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


class Memo:
    """What MEMOIZE and PUT keep for GET.

    Attributes:
        kept: values by their numbers. One that is not here is opaque.
    """

    def __init__(self) -> None:
        self.kept: dict[int, Any] = {}
        self._count = 0  # of what would be in the unpickler's
        # PUT says a number, MEMOIZE takes the next. With both in one pickle, what the next one is could be in doubt.
        self._is_numbered = False
        self._texts = 0
        # The last texts that are not kept: the module and name of what comes next, perhaps.
        self._recent: deque[tuple[int, str]] = deque(maxlen=4)

    def add(self, value: Any) -> None:
        """Do what MEMOIZE does.

        Raises:
            CorruptFileError: there was a PUT.
        """
        if type(value) in _KEPT:
            self._keep(self._count, value)
        self._count += 1
        if self._is_numbered:
            raise _in_two_ways()

    def put(self, index: int, value: Any, *, most: int) -> None:
        """Do what PUT does. The unpickler's memo is a table as long as its highest number, which may be *most*.

        Raises:
            CorruptFileError: the number is higher, or there was a MEMOIZE.
        """
        if index > most:
            raise CorruptFileError("its pickle numbers its memo higher than it has entries")
        if self._count and not self._is_numbered:
            raise _in_two_ways()
        self._is_numbered = True
        self._count += 1
        self.kept.pop(index, None)
        self._keep(index, value)

    def keep_texts_of(self, name: Global) -> None:
        """Keep the texts that turned out to be a module and what is in it: more may be imported from there."""
        self.kept.update((index, text) for index, text in self._recent if text in name)

    def _keep(self, index: int, value: Any) -> None:
        kind = type(value)
        if kind is str:
            # Most texts are data. Those that turn out to be names are kept when they do.
            if self._texts < _MOST_TEXTS:
                self._texts += 1
                self.kept[index] = value
            else:
                self._recent.append((index, value))
        elif (
            kind is Global
            or (kind is Made and value.of in FRAIL)
            or (
                len(self.kept) < _MOST_KEPT
                and (
                    (kind is Made and value.known is not None)
                    or (kind is tuple and len(value) <= _SHORT and all(type(item) in _SIMPLE for item in value))
                    or (kind is bytes and len(value) <= _SHORT)
                )
            )
        ):
            self.kept[index] = value
        elif levels := levels_of(value):
            self.kept[index] = opaque_tuple(levels)


def _in_two_ways() -> CorruptFileError:
    return CorruptFileError("its pickle numbers its memo in two ways")
