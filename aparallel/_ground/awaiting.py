"""Telling what has to be awaited."""

from __future__ import annotations

import asyncio
import functools
import inspect
import sys
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator
    from types import FunctionType

T = TypeVar("T")


def is_coroutine_function(fn: Any) -> bool:
    """Whether calling *fn* gives a coroutine: an ``async def``, also as a method, a partial or a ``__call__``."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    return inspect.iscoroutinefunction(fn) or (
        not inspect.isroutine(fn)
        and not isinstance(fn, type)
        and inspect.iscoroutinefunction(getattr(fn, "__call__", None))  # noqa: B004
    )


def mark_as_coroutine_function(thing: Any) -> None:
    """Answer frameworks that ask whether *thing* is to be awaited: from Python 3.12 on inspect, before it asyncio."""
    if sys.version_info >= (3, 12):
        # The mark has one name in 3.12 and another in 3.13; and inspect would put it on a bound method's function.
        thing._is_coroutine_marker = inspect.markcoroutinefunction(lambda: None)._is_coroutine_marker  # type: ignore[attr-defined]
    thing._is_coroutine = getattr(asyncio.coroutines, "_is_coroutine", None)


class Announced(Generic[T]):
    """Awaits *thing* as it is awaited by itself, but calls *before* first if that does not end at once."""

    __slots__ = ("_before", "_thing")

    def __init__(self, thing: Awaitable[T], before: Callable[[], object]) -> None:
        self._thing = thing
        self._before = before

    def __await__(self) -> Generator[Any, Any, T]:
        # A generator that types.coroutine made awaitable has no __await__, and is what is stepped through itself.
        steps: Any = getattr(self._thing, "__await__", lambda: self._thing)()
        try:
            signal = next(steps)
        except StopIteration as end:
            return cast("T", end.value)
        self._before()
        # From here on as ``yield from`` does it, which cannot begin with what has come already. An error is thrown on
        # where it is handled: kept for later, it would be in a cycle with this frame.
        while True:
            try:
                try:
                    sent = yield signal
                except BaseException as error:
                    if not hasattr(steps, "throw"):  # no generator, but any iterator
                        raise
                    signal = steps.throw(error)
                else:
                    signal = next(steps) if sent is None else steps.send(sent)
            except StopIteration as end:
                return cast("T", end.value)


def show_as_coroutine_function(fn: FunctionType) -> None:
    """Have frameworks take *fn*, which gives coroutines without being an ``async def``, for one that has to be awaited.

    One that takes it for a plain function calls it in a thread, and drops what it gives.
    """
    mark_as_coroutine_function(fn)
    if sys.version_info < (3, 12):
        # There inspect, which Litestar asks, looks at nothing but the flags of code. Those do not say how it runs: that
        # is in its instructions (CPython 3.11: RETURN_GENERATOR makes the coroutine).
        fn.__code__ = fn.__code__.replace(co_flags=fn.__code__.co_flags | inspect.CO_COROUTINE)
