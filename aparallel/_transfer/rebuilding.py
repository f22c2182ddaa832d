"""Functions that came by value, put together again: what their pickles call.

cloudpickle has such functions too, but importing it costs a worker 25 ms before its first call.
"""

from __future__ import annotations

import builtins
import sys
from types import CellType, CodeType, FunctionType, ModuleType

TYPE_CHECKING = False  # as in aparallel/__init__.py
if TYPE_CHECKING:
    from typing import Any


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
    return FunctionType(code, namespace, name, defaults, closure)


def complete_function(function: FunctionType, state: tuple[dict[str, Any], dict[str, Any]]) -> None:
    """Give a function its attributes, globals and closed-over values, in the layout of cloudpickle 3."""
    attributes, parts = state
    function.__dict__.update(attributes)
    function.__globals__.update(parts.pop("__globals__"))
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
