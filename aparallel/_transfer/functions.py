"""What a pool knows of the functions that it runs, and an encoder of those it has pickled. Not loaded in a child."""

from __future__ import annotations

import operator
from _blake2 import blake2b  # hashlib, whose it is, would delay a script's first result by 2 ms
from pickle import dumps
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from aparallel._ground.call import name_of
from aparallel._ground.timings import Timings
from aparallel._transfer.pickling import PROTOCOL, is_by_value_registered, pickle
from aparallel._transfer.unchanged import NAMED, Witness, is_importable
from aparallel.abc import Function

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from aparallel.abc import Timing

# A function that calls its first argument.
CALLED = dumps(operator.call, PROTOCOL)

# Functions that travel by value are remembered up to this number. The pickles of an encoder take at most so many bytes
# together, unless there is only one.
_MANY_FUNCTIONS = 64
_MANY_BYTES = 32 * 1024 * 1024


class PickledFunction(Function):
    """A function, and the pickle that a worker makes it of."""

    __slots__ = ("blob",)

    def __init__(self, key: bytes, name: str, timing: Timing, blob: bytes) -> None:
        super().__init__(key, name, timing)
        self.blob = blob


class Functions:
    """What a pool knows of the functions that it runs."""

    def __init__(self) -> None:
        # Importable functions, by identity. Few: they live in modules.
        self._importable: dict[Any, PickledFunction] = {}
        self._timings = Timings()
        # Functions that travel by value and can be seen to be unchanged; the oldest go first.
        self._witnessed: dict[FunctionType, tuple[Witness, PickledFunction]] = {}
        # Functions that travelled by value once. Many never do again, as each is made for its call, and to be able to
        # see that one is unchanged takes a while. Weak: what they close over may be large.
        self._met: WeakSet[FunctionType] = WeakSet()

    def known(self, fn: Any) -> PickledFunction | None:
        """Return what is known of *fn* if its pickle is, too: its name, or what it was and would be now; else None."""
        if is_by_value_registered():
            return None
        return self._by_name(fn) or self._unchanged(fn)

    def importable(self, fn: Any) -> PickledFunction | None:
        """Return what is known of *fn* if workers can import it by its name, else None."""
        return None if is_by_value_registered() else self._by_name(fn)

    def _by_name(self, fn: Any) -> PickledFunction | None:
        if not isinstance(fn, NAMED) or not is_importable(fn):
            return None
        known = self._importable.get(fn)
        if known is None:
            blob = pickle(fn)
            known = self._importable[fn] = PickledFunction(blob, name_of(fn), self._timings.of(fn), blob)
        return known

    def _unchanged(self, fn: Any) -> PickledFunction | None:
        known = self._witnessed.get(fn) if type(fn) is FunctionType else None
        if known is None:
            return None
        if known[0].still_holds():
            return known[1]
        del self._witnessed[fn]
        return None

    def by_content(self, fn: Any, blob: bytes, witnessed: bool = True) -> PickledFunction:
        """Describe a function by its pickle: equal pickles are one function to a worker.

        *witnessed*: nothing else ran since it was pickled, so what it refers to now is what was pickled.
        """
        key = blob if len(blob) <= 64 else blake2b(blob, digest_size=24).digest()
        function = PickledFunction(key, name_of(fn), self._timings.of(fn), blob)
        if witnessed and type(fn) is FunctionType:
            if fn not in self._met:
                self._met.add(fn)
            elif (witness := Witness.of(fn)) is not None:
                self._witnessed[fn] = witness, function
                if len(self._witnessed) > _MANY_FUNCTIONS:
                    del self._witnessed[next(iter(self._witnessed))]
        return function

    def as_argument(self, fn: Any) -> PickledFunction:
        """Describe a function that travels as the first argument of ``operator.call``.

        So arrays that it refers to are shared, and compared at each draw, as those of arguments are.
        """
        return PickledFunction(CALLED, name_of(fn), self._timings.of(fn), CALLED)


class RecentFunctions:
    """Pickles a plain function once, when it is first asked for, whatever changes that it refers to.

    Args:
        functions: what the pool knows.
        pickled: pickles a function by value, as it is now.
        at_once: all calls count as made at once, so what has state, a method or a callable object, is pickled once,
            too.

    Attributes:
        is_moment: until :meth:`end_moment`, what has state is changed by nothing but what else is pickled.
    """

    def __init__(
        self, functions: Functions, pickled: Callable[[Callable[..., Any]], bytes], *, at_once: bool = False
    ) -> None:
        self.is_moment = False
        self._at_once = at_once
        self._functions = functions
        self._pickled = pickled
        # By what they are known by, newest last: functions, which so keep their identity, and their pickles.
        self._recent: dict[Hashable, tuple[Callable[..., Any], PickledFunction]] = {}
        # Of these pickles.
        self._bytes = 0

    def of(self, fn: Callable[..., Any]) -> PickledFunction:
        """Return *fn* as a worker is to have it.

        Raises:
            Exception: it cannot be pickled, or not so.
        """
        function = self._functions.known(fn)
        if function is not None:
            return function
        if (known := self._recent.get(self._key(fn))) is not None:
            return known[1]
        if self.is_moment:  # to pickle this one may change others
            self._forget_states()
        function = self._functions.by_content(fn, self._pickled(fn))
        self.remember(fn, function)
        return function

    def remember(self, fn: Callable[..., Any], function: PickledFunction) -> None:
        """Keep the pickle of *fn* if it is a plain function: the state of others may change from call to call."""
        key = self._key(fn)
        if key is None:
            return
        self._recent[key] = fn, function
        self._bytes += len(function.blob)
        while len(self._recent) > (_MANY_FUNCTIONS if self._bytes <= _MANY_BYTES else 1):
            self._bytes -= len(self._recent.pop(next(iter(self._recent)))[1].blob)

    def _key(self, fn: Callable[..., Any]) -> Hashable:
        """What *fn* is known by; None if it is not to be."""
        if type(fn) is FunctionType:
            return fn
        if not (self._at_once or self.is_moment):
            return None
        # By identity: what is equal may have another state. A method is bound anew wherever it is named.
        return (id(fn.__self__), id(fn.__func__)) if isinstance(fn, MethodType) else id(fn)

    def end_moment(self) -> None:
        """From now on, what has state may be another than what was pickled."""
        if self.is_moment:
            self.is_moment = False
            self._forget_states()

    def _forget_states(self) -> None:
        for key in [key for key in self._recent if type(key) is not FunctionType]:
            self._bytes -= len(self._recent.pop(key)[1].blob)

    def forget(self) -> None:
        """Pickle each anew when it is asked for next."""
        self._recent.clear()
        self._bytes = 0

    def has(self, fn: Callable[..., Any]) -> bool:
        """Whether :meth:`of` need not pickle *fn* by value, which may run the code of what it refers to."""
        if type(fn) not in NAMED:
            return False
        return (type(fn) is FunctionType and fn in self._recent) or self._functions.known(fn) is not None
