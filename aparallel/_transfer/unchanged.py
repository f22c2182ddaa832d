"""Whether a function that travels by value would still pickle the same, without pickling it.

A call must run its function as it is now, with the globals and closed-over values of this moment. Pickling
it each time would tell (about 80 µs); often looking is enough (under 1 µs): when all that it refers to is
immutable, or imported by name on the other side, then identical references mean an identical pickle.
"""

from __future__ import annotations

import sys
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, ModuleType
from typing import Any

from aparallel._transfer.pickling import is_by_value_registered

_IMMUTABLE = frozenset({int, float, complex, bool, str, bytes, type(None), range, type(...)})
_MISSING = object()
_MANY = 200

# What may be imported by its name.
NAMED = (FunctionType, BuiltinFunctionType, type)


class Witness:
    """Remembers what a function referred to. :meth:`still_holds` says whether that is so now.

    It does not say whether modules are sent by value since: whoever asks looks at that first.
    """

    __slots__ = ("_cells", "_functions", "_globals")

    def __init__(self) -> None:
        self._functions: list[tuple[FunctionType, CodeType, Any, tuple[Any, ...], Any]] = []
        self._globals: list[tuple[dict[str, Any], str, Any]] = []
        self._cells: list[tuple[CellType, Any]] = []

    @classmethod
    def of(cls, fn: FunctionType) -> Witness | None:
        """Return a witness for *fn*, or None if looking is not enough: it refers to something mutable."""
        if is_by_value_registered():
            return None
        witness = cls()
        return witness if witness._include(fn, set()) else None

    def still_holds(self) -> bool:
        for fn, code, defaults, named, annotated in self._functions:
            if (
                fn.__code__ is not code
                or fn.__defaults__ is not defaults
                or _names_of(fn) != named
                or _annotations_of(fn) != annotated
                or _has_more(fn)
            ):
                return False
        for namespace, name, value in self._globals:
            if namespace.get(name, _MISSING) is not value:
                return False
        try:
            return all(cell.cell_contents is value for cell, value in self._cells)
        except ValueError:  # a cell was emptied
            return False

    def _include(self, fn: FunctionType, seen: set[int]) -> bool:
        if id(fn) in seen:
            return True
        seen.add(id(fn))
        if len(seen) > _MANY or _has_more(fn) or not _is_immutable(fn.__defaults__):
            return False
        annotated = _annotations_of(fn)
        if isinstance(annotated, dict):
            if not all(map(_is_plain_annotation, annotated.values())):
                return False
            annotated = dict(annotated)  # anyone may change it, so a copy
        self._functions.append((fn, fn.__code__, fn.__defaults__, _names_of(fn), annotated))
        namespace = fn.__globals__
        for name in _names(fn.__code__):
            value = namespace.get(name, _MISSING)
            self._globals.append((namespace, name, value))
            if value is not _MISSING and not self._is_stable(value, seen):
                return False
        for cell in fn.__closure__ or ():
            try:
                value = cell.cell_contents
            except ValueError:
                return False
            self._cells.append((cell, value))
            if not self._is_stable(value, seen):
                return False
        return True

    def _is_stable(self, value: Any, seen: set[int]) -> bool:
        if _is_immutable(value):
            return True
        if isinstance(value, ModuleType):
            return sys.modules.get(value.__name__) is value and value.__spec__ is not None
        if isinstance(value, NAMED):
            if is_importable(value):
                return True
            return isinstance(value, FunctionType) and self._include(value, seen)
        return False


def _has_more(fn: FunctionType) -> bool:
    """Whether *fn* has parts that travel with it and can be changed in place."""
    return bool(fn.__kwdefaults__ or fn.__dict__)


def _annotations_of(fn: FunctionType) -> Any:
    """The annotations of *fn*; if they cannot be told, the function that says them as texts, as they travel then."""
    try:
        return fn.__annotations__
    except Exception:  # from Python 3.14 on it is anyone's expression, computed now
        return fn.__annotate__  # type: ignore[attr-defined]


def _is_plain_annotation(value: Any) -> bool:
    return type(value) is str or value is None or (isinstance(value, type) and is_importable(value))


def _names_of(fn: FunctionType) -> tuple[Any, ...]:
    """What else of *fn* travels, to be compared."""
    return fn.__name__, fn.__qualname__, fn.__module__, fn.__doc__


def _is_immutable(value: Any) -> bool:
    if type(value) is tuple:
        return all(map(_is_immutable, value))
    return type(value) in _IMMUTABLE


def is_importable(value: Any) -> bool:
    """Whether a worker finds *value*, of what is :data:`NAMED`, in its module by its name."""
    name = value.__module__
    module = sys.modules.get(name) if isinstance(name, str) and name != "__main__" else None
    return module is not None and module.__dict__.get(value.__qualname__) is value


def _names(code: CodeType) -> set[str]:
    """The global names that *code* and the code inside it may use: these, and harmlessly attribute names."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names |= _names(constant)
    return names
