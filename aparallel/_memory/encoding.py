"""The canonical encoding: its words for plain values, how they are put together, and what other values become.

Every value has one encoding: a tag, then what follows from the tag, so that an encoding says itself
where it ends and any sequence of encodings can be read in one way only. What would be longer than
``INLINE`` bytes is replaced by its BLAKE3 digest. So an encoding is short whatever it stands for, the
members of sets and dicts can be sorted by it, and it depends on content alone: not on what is shared,
on the order of insertion, on addresses or on the hash seed.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from enum import Enum
from types import NoneType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from aparallel._memory.digest import Hasher, digest

if TYPE_CHECKING:
    from collections.abc import Iterable

INLINE: Final = 192
"""The most bytes of an encoding that holds its content itself."""

_LONG = 1 << 16
"""Text and bytes from this length on are hashed in place, without a copy."""

_pack_double = struct.Struct("<d").pack
_pack_two = struct.Struct("<dd").pack


class Kind(Enum):
    """What the order of a value's children means."""

    ORDERED = 1
    UNORDERED = 2
    PAIRS = 3
    """Keys and values in turn; the order of the pairs means nothing."""


def shorten(encoding: bytes) -> bytes:
    """Return *encoding*, or its digest where it is long."""
    return encoding if len(encoding) <= INLINE else b"D" + digest(encoding)


def join(tag: bytes, parts: list[bytes]) -> bytes:
    """Encode a value made of others, given their encodings in order. No *tag* may be the beginning of another."""
    encoding = b"%b%x:%b" % (tag, len(parts), b"".join(parts))
    return encoding if len(encoding) <= INLINE else b"D" + digest(encoding)


def combine(tag: bytes, parts: list[bytes], kind: Kind) -> bytes:
    """Encode a value made of others, whose order means what *kind* says."""
    if kind is Kind.PAIRS:
        parts = [key + value for key, value in zip(parts[::2], parts[1::2], strict=True)]
    return join(tag, parts if kind is Kind.ORDERED else sorted(parts))


def long_content(tag: bytes, size: int, data: Any) -> bytes:
    """Encode *data*, of *size* bytes, without copying it; equal to the usual way."""
    hasher = Hasher()
    hasher.update(b"%b%x:" % (tag, size))
    hasher.update(data)
    return b"D" + hasher.digest()


def encode_int(value: int) -> bytes:
    encoding = b"i%x;" % value
    return encoding if len(encoding) <= INLINE else b"D" + digest(encoding)


def encode_float(value: float) -> bytes:
    return b"f" + _pack_double(value)


def encode_str(value: str) -> bytes:
    data = value.encode("utf-8", "surrogatepass")
    size = len(data)
    if size < INLINE - 10:
        return b"s%x:%b" % (size, data)
    return encode_content(b"s", data)


def encode_content(tag: bytes, data: bytes) -> bytes:
    size = len(data)
    if size >= _LONG:
        return long_content(tag, size, data)
    return shorten(b"%b%x:%b" % (tag, size, data))


ATOMS: Final[dict[type, Callable[[Any], bytes]]] = {
    NoneType: lambda value: b"n",
    bool: lambda value: b"t" if value else b"u",
    int: encode_int,
    float: encode_float,
    str: encode_str,
    bytes: lambda value: encode_content(b"b", value),
    complex: lambda value: b"c" + _pack_two(value.real, value.imag),
    type(...): lambda value: b".",
    type(NotImplemented): lambda value: b"!",
}
"""Values without parts. Numbers are encoded by their bits: -0.0 is not 0.0, each NaN is equal to itself only."""


def plain_encoding(value: object) -> bytes | None:
    """Encode an immutable plain value as the canonical encoding would; None if *value* is something else."""
    atom = ATOMS.get(type(value))
    if atom is not None:
        return atom(value)
    parts: Iterable[object]
    if type(value) is tuple:
        tag, kind, parts = b"(", Kind.ORDERED, value
    elif type(value) is frozenset:
        tag, kind, parts = b">", Kind.UNORDERED, value
    elif type(value) is slice:  # constants of code from Python 3.14 on
        tag, kind, parts = b"S", Kind.ORDERED, (value.start, value.stop, value.step)
    else:
        return None
    children = [plain_encoding(part) for part in parts]
    return None if None in children else combine(tag, children, kind)  # type: ignore[arg-type]


class Parts(NamedTuple):
    """A value taken apart. *tag* says what it is; *kind* what the order of the children means."""

    tag: bytes
    children: list[Any]
    kind: Kind = Kind.ORDERED


Spend = Callable[[int], None]
"""Is told of work beyond the children themselves, before it is done; raises if it may not be done here."""

Handler = Callable[[Any, Spend], Parts | bytes]
"""Takes apart values of some types."""

Encode = Callable[[object], bytes]
"""Gives the canonical encoding of a value."""


class Pairs(list[Any]):
    """Keys and values in turn, among the children of something else."""


class Name:
    """A function or class among the children of something else that only its name stands for."""

    __slots__ = ("named",)

    def __init__(self, named: Any) -> None:
        self.named = named


def encode_name(named: Any) -> bytes:
    name = _text_of(named, "__qualname__") or _text_of(named, "__name__") or type(named).__qualname__
    return join(b"N", [encode_str(str(_text_of(named, "__module__"))), encode_str(name)])


def _text_of(named: Any, attribute: str) -> str | None:
    try:
        found = getattr(named, attribute, None)
    except Exception:  # a proxy of what is not there now
        return None
    return found if isinstance(found, str) else None
