"""Classes that travel by value, rebuilt with all that they are here. Loaded when first needed.

cloudpickle drops the slots of a class, makes the members of an enum of their values alone, and cannot rebuild a class
whose bases want keywords for what is derived from them. A class that came from the other side goes back as itself: it
would send it whole, and overwrite the original's attributes.
"""

from __future__ import annotations

import types
from abc import ABCMeta
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

import cloudpickle

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

# cloudpickle's own numbers for classes that travel by value, and those that this process gave first.
_tracked: Any = cloudpickle.cloudpickle._DYNAMIC_CLASS_TRACKER_BY_CLASS
_tracked_ids: Any = cloudpickle.cloudpickle._DYNAMIC_CLASS_TRACKER_BY_ID
_given_here: set[str] = set()


def reduce_class(kind: type, reduce: Callable[[type], Any]) -> Any:
    """Reduce a class that may travel by value. *reduce*: cloudpickle's own way."""
    tracker_id = _tracked.get(kind)
    if tracker_id is not None and tracker_id not in _given_here:
        return _same_class, (tracker_id,)
    reduced = reduce(kind)
    if reduced is not NotImplemented:  # it has a name that can be imported
        for amended in (_with_slots, _with_bases_of_typed_dict, _with_whole_members, _with_known_bases):
            reduced = amended(kind, reduced)
    if (tracker_id := _tracked.get(kind)) is not None:
        _given_here.add(tracker_id)
    return reduced


def _same_class(tracker_id: str) -> type:
    found: type | None = _tracked_ids.get(tracker_id)
    if found is None:
        raise LookupError("the class of an object that came back is gone here")
    return found


# What makes a class and takes the slots that it says; others may refuse them, or give their own.
_PLAIN_MAKERS = frozenset({type.__new__, ABCMeta.__new__, type(Protocol).__new__})


def _with_slots(kind: type, reduced: Any) -> Any:
    """Have a class rebuilt with its slots: without them, as cloudpickle does it, its objects cannot come back."""
    slots = kind.__dict__.get("__slots__")
    if slots is None or reduced[0] is not cloudpickle.cloudpickle._make_skeleton_class:
        return reduced
    if type(kind).__new__ not in _PLAIN_MAKERS or NamedTuple in kind.__dict__.get("__orig_bases__", ()):
        return reduced
    builder, (constructor, name, bases, namespace, *more), *rest = reduced
    return builder, (constructor, name, bases, {**namespace, "__slots__": slots}, *more), *rest


# What makes these classes in typing, and another one in typing_extensions.
_TYPED_DICT_MAKER = "_TypedDictMeta"


def _with_bases_of_typed_dict(kind: type, reduced: Any) -> Any:
    """Have a TypedDict rebuilt without ``dict`` among its bases, where it is but may not be named."""
    if type(kind).__name__ != _TYPED_DICT_MAKER:
        return reduced
    builder, (constructor, name, bases, *more), *rest = reduced
    return builder, (constructor, name, tuple(base for base in bases if base is not dict), *more), *rest


# Enums

# What Enum itself gives each member when its class is made.
_OF_ENUM = frozenset({"_value_", "_name_", "__objclass__", "_sort_order_", "_inverted_"})

# How members of a class are made, which is ours while it is rebuilt.
_MAKING = ("__new__", "__init__", "__new_member__", "_new_member_", "_use_args_")


def _with_whole_members(kind: Any, reduced: Any) -> Any:
    """Have an enum rebuilt with its aliases, and with members that are as they are here."""
    if not issubclass(kind, Enum) or not kind.__members__:
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


# Classes whose bases have a say in what is derived from them: ``class Png(Plugin, suffix=".png")`` gives its keywords
# to ``Plugin.__init_subclass__``, and keeps none. What that made of them is in the class and its bases, which travel.

_OF_PYTHON = frozenset({"builtins", "typing"})


def _with_known_bases(kind: type, reduced: Any) -> Any:
    """Have a class rebuilt whether or not its bases want keywords for it."""
    make_skeleton = cloudpickle.cloudpickle._make_skeleton_class
    if reduced[0] is not make_skeleton or not _asked(kind.__mro__[1:]):
        return reduced
    _, parts, *rest = reduced
    return make_subclass, (make_skeleton, parts), *rest


def _asked(kinds: tuple[type, ...]) -> list[Any]:
    """Return those of *kinds* that are told of classes that derive from them."""
    return [kind for kind in kinds if "__init_subclass__" in vars(kind) and kind.__module__ not in _OF_PYTHON]


def make_subclass(make_skeleton: Any, parts: tuple[Any, ...]) -> Any:
    try:
        return make_skeleton(*parts)
    except TypeError:  # keywords are missing
        bases = types.resolve_bases(parts[2])
        hooks = [(kind, vars(kind)["__init_subclass__"]) for base in bases for kind in _asked(base.__mro__)]
        if not hooks:
            raise
    try:
        for kind, _ in hooks:
            kind.__init_subclass__ = classmethod(_say_nothing)
        return make_skeleton(*parts)
    finally:
        for kind, hook in hooks:
            kind.__init_subclass__ = hook


def _say_nothing(kind: type, /, **keywords: Any) -> None:
    """Stand in for a hook that has run on the other side."""
