"""The functions that one encoder has pickled by value. Not loaded in a child."""

from __future__ import annotations

from types import FunctionType
from typing import TYPE_CHECKING, Any

from aparallel._transfer.functions import MANY_FUNCTIONS, NAMED, Functions, PickledFunction

if TYPE_CHECKING:
    from collections.abc import Callable

# The pickles that are kept take at most so many bytes together, unless there is only one.
_MANY_BYTES = 32 * 1024 * 1024


class RecentFunctions:
    """Pickles a plain function once, when it is first asked for, whatever changes that it refers to.

    Args:
        functions: what the pool knows.
        pickled: pickles a function by value, as it is now.
    """

    def __init__(self, functions: Functions, pickled: Callable[[Callable[..., Any]], bytes]) -> None:
        self._functions = functions
        self._pickled = pickled
        # Plain functions, newest last, and the bytes of their pickles.
        self._recent: dict[FunctionType, PickledFunction] = {}
        self._bytes = 0

    def of(self, fn: Callable[..., Any]) -> PickledFunction:
        """Return *fn* as a worker is to have it.

        Raises:
            Exception: it cannot be pickled, or not so.
        """
        function = self._functions.known(fn)
        if function is not None:
            return function
        if type(fn) is FunctionType and (known := self._recent.get(fn)) is not None:
            return known
        function = self._functions.by_content(fn, self._pickled(fn))
        self.remember(fn, function)
        return function

    def remember(self, fn: Callable[..., Any], function: PickledFunction) -> None:
        """Keep the pickle of *fn* if it is a plain function: the state of others may change from call to call."""
        if type(fn) is not FunctionType:
            return
        self._recent[fn] = function
        self._bytes += len(function.blob)
        while len(self._recent) > (MANY_FUNCTIONS if self._bytes <= _MANY_BYTES else 1):
            self._bytes -= len(self._recent.pop(next(iter(self._recent))).blob)

    def forget(self) -> None:
        """Pickle each anew when it is asked for next."""
        self._recent.clear()
        self._bytes = 0

    def has(self, fn: Callable[..., Any]) -> bool:
        """Whether :meth:`of` need not pickle *fn* by value, which may run the code of what it refers to."""
        if type(fn) not in NAMED:
            return False
        return (type(fn) is FunctionType and fn in self._recent) or self._functions.known(fn) is not None
