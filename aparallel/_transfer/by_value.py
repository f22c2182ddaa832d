"""Pickling by value, as cloudpickle does it, with amendments. Loaded when first needed."""

from __future__ import annotations

import dataclasses
import functools
import io
import marshal
import sys
from collections import ChainMap
from types import CellType, CodeType, FunctionType, MappingProxyType, ModuleType
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import WeakKeyDictionary, WeakValueDictionary

import cloudpickle

from aparallel._transfer import by_name, rebuilding
from aparallel._transfer.classes import reduce_class

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_Reduced = tuple[Any, tuple[Any, ...]]


def dumps_by_value(obj: object) -> bytes:
    with io.BytesIO() as file:
        ByValuePickler(file, 5).dump(obj)
        return file.getvalue()


def _reduce_cached_property(cached: Any) -> Any:
    state = vars(cached).copy()
    state.pop("lock", None)  # of Python 3.11
    return functools.cached_property, (cached.func,), state


def _reduce_weak_dictionary(weak: Any) -> Any:
    return type(weak), (), None, None, iter(weak.items())


_BUILDERS = rebuilding.__name__

# What stands in a pickle for cloudpickle's own builders, so that reading it does not import cloudpickle.
_ours: dict[Any, Any] = {
    cloudpickle.cloudpickle._make_function: rebuilding.make_function,
    cloudpickle.cloudpickle._function_setstate: rebuilding.complete_function,
    cloudpickle.cloudpickle._make_cell: rebuilding.make_cell,
    cloudpickle.cloudpickle._make_empty_cell: rebuilding.make_cell,
    cloudpickle.cloudpickle.subimport: rebuilding.import_by_name,
    CodeType: rebuilding.make_code,
}


def _with_our_builders(reduced: Any) -> Any:
    if not isinstance(reduced, tuple):  # NotImplemented
        return reduced
    return tuple(_ours.get(part, part) if callable(part) else part for part in reduced)


def _reduce_with_our_builders(obj: object) -> Any:
    return _with_our_builders(cloudpickle.Pickler.dispatch_table[type(obj)](obj))


# Where types.CodeType takes the name of the file, in Python 3.11 to 3.14.
_FILENAME = 10

# The version of marshal's format in which equal code is equal bytes: later ones tell what is referred to twice.
_SAME_BYTES = 2


def _reduce_code(code: CodeType) -> _Reduced:
    """Have code travel as marshal writes it, in a fifth of the time that its parts take."""
    try:
        return rebuilding.load_code, (marshal.dumps(code, _SAME_BYTES),)
    except ValueError:  # someone put more into its constants than a compiler does
        builder, parts = _reduce_with_our_builders(code)
        # Recent versions of cloudpickle drop the name of the file, which tracebacks and warnings show.
        return builder, (*parts[:_FILENAME], code.co_filename, *parts[_FILENAME + 1 :])


# What stands for an annotation that cannot be told, in the fields of a dataclass for instance. It knows where it was
# found, and would take all of that module along.
_unresolved_reducers: dict[type, Callable[[Any], _Reduced]] = {}
if sys.version_info >= (3, 14):
    from annotationlib import ForwardRef

    def _reduce_unresolved(reference: ForwardRef) -> _Reduced:
        return ForwardRef, (getattr(reference, "__resolved_str__", reference.__forward_arg__),)

    _unresolved_reducers[ForwardRef] = _reduce_unresolved


def _with_annotations_as_text(fn: FunctionType) -> FunctionType | None:
    """Return a copy of *fn* with its annotations as texts if they cannot be told otherwise, else None.

    From Python 3.14 on they are computed when they are asked for, and may name what only type checkers import.
    """
    if sys.version_info >= (3, 14):
        from annotationlib import Format, get_annotations

        try:
            get_annotations(fn)
        except Exception:  # it is anyone's expression
            copy = FunctionType(fn.__code__, fn.__globals__, fn.__name__, fn.__defaults__, fn.__closure__)
            for name in ("__module__", "__qualname__", "__doc__", "__kwdefaults__"):
                setattr(copy, name, getattr(fn, name))
            copy.__dict__.update(fn.__dict__)
            copy.__annotations__ = get_annotations(fn, format=Format.STRING)
            return copy
    return None


class ByValuePickler(cloudpickle.Pickler):  # type: ignore[misc]
    """cloudpickle's pickler, amended; what it lacks for classes is in :mod:`classes`, and the like in :mod:`by_name`.

    A function is rebuilt without cloudpickle, unless a class that travels by value is among what it refers to, knows
    its file, and travels whatever its annotations name. So do dataclasses, whose fields know that they have no default,
    classes with cached properties, dictionaries with weak keys or values, and generic functions, which have one.
    """

    # How arrays are reduced; found here, as a dispatch table of each pickler's own takes 30 µs to build.
    array_reducers: Mapping[type, Callable[[Any], Any]] = MappingProxyType({})

    def reducer_override(self, obj: Any) -> Any:
        kind = type(obj)
        reducer = self.array_reducers.get(kind)
        if reducer is not None:
            return reducer(obj)
        if kind is FunctionType:
            if obj.__module__ == _BUILDERS:  # imported by name, which cloudpickle would look into at length
                return NotImplemented
            return _with_our_builders(self._reduce_function(obj))
        if not isinstance(obj, type):
            return NotImplemented
        return reduce_class(obj, super().reducer_override)

    def _reduce_function(self, fn: FunctionType) -> Any:
        try:
            return super().reducer_override(fn)
        except Exception:
            copy = _with_annotations_as_text(fn)
            if copy is None:
                raise
            return super().reducer_override(copy)

    dispatch_table: ClassVar[Any] = ChainMap(
        {
            functools.cached_property: _reduce_cached_property,
            **dict.fromkeys((WeakKeyDictionary, WeakValueDictionary), _reduce_weak_dictionary),
            **dict.fromkeys((CellType, ModuleType), _reduce_with_our_builders),
            CodeType: _reduce_code,
            type(dataclasses.MISSING): lambda _: "MISSING",
            type(dataclasses.KW_ONLY): lambda _: "KW_ONLY",
            **_unresolved_reducers,
            **by_name.REDUCERS,
        },
        cloudpickle.Pickler.dispatch_table,
    )
