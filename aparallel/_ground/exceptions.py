"""What calls raise, on its way to who is to see it.

Exceptions are pickled so that they can be read again, whatever their ``__init__`` takes; described as text, whatever
their ``__str__`` does; and put into a RemoteCallError where they would mean something else. A worker loads this at its
start.
"""

from __future__ import annotations

import sys
from types import FunctionType

TYPE_CHECKING = False  # as in aparallel/__init__.py
if TYPE_CHECKING:
    from typing import Any


# How exceptions reduce themselves unless their class says otherwise: to (type, arguments) or (type, arguments, state).
_REDUCED_BY_PYTHON = frozenset(kind.__reduce__ for kind in (BaseException, OSError, ImportError, AttributeError))


class ReducesExceptions:
    """The first base of a pickler: exceptions, wherever they sit in what it pickles, become a call of :func:`_rebuild`.

    But for those whose type has a ``__reduce__`` of its own.
    """

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, BaseException):
            kind = type(obj)
            if kind.__reduce__ in _REDUCED_BY_PYTHON and kind.__reduce_ex__ is object.__reduce_ex__:
                return _reduce(obj)
        parent: Any = getattr(super(), "reducer_override", None)
        return NotImplemented if parent is None else parent(obj)


def _reduce(error: BaseException) -> tuple[Any, ...]:
    reduced: Any = error.__reduce__()
    making = _rebuild, (type(error), reduced[1], error.args)
    attributes = reduced[2] if len(reduced) > 2 else None
    state = object.__getstate__(error)
    slots = state[1] if type(state) is tuple else None
    return (*making, (attributes, slots), None, None, _restore) if attributes or slots else making


def _rebuild(kind: type[BaseException], made_with: tuple[Any, ...], args: tuple[Any, ...]) -> BaseException:
    """Build an exception from its type and arguments without running an ``__init__`` written in Python.

    Such an ``__init__`` rarely takes ``self.args`` as its arguments (pickle's own way calls it with
    them and fails, or changes the message). The first one written in C fills what C code reads; an OSError's takes
    more than it keeps as ``args``.
    """
    error = _new(kind, made_with)
    for base in kind.__mro__:
        init = base.__dict__.get("__init__")
        if init is not None and not isinstance(init, FunctionType):
            init(error, *made_with)
            break
    BaseException.__setattr__(error, "args", args)
    return error


def _restore(error: BaseException, state: tuple[dict[str, Any] | None, dict[str, Any] | None]) -> None:
    """Give an exception its attributes and what its ``__slots__`` held, also one that is frozen."""
    attributes, slots = state
    if attributes is not None and type(error).__setstate__ is not BaseException.__setstate__:
        error.__setstate__(attributes)
        attributes = None
    for name, value in {**(attributes or {}), **(slots or {})}.items():
        BaseException.__setattr__(error, name, value)


def _new(kind: type[BaseException], args: tuple[Any, ...]) -> BaseException:
    """Make an exception. Of ``class Mine(Other, MemoryError)``, ``Mine.__new__`` is one that refuses Mine."""
    maker: Any = kind
    while True:
        try:
            error: BaseException = maker.__new__(kind, *args)
        except TypeError:
            maker = maker.__base__
            if maker is object:
                raise
        else:
            return error


def means_something_else_here(error: BaseException) -> bool:
    """Whether raising *error* bare would cancel, end or exit something in the caller's task."""
    if isinstance(error, (StopIteration, StopAsyncIteration, GeneratorExit, SystemExit, KeyboardInterrupt)):
        return True
    exceptions = sys.modules.get("asyncio.exceptions")
    return exceptions is not None and isinstance(error, exceptions.CancelledError)


def remote_call_error(type_name: str, text: str, trace: str) -> Exception:
    from aparallel.errors import RemoteCallError

    message = f"A call raised {type_name}: {text}" if text else f"A call raised {type_name}"
    return RemoteCallError(message, type_name=type_name, text=text, traceback=trace)


def wrap_bare(error: BaseException) -> BaseException:
    """Return *error*, or a RemoteCallError around it if it would mean something else here."""
    if not means_something_else_here(error):
        return error
    wrapped = remote_call_error(qualified_name(type(error)), text_of(error), format_error(error, error.__traceback__))
    wrapped.__cause__ = error
    return wrapped


def format_error(error: BaseException, trace: Any) -> str:
    try:
        import traceback  # where no file can be opened any more, this is what fails

        try:
            return "".join(traceback.format_exception(type(error), error, trace))
        except BaseException:  # it asks the error for its notes, and whether it is true
            last = f"{qualified_name(type(error))}: {text_of(error)}\n"
            return "".join(["Traceback (most recent call last):\n", *traceback.format_tb(trace), last])
    except BaseException as broken:  # as in text_of
        return f"(the traceback could not be formatted: {type(broken).__name__})\n"


def qualified_name(kind: type) -> str:
    return (
        kind.__qualname__ if kind.__module__ in ("builtins", "__main__") else f"{kind.__module__}.{kind.__qualname__}"
    )


def in_short(error: BaseException) -> str:
    """Say what *error* is, by type and text; of a RemoteCallError, what it stands for."""
    from aparallel.errors import RemoteCallError

    if isinstance(error, RemoteCallError):
        name, text = error.type_name, error.text
    else:
        name, text = type(error).__name__, text_of(error)
    return f"{name}: {text}" if text else name


def text_of(error: BaseException) -> str:
    try:
        return "".join([str(error)])  # a plain str: __str__ may return a subclass
    except BaseException as broken:  # user code may even exit
        return f"(str() raised {type(broken).__name__})"
