"""Taking values apart, by type: plain containers, functions and classes, and whatever pickle can take apart."""

from __future__ import annotations

import copyreg
import functools
import weakref
from collections import OrderedDict
from enum import Enum
from pathlib import PurePath
from types import BuiltinFunctionType, FunctionType, MappingProxyType, MethodType, ModuleType
from typing import TYPE_CHECKING, Any, Final

from aparallel._memory.encoding import (
    Encode,
    Handler,
    Kind,
    Name,
    Pairs,
    Parts,
    Spend,
    encode_content,
    encode_name,
    join,
    long_content,
)
from aparallel.errors import UnstableValueError

if TYPE_CHECKING:
    from collections.abc import Callable

LONG_LEAF: Final = 1 << 14  # bytes

_HOOK = "__aparallel_key__"


def take_apart(value: Any, spend: Spend, encode: Encode) -> Parts | bytes:
    """Return *value*'s tag and children, or its encoding if it has none. It is none of the atoms.

    *encode* encodes what functions and classes hold.
    """
    cls = type(value)
    if cls is FunctionType:
        return _function(value, encode)
    direct = _BY_TYPE.get(cls)
    if direct is not None:
        if cls is bytearray or cls is memoryview:
            spend(memoryview(value).nbytes >> 7)
        return direct(value)
    if isinstance(value, type):
        return _type(value, encode)
    if hasattr(cls, _HOOK):
        return Parts(b"h", [cls, getattr(value, _HOOK)()])
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


def _type(cls: type, encode: Encode) -> bytes:
    """Encode a class: by its name, and by its content where many classes of other functions share it."""
    if "<locals>" not in cls.__qualname__:
        return _named_type(cls)
    from aparallel._memory.tracking import class_content

    return join(b"T", [encode_name(cls), class_content(cls, encode)])


@functools.lru_cache(maxsize=1024)
def _named_type(cls: type) -> bytes:
    return join(b"T", [encode_name(cls)])


def _function(value: FunctionType, encode: Encode) -> Parts:
    from aparallel._memory.fingerprint import fingerprint_of

    fingerprint = fingerprint_of(value, encode)
    return Parts(b"F" + fingerprint.static, fingerprint.dynamic())


def _builtin_function(value: Any) -> Parts:
    owner = value.__self__
    bound_to = [] if owner is None or isinstance(owner, ModuleType) else [owner]
    return Parts(b"B", [Name(value), *bound_to])


def _range(value: range) -> Parts:
    # As Python compares them: by the numbers that they give.
    numbers = [len(value), *value[:1], *([value.step] if len(value) > 1 else [])]
    return Parts(b"R", numbers)


def _memoryview(value: memoryview) -> Parts:
    return Parts(b"M", [value.format, value.shape, value.tobytes()])


def _bytearray(value: bytearray) -> bytes:
    if len(value) > LONG_LEAF:
        return long_content(b"y", len(value), value)
    return encode_content(b"y", bytes(value))


_BY_TYPE: Final[dict[type, Callable[[Any], Parts | bytes]]] = {
    tuple: lambda value: Parts(b"(", list(value)),
    list: lambda value: Parts(b"[", value),
    dict: lambda value: Parts(b"{", [part for pair in value.items() for part in pair], Kind.PAIRS),
    set: lambda value: Parts(b"<", list(value), Kind.UNORDERED),
    frozenset: lambda value: Parts(b">", list(value), Kind.UNORDERED),
    Pairs: lambda value: Parts(b"}", value, Kind.PAIRS),
    Name: lambda value: encode_name(value.named),
    bytearray: _bytearray,
    range: _range,
    slice: lambda value: Parts(b"S", [value.start, value.stop, value.step]),
    memoryview: _memoryview,
    BuiltinFunctionType: _builtin_function,
    MethodType: lambda value: Parts(b"m", [value.__func__, value.__self__]),
    ModuleType: lambda value: Parts(b"O", [value.__name__]),
    MappingProxyType: lambda value: Parts(b"P", [dict(value)]),
    property: lambda value: Parts(b"p", [value.fget, value.fset, value.fdel]),
    staticmethod: lambda value: Parts(b"q", [value.__func__]),
    classmethod: lambda value: Parts(b"k", [value.__func__]),
}
"""How values of exactly these types are taken apart."""


def _enum(value: Enum, spend: Spend) -> Parts:
    return Parts(b"e", [type(value), value._name_, value._value_])


def _path(value: PurePath, spend: Spend) -> Parts:
    return _with_state(b"/", value, [str(value)])


def _set(value: set[Any] | frozenset[Any], spend: Spend) -> Parts:
    return _with_state(b"+", value, [set(value)])


def _ordered_dict(value: OrderedDict[Any, Any], spend: Spend) -> Parts:
    return _with_state(b"|", value, [list(value.items())])


def _with_state(tag: bytes, value: Any, content: list[Any]) -> Parts:
    """Take apart what subclasses may have given attributes."""
    attributes = getattr(value, "__dict__", None)
    return Parts(tag, [type(value), *content, *([attributes] if attributes else [])])


_BY_BASE: Final[dict[type, Handler]] = {
    Enum: _enum,
    PurePath: _path,
    set: _set,
    frozenset: _set,
    OrderedDict: _ordered_dict,
}
"""How values of these types and of their subclasses are taken apart."""


def _by_reduce(value: Any, spend: Spend) -> Parts | bytes:
    """Take a value apart as pickle would. Its class says what its content is."""
    cls = type(value)
    if cls is object:  # it equals only itself, and that only in this process
        raise UnstableValueError.of(value)
    spend(8)
    reducer = copyreg.dispatch_table.get(cls)
    try:
        reduced: Any = reducer(value) if reducer is not None else value.__reduce_ex__(4)
    except Exception as error:  # each class has its own way to say that it cannot be taken apart
        raise UnstableValueError.of(value) from error
    if isinstance(reduced, str):  # the name of a global
        wrapped = getattr(value, "__wrapped__", None)  # by what lru_cache has made of it
        of = [wrapped] if callable(wrapped) else []
        return Parts(b"g", [Name(cls), reduced, str(getattr(value, "__module__", None)), *of])
    build, arguments, state, items, pairs = [*reduced, None, None, None][:5]
    children = [_builder(build), *arguments, state]
    if items is not None:
        children.append(list(items))
    if pairs is not None:
        children.append(Pairs(part for pair in pairs for part in pair))
    return Parts(b"o", children)


def _builder(build: Any) -> Any:
    """What stands for the function that builds a value: its name, unless it holds more, as methods and partials do."""
    owner = getattr(build, "__self__", None)
    is_name_enough = hasattr(build, "__qualname__") and (owner is None or isinstance(owner, ModuleType))
    return Name(build) if is_name_enough else build
