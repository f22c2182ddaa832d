"""Pickling by value: cloudpickle, taught about context variables. Loaded when first needed."""

from __future__ import annotations

import dataclasses
import functools
import io
import marshal
import os
import sys
from abc import ABCMeta
from collections import ChainMap
from contextvars import Context, ContextVar
from types import CellType, CodeType, FunctionType, MappingProxyType, ModuleType
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol
from weakref import WeakKeyDictionary, WeakValueDictionary

import cloudpickle

from aparallel._transfer import enums, rebuilding, subclasses, typing_forms
from aparallel._transfer.by_name import can_be_imported, is_by_name

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_Reduced = tuple[Any, tuple[Any, ...]]

# Context variables that cannot be imported by name, by a key that every process shares, and these keys. A variable is
# entered when it first travels, at both ends, and stays: context variables are never collected. Threads enter some, so
# each step is atomic.
_variables: dict[str, ContextVar[Any]] = {}
_keys: dict[ContextVar[Any], str] = {}


def dumps_by_value(obj: object) -> bytes:
    with io.BytesIO() as file:
        ByValuePickler(file, 5).dump(obj)
        return file.getvalue()


def _reduce_context_var(var: ContextVar[Any]) -> _Reduced:
    home = home_of(var)
    if home is not None and is_by_name(home[0]):
        return _import_variable, home
    key = _keys.setdefault(var, f"{os.getpid()}:{id(var)}")
    _variables[key] = var
    default: tuple[Any, ...]
    try:
        default = (Context().run(var.get),)
    except LookupError:
        default = ()
    return _same_variable, (key, var.name, default)


def _import_variable(module: str, name: str) -> ContextVar[Any]:
    __import__(module)
    found: ContextVar[Any] = getattr(sys.modules[module], name)
    return found


def _same_variable(key: str, name: str, default: tuple[Any, ...]) -> ContextVar[Any]:
    var = _variables.get(key)
    if var is None:
        # Created here and not at module level because it stands for one that lives in another process.
        made: ContextVar[Any] = ContextVar(name, default=default[0]) if default else ContextVar(name)
        var = _variables.setdefault(key, made)
        _keys[var] = key
    return var


def home_of(var: ContextVar[Any]) -> tuple[str, str] | None:
    """Find the module and the name that *var* can be imported by: a ContextVar knows only its label."""
    for module_name, module in list(sys.modules.items()):
        names = getattr(module, "__dict__", None)
        if names is None:
            continue
        if names.get(var.name) is var:
            return module_name, var.name
    for module_name, module in list(sys.modules.items()):
        for name, value in list((getattr(module, "__dict__", None) or {}).items()):
            if value is var:
                return module_name, name
    return None


# cloudpickle's own numbers for classes that travel by value, and those that this process gave first.
_tracked: Any = cloudpickle.cloudpickle._DYNAMIC_CLASS_TRACKER_BY_CLASS
_tracked_ids: Any = cloudpickle.cloudpickle._DYNAMIC_CLASS_TRACKER_BY_ID
_given_here: set[str] = set()


def _same_class(tracker_id: str) -> type:
    found: type | None = _tracked_ids.get(tracker_id)
    if found is None:
        raise LookupError("the class of an object that came back is gone here")
    return found


class _Late:
    """Stands in for the function of a cached function until that one is unpickled: it may refer to itself."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)

    function: Any = None


def _reduce_cached(cached: Any) -> Any:
    name: str = cached.__qualname__
    if can_be_imported(cached, name):
        return name
    parameters = cached.cache_parameters()
    return _late_cached, (parameters["maxsize"], parameters["typed"]), cached.__wrapped__, None, None, _complete_cached


def _late_cached(maxsize: int | None, typed: bool) -> Any:
    return functools.lru_cache(maxsize, typed)(_Late())


def _complete_cached(cached: Any, function: Any) -> None:
    cached.__wrapped__.function = function
    functools.update_wrapper(cached, function)  # and has it as what is wrapped


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


# What makes a class and takes the slots that it says; others may refuse them, or give their own.
_PLAIN_MAKERS = frozenset({type.__new__, ABCMeta.__new__, type(Protocol).__new__})


def _with_slots(kind: type, reduced: Any) -> Any:
    """Have a class rebuilt with its slots: without them, as cloudpickle does it, its objects cannot come back."""
    slots = kind.__dict__.get("__slots__")
    if slots is None or reduced is NotImplemented or reduced[0] is not cloudpickle.cloudpickle._make_skeleton_class:
        return reduced
    if type(kind).__new__ not in _PLAIN_MAKERS or NamedTuple in kind.__dict__.get("__orig_bases__", ()):
        return reduced
    builder, (constructor, name, bases, namespace, *more), *rest = reduced
    return builder, (constructor, name, bases, {**namespace, "__slots__": slots}, *more), *rest


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
    """cloudpickle's pickler, with thirteen amendments.

    Context variables keep their identity. Functions with a cache travel (with an empty one), and so do classes with
    cached properties. A class that came from the other side goes back as itself: cloudpickle would send it whole, and
    overwrite the original's attributes. A class keeps its slots. Dictionaries with weak keys or values travel, and so
    do generic functions, which have one. A function is rebuilt without cloudpickle, unless a class that travels by
    value is among what it refers to, and knows its file. It travels whatever its annotations name, and so does a
    dataclass, whose fields know that they have no default; types that a script defines for its annotations travel,
    too. The members of an enum are made as they were here. A class travels whatever keywords its bases were given.
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
        tracker_id = _tracked.get(obj)
        if tracker_id is not None and tracker_id not in _given_here:
            return _same_class, (tracker_id,)
        reduced = _with_slots(obj, super().reducer_override(obj))
        reduced = typing_forms.with_bases_of_typed_dict(obj, reduced)
        reduced = enums.with_whole_members(obj, reduced)
        reduced = subclasses.with_known_bases(obj, reduced)
        if (tracker_id := _tracked.get(obj)) is not None:
            _given_here.add(tracker_id)
        return reduced

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
            ContextVar: _reduce_context_var,
            type(_late_cached(0, False)): _reduce_cached,
            functools.cached_property: _reduce_cached_property,
            **dict.fromkeys((WeakKeyDictionary, WeakValueDictionary), _reduce_weak_dictionary),
            **dict.fromkeys((CellType, ModuleType), _reduce_with_our_builders),
            CodeType: _reduce_code,
            type(dataclasses.MISSING): lambda _: "MISSING",
            type(dataclasses.KW_ONLY): lambda _: "KW_ONLY",
            **_unresolved_reducers,
            **typing_forms.REDUCERS,
        },
        cloudpickle.Pickler.dispatch_table,
    )
