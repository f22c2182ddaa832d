"""Functions that came by value, put together again: what their pickles call.

cloudpickle has such functions too, but importing it costs a worker 25 ms before its first call.
"""

from __future__ import annotations

import builtins
import marshal
import operator
import sys
from _pickle import loads
from types import CellType, CodeType, FunctionType, ModuleType

TYPE_CHECKING = False  # as in aparallel/__init__.py
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

# Each pickle brings globals of its own for the functions in it. What the pool's initializer set in its globals, by the
# name of their module: functions that come later have that too, as they would in one module.
_initialized: dict[str, dict[str, Any]] = {}

# The globals that an initializer brings, by their id, while it is loaded.
_brought: dict[int, dict[str, Any]] | None = None


def load_initializer(data: memoryview) -> tuple[Any, Callable[[], None]]:
    """Unpickle an initializer, and return it with what is to be called when it has run: that keeps what it set."""
    global _brought
    brought: dict[int, dict[str, Any]] = {}
    _brought = brought
    try:
        loaded = loads(data)
    finally:
        _brought = None
    before = [
        (namespace, {name: (value, _parts(value)) for name, value in namespace.items()})
        for namespace in brought.values()
    ]

    def keep() -> None:
        for namespace, known in before:
            kept = _initialized.setdefault(namespace.get("__name__", ""), {})
            for name, value in namespace.items():
                if name not in known or value is not known[name][0] or not _are_same(_parts(value), known[name][1]):
                    kept[name] = value

    return loaded, keep


def _parts(value: object) -> list[object]:
    """What a container or an object refers to: all that is looked at to see whether it was changed."""
    if isinstance(value, type | ModuleType | FunctionType):
        return []
    if not isinstance(value, dict | list | set):
        try:
            value = value.__dict__
        except Exception:  # it has none, or is a proxy of what is not there yet
            return []
    return [*value, *value.values()] if isinstance(value, dict) else list(value)


def _are_same(now: list[object], before: list[object]) -> bool:
    return len(now) == len(before) and all(map(operator.is_, now, before))


load_code = marshal.loads


def make_code(*parts: Any) -> CodeType:
    return CodeType(*parts)


def make_cell(*content: object) -> CellType:
    """A closure's variable; without *content* one that is not set yet."""
    return CellType(*content)


def make_function(
    code: CodeType, namespace: dict[str, Any], name: str, defaults: Any, closure: tuple[CellType, ...] | None
) -> FunctionType:
    """A function that is complete only after :func:`complete_function`: it may refer to itself."""
    namespace["__builtins__"] = builtins
    if _brought is not None:
        _brought[id(namespace)] = namespace
    return FunctionType(code, namespace, name, defaults, closure)


def complete_function(function: FunctionType, state: tuple[dict[str, Any], dict[str, Any]]) -> None:
    """Give a function its attributes, globals and closed-over values, in the layout of cloudpickle 3."""
    attributes, parts = state
    function.__dict__.update(attributes)
    function.__globals__.update(parts.pop("__globals__"))
    function.__globals__.update(_initialized.get(function.__globals__.get("__name__", ""), ()))
    for cell, filled in zip(function.__closure__ or (), parts.pop("__closure__") or (), strict=True):
        try:
            cell.cell_contents = filled.cell_contents
        except ValueError:  # not set on the other side either
            continue
    del parts["_cloudpickle_submodules"]  # they are imported by now, which was their purpose
    for name, value in parts.items():
        setattr(function, name, value)


def import_by_name(name: str) -> ModuleType:
    __import__(name)
    return sys.modules[name]
