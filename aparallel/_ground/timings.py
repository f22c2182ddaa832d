"""How long calls take, by the code that they run."""

from __future__ import annotations

import functools
from types import BuiltinFunctionType, MethodType
from typing import Any

_MANY = 4096


class Timing:
    """How long calls of some code take, as the workers measured it.

    Attributes:
        seconds: a moving average per call, or None before the first outcome.
    """

    __slots__ = ("seconds",)

    def __init__(self) -> None:
        self.seconds: float | None = None

    def learn(self, seconds: float) -> None:
        """Take in a measurement. A shorter one counts more: a first call also pays for imports."""
        known = self.seconds
        if known is None:
            self.seconds = seconds
        else:
            weight = 0.7 if seconds < known else 0.3
            self.seconds = known + weight * (seconds - known)


class Timings:
    """Timings by code: closures of the same function differ, their speed hardly does."""

    def __init__(self) -> None:
        self._known: dict[Any, Timing] = {}

    def of(self, fn: Any) -> Timing:
        """Return the timing that *fn* shares with all that run the same code."""
        while isinstance(fn, functools.partial | MethodType):
            fn = fn.func if isinstance(fn, functools.partial) else fn.__func__
        code = getattr(fn, "__code__", None)
        if code is None:
            code = fn if isinstance(fn, BuiltinFunctionType | type) else type(fn)
        known = self._known.get(code)
        if known is None:
            if len(self._known) >= _MANY:
                self._known.clear()
            known = self._known[code] = Timing()
        return known
