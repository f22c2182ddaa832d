"""The canonical encoding of any value with stable content.

A value is taken apart into a tag and children (:func:`take_apart`), its children are encoded, and
:func:`combine` puts their encodings together. What has cycles, or is nested too deep for recursion,
goes through :mod:`aparallel._memory.cycles`, which gives the same encodings where there is no cycle.
"""

from __future__ import annotations

import copyreg
import functools
import sys
import weakref
from collections import OrderedDict
from enum import Enum
from pathlib import PurePath
from types import (
    BuiltinFunctionType,
    FunctionType,
    MappingProxyType,
    MethodType,
    ModuleType,
)
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from aparallel._ground.hop import pause
from aparallel._memory.digest import digest
from aparallel._memory.plain import ATOMS, Kind, combine, encode_content, encode_str, join, long_content
from aparallel.errors import UnstableValueError

if TYPE_CHECKING:
    from collections.abc import Callable

    Handler = Callable[[Any, Callable[[int], None]], "Parts | bytes"]

HOOK = "__aparallel_key__"

# What each encoding means may only change together with this: it makes all keys new.
_VERSION = b"aparallel 1\n"

_LONG_LEAF = 1 << 14  # bytes
_PAUSE_EVERY = 256  # values with parts, about half a millisecond
_MOST_KEPT_REFERENCES = 3  # of a value that only its parent refers to, seen from _Encoder._parts_of


class Parts(NamedTuple):
    """A value taken apart. *tag* says what it is; *kind* what the order of the children means."""

    tag: bytes
    kind: Kind
    children: list[Any]


class TooLarge(Exception):
    """The value is more than may be encoded on the event loop."""


def value_digest(value: object, budget: int | None = None) -> bytes:
    """Return the 32 bytes that stand for *value*: equal for equal type and content, recursively.

    It may take long; it lets other threads run. *budget* is :func:`encode`'s.

    Raises:
        UnstableValueError: something in it has no content that stays the same.
    """
    return digest(_VERSION + encode(value, budget))


def encode(value: object, budget: int | None = None) -> bytes:
    """Return the canonical encoding of *value*, at most ``INLINE`` bytes.

    *budget* is how many values and how many hundreds of bytes may be encoded; None for no limit.

    Raises:
        TooLarge: the budget is spent.
        UnstableValueError: something in it has no content that stays the same.
    """
    try:
        return _Encoder(budget).encode(value)
    except (_CycleFound, RecursionError):
        if budget is not None:
            raise TooLarge from None
    from aparallel._memory.cycles import encode_graph

    return encode_graph(value)


class _CycleFound(Exception):
    pass


def _ask_encoder(kind: type, encode: Callable[[Any], bytes]) -> Callable[[Any], bytes]:
    return encode


class _Encoder:
    """Encodes by recursion. Each value that others share is encoded once."""

    def __init__(self, budget: int | None) -> None:
        self._limit = sys.maxsize if budget is None else budget
        self._pausing = budget is None
        # How a value of a type is encoded. With a budget everything goes through self.encode, which looks at sizes.
        self._encoder_of = ATOMS.get if budget is None else _ask_encoder
        self._done = 0
        # By id: those under way, and those known. The latter keeps them alive, so that no id is used twice.
        self._open: set[int] = set()
        self._known: dict[int, tuple[bytes, object]] = {}

    def encode(self, value: Any) -> bytes:
        kind = type(value)
        atom = ATOMS.get(kind)
        if atom is not None:
            if (kind is str or kind is bytes) and len(value) > _LONG_LEAF:
                self._spend(len(value) >> 7)
            return atom(value)
        known = self._known.get(id(value))
        if known is not None:
            return known[0]
        if id(value) in self._open:
            raise _CycleFound
        self._open.add(id(value))
        try:
            encoding = self._encode_compound(value, kind)
        except UnstableValueError as error:
            error.found_in(kind)
            raise
        self._open.discard(id(value))
        if sys.getrefcount(value) > _MOST_KEPT_REFERENCES:
            self._known[id(value)] = (encoding, value)
        return encoding

    def _encode_compound(self, value: Any, kind: type) -> bytes:
        encode, encoder_of = self.encode, self._encoder_of
        if kind is tuple or kind is list:
            self._spend(len(value))
            return join(b"(" if kind is tuple else b"[", [encoder_of(type(part), encode)(part) for part in value])
        if kind is dict:
            self._spend(2 * len(value))
            pairs = [
                encoder_of(type(key), encode)(key) + encoder_of(type(part), encode)(part) for key, part in value.items()
            ]
            pairs.sort()
            return join(b"{", pairs)
        parts = take_apart(value, self._spend)
        if isinstance(parts, bytes):
            return parts
        self._spend(4 + len(parts.children))
        return combine(parts.tag, parts.kind, [encode(child) for child in parts.children])

    def _spend(self, amount: int) -> None:
        before = self._done
        self._done = before + amount + 1
        if self._done > self._limit:
            raise TooLarge
        if self._pausing and before // _PAUSE_EVERY != self._done // _PAUSE_EVERY:
            pause()


def take_apart(value: Any, spend: Callable[[int], None]) -> Parts | bytes:
    """Return *value*'s tag and children, or its encoding if it has none. It is none of the atoms.

    *spend* is told of work beyond the children themselves, before it is done.
    """
    cls = type(value)
    direct = _BY_TYPE.get(cls)
    if direct is not None:
        return direct(value)
    if isinstance(value, type):
        return encode_type(value)
    if hasattr(cls, HOOK):
        return Parts(b"h", Kind.ORDERED, [cls, getattr(value, HOOK)()])
    handler = _handlers.get(cls)
    if handler is None:
        handler = _handlers[cls] = _find_handler(cls)
    return handler(value, spend)


def _find_handler(cls: type) -> Handler:
    for base in cls.__mro__:
        handler = _BY_BASE.get(base)
        if handler is not None:
            return handler
        root = base.__module__.partition(".")[0]
        if root in {"numpy", "pandas", "scipy"}:
            from aparallel._memory.arrays import find_handler

            return find_handler(cls) or _by_reduce
    return _by_reduce


# Found once per class; only a cache.
_handlers: weakref.WeakKeyDictionary[type, Handler] = weakref.WeakKeyDictionary()


class Pairs(list[Any]):
    """Keys and values in turn, among the children of something else."""


class Name:
    """A function or class among the children of something else that only its name stands for."""

    __slots__ = ("named",)

    def __init__(self, named: Any) -> None:
        self.named = named


def encode_name(named: Any) -> bytes:
    module = getattr(named, "__module__", None)
    name = getattr(named, "__qualname__", None) or getattr(named, "__name__", None) or type(named).__qualname__
    return combine(b"N", Kind.ORDERED, [encode_str(str(module)), encode_str(str(name))])


def encode_type(cls: type) -> bytes:
    """Encode a class: by its name, and by its content where many classes of other functions share it."""
    if "<locals>" not in cls.__qualname__:
        return _named_type(cls)
    from aparallel._memory.tracking import class_content

    return combine(b"T", Kind.ORDERED, [encode_name(cls), class_content(cls)])


@functools.lru_cache(maxsize=1024)
def _named_type(cls: type) -> bytes:
    return combine(b"T", Kind.ORDERED, [encode_name(cls)])


def is_nothing_but_itself(value: object) -> bool:
    """Whether *value* is a bare ``object()``, which equals only itself, and that only in this process."""
    return type(value) is object


def _function(value: FunctionType) -> Parts:
    from aparallel._memory.tracking import fingerprint_of

    fingerprint = fingerprint_of(value)
    return Parts(b"F" + fingerprint.static, Kind.ORDERED, fingerprint.dynamic())


def _builtin_function(value: Any) -> Parts:
    owner = value.__self__
    bound_to = [] if owner is None or isinstance(owner, ModuleType) else [owner]
    return Parts(b"B", Kind.ORDERED, [Name(value), *bound_to])


def _range(value: range) -> Parts:
    # As Python compares them: by the numbers that they give.
    numbers = [len(value), *value[:1], *([value.step] if len(value) > 1 else [])]
    return Parts(b"R", Kind.ORDERED, numbers)


def _memoryview(value: memoryview) -> Parts:
    return Parts(b"M", Kind.ORDERED, [value.format, value.shape, value.tobytes()])


def _bytearray(value: bytearray) -> bytes:
    if len(value) > _LONG_LEAF:
        return long_content(b"y", len(value), value)
    return encode_content(b"y", bytes(value))


_BY_TYPE: Final[dict[type, Callable[[Any], Parts | bytes]]] = {
    tuple: lambda value: Parts(b"(", Kind.ORDERED, list(value)),
    list: lambda value: Parts(b"[", Kind.ORDERED, value),
    dict: lambda value: Parts(b"{", Kind.PAIRS, [part for pair in value.items() for part in pair]),
    set: lambda value: Parts(b"<", Kind.UNORDERED, list(value)),
    frozenset: lambda value: Parts(b">", Kind.UNORDERED, list(value)),
    Pairs: lambda value: Parts(b"}", Kind.PAIRS, value),
    Name: lambda value: encode_name(value.named),
    bytearray: _bytearray,
    range: _range,
    slice: lambda value: Parts(b"S", Kind.ORDERED, [value.start, value.stop, value.step]),
    memoryview: _memoryview,
    FunctionType: _function,
    BuiltinFunctionType: _builtin_function,
    MethodType: lambda value: Parts(b"m", Kind.ORDERED, [value.__func__, value.__self__]),
    ModuleType: lambda value: Parts(b"O", Kind.ORDERED, [value.__name__]),
    MappingProxyType: lambda value: Parts(b"P", Kind.ORDERED, [dict(value)]),
    property: lambda value: Parts(b"p", Kind.ORDERED, [value.fget, value.fset, value.fdel]),
    staticmethod: lambda value: Parts(b"q", Kind.ORDERED, [value.__func__]),
    classmethod: lambda value: Parts(b"k", Kind.ORDERED, [value.__func__]),
}
"""How values of exactly these types are taken apart."""


def _enum(value: Enum, spend: Callable[[int], None]) -> Parts:
    return Parts(b"e", Kind.ORDERED, [type(value), value._name_, value._value_])


def _path(value: PurePath, spend: Callable[[int], None]) -> Parts:
    return _with_state(b"/", value, [str(value)])


def _set(value: set[Any] | frozenset[Any], spend: Callable[[int], None]) -> Parts:
    return _with_state(b"+", value, [set(value)])


def _ordered_dict(value: OrderedDict[Any, Any], spend: Callable[[int], None]) -> Parts:
    return _with_state(b"|", value, [list(value.items())])


def _with_state(tag: bytes, value: Any, content: list[Any]) -> Parts:
    """Take apart what subclasses may have given attributes."""
    attributes = getattr(value, "__dict__", None)
    return Parts(tag, Kind.ORDERED, [type(value), *content, *([attributes] if attributes else [])])


_BY_BASE: Final[dict[type, Handler]] = {
    Enum: _enum,
    PurePath: _path,
    set: _set,
    frozenset: _set,
    OrderedDict: _ordered_dict,
}
"""How values of these types and of their subclasses are taken apart."""


def _by_reduce(value: Any, spend: Callable[[int], None]) -> Parts | bytes:
    """Take a value apart as pickle would. Its class says what its content is."""
    cls = type(value)
    if is_nothing_but_itself(value):
        raise UnstableValueError.of(value)
    spend(8)
    reducer = copyreg.dispatch_table.get(cls)
    try:
        reduced: Any = reducer(value) if reducer is not None else value.__reduce_ex__(4)
    except Exception as error:  # each class has its own way to say that it cannot be taken apart
        raise UnstableValueError.of(value) from error
    if isinstance(reduced, str):  # the name of a global
        return combine(b"g", Kind.ORDERED, [encode_name(cls), encode_str(reduced)])
    build, arguments, state, items, pairs = [*reduced, None, None, None][:5]
    children = [Name(build), *arguments, state]
    if items is not None:
        children.append(list(items))
    if pairs is not None:
        children.append(Pairs(part for pair in pairs for part in pair))
    return Parts(b"o", Kind.ORDERED, children)
