"""Classes whose bases have a say in what is derived from them, rebuilt though what was said to these is not known.

``class Png(Plugin, suffix=".png")`` gives its keywords to ``Plugin.__init_subclass__``, and keeps none. What that made
of them is in the class and in its bases, which travel.
"""

from __future__ import annotations

import types
from typing import Any

import cloudpickle

_OF_PYTHON = frozenset({"builtins", "typing"})


def with_known_bases(kind: type, reduced: Any) -> Any:
    """Have a class rebuilt whether or not its bases want keywords for it."""
    make_skeleton = cloudpickle.cloudpickle._make_skeleton_class
    if reduced is NotImplemented or reduced[0] is not make_skeleton or not _asked(kind.__mro__[1:]):
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
