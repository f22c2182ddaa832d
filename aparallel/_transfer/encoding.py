"""The parent's side: calls into payloads for process workers. Not loaded in a child."""

from __future__ import annotations

import sys
import time
from hashlib import blake2b
from itertools import islice
from types import BuiltinFunctionType, FunctionType
from typing import TYPE_CHECKING, Any

from aparallel._ground.call import Call, name_of, wrong_item
from aparallel._ground.hop import in_thread, pause
from aparallel._ground.timings import Timings
from aparallel._transfer.diagnosis import unpicklable_call
from aparallel._transfer.pickling import TooLarge, is_by_value_registered, pickle, pickle_in_slices, pickle_within
from aparallel._transfer.unchanged import Witness
from aparallel.abc import Drawn, Encoder, Function

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextvars import ContextVar

# Arguments of these types are put into a message as they are: they cannot change, and neither
# pickling nor unpickling them can run anyone's code or fail.
_NUMBERS = frozenset({int, float, bool, type(None)})
_TEXTS = frozenset({str, bytes})
_SHORT = 1024

# What is pickled on the loop at most, in bytes: about a quarter of a millisecond.
ON_LOOP_BYTES = 64 * 1024

_NAMED = (FunctionType, BuiltinFunctionType, type)
_MANY_FUNCTIONS = 64

# The clock is read after so many calls.
_CLOCK_EVERY = 64


class Functions:
    """What a pool knows of the functions that it runs."""

    def __init__(self) -> None:
        # Importable functions, by identity. Few: they live in modules.
        self._importable: dict[Any, Function] = {}
        self._timings = Timings()
        # Functions that travel by value and can be seen to be unchanged; the oldest go first.
        self._witnessed: dict[FunctionType, tuple[Witness, Function]] = {}

    def importable(self, fn: Any) -> Function | None:
        """Return what is known of *fn* if workers can import it by its name, else None."""
        if not isinstance(fn, _NAMED) or is_by_value_registered():
            return None
        module_name = fn.__module__
        if module_name == "__main__" or module_name is None:
            return None
        module = sys.modules.get(module_name)
        if module is None or module.__dict__.get(fn.__qualname__) is not fn:
            return None
        known = self._importable.get(fn)
        if known is None:
            blob = pickle(fn)
            known = self._importable[fn] = Function(blob, name_of(fn), self._timings.of(fn), blob)
        return known

    def unchanged(self, fn: Any) -> Function | None:
        """Return what :meth:`by_content` said of *fn* if its pickle would be the same now, else None."""
        if type(fn) is not FunctionType:
            return None
        known = self._witnessed.get(fn)
        if known is None:
            return None
        if known[0].still_holds():
            return known[1]
        del self._witnessed[fn]
        return None

    def by_content(self, fn: Any, blob: bytes, witnessed: bool = True) -> Function:
        """Describe a function by its pickle: equal pickles are one function to a worker.

        *witnessed*: nothing else ran since it was pickled, so what it refers to now is what was pickled.
        """
        key = blob if len(blob) <= 64 else blake2b(blob, digest_size=24).digest()
        function = Function(key, name_of(fn), self._timings.of(fn), blob)
        if witnessed and type(fn) is FunctionType and (witness := Witness.of(fn)) is not None:
            self._witnessed[fn] = witness, function
            if len(self._witnessed) > _MANY_FUNCTIONS:
                del self._witnessed[next(iter(self._witnessed))]
        return function


class ProcessEncoder(Encoder):
    """Pickles calls. Within one encoder a plain function is pickled once, when it is first drawn."""

    def __init__(self, functions: Functions, variables: Sequence[tuple[bytes, ContextVar[Any]]]) -> None:
        self._functions = functions
        self._variables = variables
        # Functions pickled by value, newest last, each with itself, so that its id stays its own.
        self._recent: dict[int, tuple[Any, Function]] = {}

    def forget_functions(self) -> None:
        """Pickle functions anew from here on: what they refer to may have changed."""
        self._recent.clear()

    def draw(self, calls: Iterator[Any], limit: int, first: int, seconds: float) -> Drawn:
        drawn = Drawn([])
        deadline = time.monotonic() + seconds
        while drawn.count < limit:
            wanted = min(limit - drawn.count, _CLOCK_EVERY)
            if not self._draw_some(calls, wanted, first, drawn) or time.monotonic() > deadline:
                break
        return drawn

    def _draw_some(self, calls: Iterator[Any], wanted: int, first: int, drawn: Drawn) -> bool:
        """Draw *wanted* calls; return whether there may be more now. The path of tiny calls."""
        last: Any = None
        add: Any = None
        index = first + drawn.count
        end = index + wanted
        for call in islice(calls, wanted):
            if type(call) is not Call:
                raise wrong_item(call, index)
            fn = call.func
            try:
                # A bound method is a new object each time, and a callable's state may have changed.
                if fn is not last or type(fn) is not FunctionType:
                    add = drawn.run_of(self._function(fn)).append
                    last = fn
                args = call.args
                for value in args:
                    kind = type(value)
                    if kind not in _NUMBERS and not (kind in _TEXTS and len(value) <= _SHORT):
                        add(self._pickle_arguments(call, drawn))
                        break
                else:
                    add(self._pickle_arguments(call, drawn) if call.keywords or self._variables else args)
            except TooLarge:
                drawn.large = call
                break
            except Exception as reason:
                drawn.failed = unpicklable_call(fn, call.args, call.keywords, name_of(fn), index, reason)
                break
            index += 1
        else:
            drawn.exhausted = index < end
        drawn.count = index - first
        return index == end

    def _pickle_arguments(self, call: Call[Any], drawn: Drawn) -> bytes:
        pickled = pickle_within((call.args, call.keywords, self._values()), ON_LOOP_BYTES)
        drawn.size += len(pickled)
        return pickled

    def encode(self, call: Call[Any]) -> tuple[Function, Any] | None:
        fn, args, keywords = call.func, call.args, call.keywords
        try:
            function = self._function(fn)
            plain = not keywords and not self._variables
            for value in args:
                kind = type(value)
                if kind not in _NUMBERS and not (kind in _TEXTS and len(value) <= _SHORT):
                    plain = False
            return function, args if plain else pickle_within((args, keywords, self._values()), ON_LOOP_BYTES)
        except TooLarge:
            return None
        except Exception as reason:
            raise unpicklable_call(fn, args, keywords, name_of(fn), None, reason) from reason

    async def encode_large(self, call: Call[Any], index: int | None) -> tuple[Function, Any]:
        try:
            function = self._functions.importable(call.func)
            if function is None:
                blob = await in_thread(pickle_in_slices, call.func, pause)
                function = self._functions.by_content(call.func, blob, witnessed=False)
            content = (call.args, call.keywords, self._values())
            return function, await in_thread(pickle_in_slices, content, pause)
        except Exception as reason:
            raise unpicklable_call(call.func, call.args, call.keywords, name_of(call.func), index, reason) from reason

    def _function(self, fn: Callable[..., Any]) -> Function:
        function = self._functions.importable(fn)
        if function is not None:
            return function
        function = self._functions.unchanged(fn)
        if function is not None:
            return function
        known = self._recent.get(id(fn))
        if known is not None and type(fn) is FunctionType:
            return known[1]
        function = self._functions.by_content(fn, pickle_within(fn, ON_LOOP_BYTES))
        self._recent[id(fn)] = fn, function
        if len(self._recent) > _MANY_FUNCTIONS:
            del self._recent[next(iter(self._recent))]
        return function

    def _values(self) -> list[tuple[bytes, Any]] | None:
        """The chosen context variables that are set here, as a worker wants them."""
        values = []
        for blob, variable in self._variables:
            try:
                values.append((blob, variable.get()))
            except LookupError:  # not set, and no default
                continue
        return values or None
