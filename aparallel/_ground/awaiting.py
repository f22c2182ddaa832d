"""Telling what has to be awaited."""

from __future__ import annotations

import functools
import inspect
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
