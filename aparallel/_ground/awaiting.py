"""Telling what has to be awaited."""

from __future__ import annotations

import asyncio
import functools
import inspect
import sys
from typing import Any


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
