"""A value taken apart: what the encoding of any value is made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

from aparallel._memory.plain import Kind, combine, encode_str

HOOK: Final = "__aparallel_key__"


class Parts(NamedTuple):
    """A value taken apart. *tag* says what it is; *kind* what the order of the children means."""

    tag: bytes
    kind: Kind
    children: list[Any]


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
    return combine(b"N", Kind.ORDERED, [encode_str(str(_text_of(named, "__module__"))), encode_str(name)])


def _text_of(named: Any, attribute: str) -> str | None:
    try:
        found = getattr(named, attribute, None)
    except Exception:  # a proxy of what is not there now
        return None
    return found if isinstance(found, str) else None
