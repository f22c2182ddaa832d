"""Why a call could not be pickled: which part of it, how deep inside, and what to do."""

from __future__ import annotations

import inspect
from abc import ABC
from types import FunctionType, GetSetDescriptorType, MemberDescriptorType, MethodType
from typing import TYPE_CHECKING, Any

from aparallel._ground.exceptions import in_short
from aparallel._transfer.out_of_band import OutOfBand
from aparallel._transfer.pickling import pickle_in_pieces
from aparallel.errors import UnpicklableCallError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from contextvars import ContextVar

# How deep to look inside what fails, and at how many parts of each level.
_DEPTH = 5
_BREADTH = 200

# Buffers of more bytes are not copied only to see whether what has them can be pickled.
_LARGE = 64 * 1024

_FUNCTION = "the function"

# What a class does not take along: it has its own wherever it is made. The last is what abc keeps.
_MADE_ANEW = (GetSetDescriptorType, MemberDescriptorType, type(vars(ABC)["_abc_impl"]))


def unpicklable_call(
    function: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    name: str,
    index: int | None,
    reason: BaseException,
    variables: Iterable[ContextVar[Any]] = (),
) -> UnpicklableCallError:
    """Build the error for a call whose pickling raised *reason*; *index* is None for a single call.

    *variables* are the context variables that travel with it.
    """
    part, culprit = _find(function, args, kwargs, variables)
    part = part.removesuffix(",")
    which = f"Call {index} ({name})" if index is not None else f"The call {name}"
    comma = "," if ", which " in part else ""
    what = f"{part}{comma} is {_indefinite(culprit)}" if part else "one of its parts refuses"
    message = (
        f"{which} could not be pickled: {what}. ({in_short(reason)})\n"
        f"Create it inside the function, pass what it is made from, or use backend='thread'."
    )
    error = UnpicklableCallError(message, call=name, part=part)
    error.__cause__ = reason
    return error


def _find(
    function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], variables: Iterable[ContextVar[Any]]
) -> tuple[str, Any]:
    parts = [(_FUNCTION, function)]
    parts += [(f"argument {position}", value) for position, value in enumerate(args)]
    parts += [(f"argument {name!r}", value) for name, value in kwargs.items()]
    parts += [(f"the context variable {variable.name!r}", variable.get(None)) for variable in variables]
    for label, value in parts:
        if not _pickles(value):
            return _descend(label, value)
    return "", None


def _descend(label: str, value: Any) -> tuple[str, Any]:
    for _ in range(_DEPTH):
        for inner_label, inner in _inside(label, value):
            if not _pickles(inner):
                label, value = inner_label, inner
                break
        else:
            break
    return label, value


def _inside(label: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, FunctionType):
        variables = inspect.getclosurevars(value)
        for name, inner in variables.nonlocals.items():
            yield f"{name!r}, which {label} closes over,", inner
        for name, inner in variables.globals.items():
            yield f"global {name!r}, which {label} uses,", inner
        for position, inner in enumerate(value.__defaults__ or ()):
            yield f"{label}'s default {position}", inner
    elif isinstance(value, MethodType):
        yield "self" if label == _FUNCTION else _step(label, ".__self__"), value.__self__
    elif isinstance(value, dict):
        for key, inner in list(value.items())[:_BREADTH]:
            yield _step(label, f"[{key!r}]"), inner
    elif isinstance(value, list | tuple | set | frozenset):
        for position, inner in enumerate(list(value)[:_BREADTH]):
            yield _step(label, f"[{position}]"), inner
    elif isinstance(value, type):
        yield _step(label, ".__bases__"), value.__bases__
        # Methods last: one that calls super() has the class in it, and so whatever else cannot be pickled there.
        for name, inner in sorted(vars(value).items(), key=lambda item: isinstance(item[1], FunctionType)):
            if not isinstance(inner, _MADE_ANEW):
                yield _step(label, f".{name}"), inner
    elif not isinstance(getattr(type(value), "__reduce__", None), FunctionType):  # what that gives is pickled
        for name, inner in list(getattr(value, "__dict__", {}).items())[:_BREADTH]:
            yield _step(label, f".{name}"), inner
        yield _step(label, ".__class__"), type(value)


def _step(label: str, step: str) -> str:
    """Name what *step* leads to: ``.a`` from ``'o', which f closes over,`` to ``'o.a', which f closes over,``."""
    name, comma, clause = label.partition("', which ")
    return f"{name}{step}{comma}{clause}"


def _pickles(value: Any) -> bool:
    try:
        pickle_in_pieces(value, OutOfBand(_LARGE, "r"))
    except Exception:
        return False
    return True


def _indefinite(value: Any) -> str:
    kind = type(value)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"
