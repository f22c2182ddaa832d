"""Enums of a script, rebuilt with all that their members are and have.

cloudpickle makes each member of its value alone. What ``__new__`` or ``__init__`` gave it is lost, and so are aliases.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Mapping

# What Enum itself gives each member when its class is made.
_OF_ENUM = frozenset({"_value_", "_name_", "__objclass__", "_sort_order_", "_inverted_"})

# How members of a class are made, which is ours while it is rebuilt.
_MAKING = ("__new__", "__init__", "__new_member__", "_new_member_", "_use_args_")


def with_whole_members(kind: Any, reduced: Any) -> Any:
    """Have an enum rebuilt with its aliases, and with members that are as they are here."""
    if not issubclass(kind, Enum) or not kind.__members__ or reduced is NotImplemented:
        return reduced
    builder, (bases, name, qualname, _, *more), (attributes, slots), *rest, complete = reduced
    members: dict[str, Any] = {"__new__": make_member, "__init__": leave_as_made}
    had = {}
    for label, member in kind.__members__.items():
        data = _data_of(member, kind._member_type_)
        if data is None:
            return reduced
        members[label] = data, member._value_
        had[label] = _attributes_of(member)
        attributes.pop(label, None)  # of an alias
    making = {name: vars(kind)[name] for name in _MAKING if name in vars(kind)}
    state = complete, (attributes, slots), making, had
    return builder, (bases, name, qualname, members, *more), state, *rest, complete_enum


def _data_of(member: Any, data_type: Any) -> tuple[Any, ...] | None:
    """Return what its type that is no enum, such as bytes, makes it of; None if that does not tell."""
    if data_type.__new__ is object.__new__:
        return ()
    if hasattr(data_type, "__getnewargs__"):
        return cast("tuple[Any, ...]", data_type.__getnewargs__(member))
    builder, data, *_ = data_type.__reduce_ex__(member, 4)
    return data if builder is type(member) else None


def _attributes_of(member: Any) -> dict[str, Any]:
    # Whatever its class says of its state: that of a member is in its class.
    state: Any = object.__getstate__(member)
    parts = state if isinstance(state, tuple) else (state,)
    return {name: value for part in parts if part for name, value in part.items() if name not in _OF_ENUM}


def make_member(kind: Any, *parts: Any) -> Any:
    data, value = parts if len(parts) == 2 else parts[0]  # one if the data are a tuple
    member = kind._member_type_.__new__(kind, *data)
    member._value_ = value
    return member


def leave_as_made(member: object, *parts: Any) -> None:
    """Stand in for ``__init__``, which has run on the other side."""


def complete_enum(kind: Any, state: tuple[Any, Any, Mapping[str, Any], Mapping[str, Mapping[str, Any]]]) -> None:
    """Give an enum its attributes, and its members theirs."""
    complete, class_state, making, had = state
    complete(kind, class_state)
    for name in _MAKING:
        if name in making:
            setattr(kind, name, making[name])
        elif name in vars(kind):
            delattr(kind, name)
    for label, attributes in had.items():
        for name, value in attributes.items():
            object.__setattr__(kind.__members__[label], name, value)
