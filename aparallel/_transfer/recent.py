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
        # Newest last, each with itself, so that its id stays its own; and the bytes of their pickles.
        self._recent: dict[int, tuple[Any, PickledFunction]] = {}
        self._bytes = 0

    def of(self, fn: Callable[..., Any]) -> PickledFunction:
        """Return *fn* as a worker is to have it.

        Raises:
            Exception: it cannot be pickled, or not so.
        """
        function = self._functions.known(fn)
        if function is not None:
            return function
        known = self._recent.get(id(fn))
        if known is not None and type(fn) is FunctionType:
            return known[1]
        function = self._functions.by_content(fn, self._pickled(fn))
        self.remember(fn, function)
        return function

    def remember(self, fn: Callable[..., Any], function: PickledFunction) -> None:
        self._recent[id(fn)] = fn, function
        self._bytes += len(function.blob)
        while len(self._recent) > (MANY_FUNCTIONS if self._bytes <= _MANY_BYTES else 1):
            _, oldest = self._recent.pop(next(iter(self._recent)))
            self._bytes -= len(oldest.blob)

    def forget(self) -> None:
        """Pickle each anew when it is asked for next."""
        self._recent.clear()
        self._bytes = 0

    def has(self, fn: Callable[..., Any]) -> bool:
        """Whether :meth:`of` need not pickle *fn* by value, which may run the code of what it refers to."""
        if type(fn) not in NAMED:
            return False
        return (type(fn) is FunctionType and id(fn) in self._recent) or self._functions.known(fn) is not None
