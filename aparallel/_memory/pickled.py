"""How memoized functions travel: by name where they can be imported, else with the function itself.

A function of ``__main__``, or one made inside another, travels by value. It may refer to its memoized self, as a
recursive one does; the inner reference is then pickled as a promise, which is kept when the outer one has arrived.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import operator
import os
import threading
from typing import TYPE_CHECKING, Any

import cloudpickle

from aparallel._memory.callables import is_importable

if TYPE_CHECKING:
    from collections.abc import Iterator

_tokens = itertools.count()


class _Travelling(threading.local):
    """What this thread is pickling or unpickling by value, so that references inside find it."""

    def __init__(self) -> None:
        self.leaving: dict[int, str] = {}
        self.arriving: dict[str, Any] = {}


_travelling = _Travelling()


def reduce_function(function: Any, parts: tuple[Any, ...]) -> Any:
    """Reduce a memoized function, for pickle. *parts* are what its class makes one of."""
    if is_importable(function):
        return _by_name, (function.__module__, function.__qualname__)
    token = _travelling.leaving.get(id(function))
    if token is not None:
        return _promised, (token,)
    token = f"{os.getpid()}:{next(_tokens)}"
    with _noted(_travelling.leaving, id(function), token):
        body = cloudpickle.dumps(parts, 5)
    return _by_value, (token, type(function), body)


def _by_name(module: str, qualname: str) -> Any:
    return operator.attrgetter(qualname)(importlib.import_module(module))


def _promised(token: str) -> Any:
    return _travelling.arriving[token]


def _by_value(token: str, kind: Any, body: bytes) -> Any:
    function = kind.__new__(kind)
    with _noted(_travelling.arriving, token, function):
        parts = cloudpickle.loads(body)
    kind.__init__(function, *parts)
    return function


@contextlib.contextmanager
def _noted(where: dict[Any, Any], key: Any, value: Any) -> Iterator[None]:
    where[key] = value
    try:
        yield
    finally:
        del where[key]
