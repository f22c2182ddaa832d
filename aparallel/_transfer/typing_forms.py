"""What annotations are made of, where a script defines it.

pickle knows such things only by the names that they have in a module. Functions and classes take their annotations
along, so they would not travel either.
"""

from __future__ import annotations

import functools
import sys
import typing
from threading import get_ident
from typing import TYPE_CHECKING, Any

from aparallel._transfer.by_name import can_be_imported

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

# What makes these classes in typing, and another one in typing_extensions.
_TYPED_DICT_MAKER = "_TypedDictMeta"


def with_bases_of_typed_dict(kind: type, reduced: Any) -> Any:
    """Have a TypedDict rebuilt without ``dict`` among its bases, where it is but may not be named."""
    if type(kind).__name__ != _TYPED_DICT_MAKER or reduced is NotImplemented:
        return reduced
    builder, (constructor, name, bases, *more), *rest = reduced
    return builder, (constructor, name, tuple(base for base in bases if base is not dict), *more), *rest


def _reduce_new_type(form: Any) -> Any:
    if can_be_imported(form, form.__name__):
        return form.__name__
    return typing.NewType, (form.__name__, form.__supertype__), {"__module__": form.__module__}


def _reduce_parameters(form: Any) -> Any:
    """Of a ParamSpec or a TypeVarTuple."""
    return form.__name__ if can_be_imported(form, form.__name__) else (type(form), (form.__name__,))


REDUCERS: Mapping[type, Callable[[Any], Any]] = {
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
        if can_be_imported(form, form.__name__):
            return form.__name__
        if form.__type_params__:
            make = functools.partial(typing.TypeAliasType, type_params=form.__type_params__)
            return make, (form.__name__, form.__value__)
        # Its value may mention it.
        return _make_alias, (form.__module__, form.__name__), form.__value__, None, None, _complete_alias

    REDUCERS = {**REDUCERS, typing.TypeAliasType: _reduce_alias}
