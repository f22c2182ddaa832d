"""What a pool knows of the functions that it runs. Not loaded in a child."""

from __future__ import annotations

import operator
import sys
from _blake2 import blake2b  # hashlib, whose it is, would delay a script's first result by 2 ms
from pickle import dumps
from types import BuiltinFunctionType, FunctionType
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from aparallel._ground.call import name_of
from aparallel._ground.timings import Timings
from aparallel._transfer.pickling import PROTOCOL, is_by_value_registered, pickle
from aparallel._transfer.unchanged import Witness
from aparallel.abc import Function

if TYPE_CHECKING:
    from aparallel.abc import Timing

# A function that calls its first argument.
CALLED = dumps(operator.call, PROTOCOL)

# What may be imported by its name.
NAMED = (FunctionType, BuiltinFunctionType, type)

# Functions that travel by value are remembered up to this number.
MANY_FUNCTIONS = 64


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
        if not isinstance(fn, NAMED):
            return None
        module_name = fn.__module__
        module = sys.modules.get(module_name) if module_name != "__main__" else None
        if module is None or module.__dict__.get(fn.__qualname__) is not fn:
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
                if len(self._witnessed) > MANY_FUNCTIONS:
                    del self._witnessed[next(iter(self._witnessed))]
        return function

    def as_argument(self, fn: Any) -> PickledFunction:
        """Describe a function that travels as the first argument of ``operator.call``.

        So arrays that it refers to are shared, and compared at each draw, as those of arguments are.
        """
        return PickledFunction(CALLED, name_of(fn), self._timings.of(fn), CALLED)
