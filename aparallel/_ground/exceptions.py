"""Exceptions as pickles that can be read again, whatever their ``__init__`` takes. A worker loads it at its start."""

from __future__ import annotations

from types import FunctionType

TYPE_CHECKING = False  # as in aparallel/__init__.py
if TYPE_CHECKING:
    from typing import Any


class ReducesExceptions:
    """The first base of a pickler: exceptions, wherever they sit, become what :func:`_rebuild` takes.

    Unless their type says otherwise.
    """

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, BaseException):
            kind = type(obj)
            if kind.__reduce__ is BaseException.__reduce__ and kind.__reduce_ex__ is object.__reduce_ex__:
                return _rebuild, (kind, obj.args), obj.__dict__ or None
        parent: Any = getattr(super(), "reducer_override", None)
        return NotImplemented if parent is None else parent(obj)


def _rebuild(kind: type[BaseException], args: tuple[Any, ...]) -> BaseException:
    """Build an exception from its type and arguments without running an ``__init__`` written in Python.

    Such an ``__init__`` rarely takes ``self.args`` as its arguments (pickle's own way calls it with
    them and fails, or changes the message). The first one written in C fills what C code reads.
    """
    error = _new(kind, args)
    for base in kind.__mro__:
        init = base.__dict__.get("__init__")
        if init is not None and not isinstance(init, FunctionType):
            init(error, *args)
            break
    error.args = args
    return error


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
