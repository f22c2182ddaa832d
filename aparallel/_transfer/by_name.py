"""What travels as its name where both sides have it by that, else by value. Loaded when first needed.

Context variables keep their identity. Functions with a cache travel with an empty one. And what annotations are made
of: functions and classes take these along, and would not travel either.
"""

from __future__ import annotations

import functools
import os
import sys
import typing
from contextvars import Context, ContextVar
from threading import get_ident
from typing import TYPE_CHECKING, Any

import cloudpickle

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def _is_by_name(module: str) -> bool:
    """Whether what *module* has travels as its name: both sides have it, and the user did not ask for anything else."""
    registered = cloudpickle.list_registry_pickle_by_value()
    return module != "__main__" and not any(f"{module}.".startswith(f"{name}.") for name in registered)


def _can_be_imported(thing: Any, name: str) -> bool:
    """Whether *thing* travels as *name*, which its module, or a class in that, has it by."""
    found = sys.modules.get(thing.__module__)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found is thing and _is_by_name(thing.__module__)


# Context variables that cannot be imported by name, by a key that every process shares, and these keys. A variable is
# entered when it first travels, at both ends, and stays: context variables are never collected. Threads enter some, so
# each step is atomic.
_variables: dict[str, ContextVar[Any]] = {}
_keys: dict[ContextVar[Any], str] = {}


def _reduce_context_var(var: ContextVar[Any]) -> Any:
    home = home_of(var)
    if home is not None and _is_by_name(home[0]):
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


class _Late:
    """Stands in for the function of a cached function until that one is unpickled: it may refer to itself."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)

    function: Any = None


def _reduce_cached(cached: Any) -> Any:
    name: str = cached.__qualname__
    if _can_be_imported(cached, name):
        return name
    parameters = cached.cache_parameters()
    return _late_cached, (parameters["maxsize"], parameters["typed"]), cached.__wrapped__, None, None, _complete_cached


def _late_cached(maxsize: int | None, typed: bool) -> Any:
    return functools.lru_cache(maxsize, typed)(_Late())


def _complete_cached(cached: Any, function: Any) -> None:
    cached.__wrapped__.function = function
    functools.update_wrapper(cached, function)  # and has it as what is wrapped


def _reduce_new_type(form: Any) -> Any:
    if _can_be_imported(form, form.__name__):
        return form.__name__
    return typing.NewType, (form.__name__, form.__supertype__), {"__module__": form.__module__}


def _reduce_parameters(form: Any) -> Any:
    """Of a ParamSpec or a TypeVarTuple."""
    return form.__name__ if _can_be_imported(form, form.__name__) else (type(form), (form.__name__,))


REDUCERS: Mapping[type, Callable[[Any], Any]] = {
    ContextVar: _reduce_context_var,
    type(_late_cached(0, False)): _reduce_cached,
    typing.NewType: _reduce_new_type,
    typing.ParamSpec: _reduce_parameters,
    typing.TypeVarTuple: _reduce_parameters,
}

if sys.version_info >= (3, 12):
    # What an alias is about to stand for, by the thread that unpickles it.
    _values: dict[int, Any] = {}

    def _make_alias(module: str, name: str) -> Any:
        namespace = {"__name__": module, "value": lambda: _values.pop(get_ident())}
        exec(f"type {name} = value()", namespace)  # noqa: S102 (TypeAliasType(...) wants the value now)
        return namespace[name]

    def _complete_alias(alias: typing.TypeAliasType, value: Any) -> None:
        _values[get_ident()] = value
        _ = alias.__value__  # takes it, for good

    def _reduce_alias(form: typing.TypeAliasType) -> Any:
        if _can_be_imported(form, form.__name__):
            return form.__name__
        if form.__type_params__:
            make = functools.partial(typing.TypeAliasType, type_params=form.__type_params__)
            return make, (form.__name__, form.__value__)
        # Its value may mention it.
        return _make_alias, (form.__module__, form.__name__), form.__value__, None, None, _complete_alias

    REDUCERS = {**REDUCERS, typing.TypeAliasType: _reduce_alias}
