"""What is inside a callable: the function at its bottom, what it holds, and where its code stands."""

from __future__ import annotations

import functools
import inspect
import sys
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from types import CellType

MISSING: Final = object()
"""What stands for the content of a cell that has none, and for a name that is not there."""


def unbind(fn: Any) -> tuple[Any, list[Any]]:
    """Return the function at the bottom of methods, partials and callable objects, and what they hold."""
    own: list[Any] = []
    while True:
        if isinstance(fn, MethodType):
            own.append(fn.__self__)
            fn = fn.__func__
        elif isinstance(fn, functools.partial):
            own += [fn.args, tuple(sorted(fn.keywords.items()))]
            fn = fn.func
        elif isinstance(fn, FunctionType | type):
            return fn, own
        elif isinstance(fn, BuiltinFunctionType):
            if fn.__self__ is not None and not isinstance(fn.__self__, ModuleType):
                own.append(fn.__self__)
            return fn, own
        elif callable(wrapped := _wrapped_by(fn)):  # such as lru_cache's
            fn = wrapped
        elif isinstance(method := getattr(type(fn), "__call__", None), FunctionType):  # noqa: B004
            own.append(fn)
            fn = method
        else:
            return fn, own


def _wrapped_by(fn: Any) -> Any:
    """What *fn* says that it wraps. Of proxies and mocks every name can be asked for, with errors or without end."""
    return None if inspect.getattr_static(fn, "__wrapped__", None) is None else getattr(fn, "__wrapped__", None)


def package_of(fn: Any) -> str:
    """The top-level package, or module, that *fn*'s code stands in; decorators copy only the name."""
    if isinstance(fn, ModuleType):
        return fn.__name__.partition(".")[0]
    namespace = getattr(fn, "__globals__", None)  # of the class of functions, a descriptor
    module = namespace.get("__name__") if isinstance(namespace, dict) else getattr(fn, "__module__", None)
    return str(module).partition(".")[0]


def is_importable(function: Any) -> bool:
    """Whether *function* is what its module has under its name, and the module can be imported elsewhere."""
    if function.__module__ == "__main__":
        return False
    found: Any = sys.modules.get(function.__module__)
    for name in function.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is function


def content_of(cell: CellType) -> Any:
    """What a closure's cell holds now, or MISSING."""
    try:
        return cell.cell_contents
    except ValueError:  # nothing was assigned yet
        return MISSING


def functions_of(value: Any) -> list[FunctionType]:
    """The functions behind an attribute of a class that is not a class itself."""
    if isinstance(value, property):
        return [fn for part in (value.fget, value.fset, value.fdel) for fn in functions_of(part)]
    if isinstance(value, staticmethod | classmethod):
        return functions_of(value.__func__)
    if isinstance(value, functools.cached_property | functools.partialmethod):
        return functions_of(value.func)
    inner = unbind(value)[0] if callable(value) else None
    return [inner] if isinstance(inner, FunctionType) else []
