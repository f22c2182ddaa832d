"""Whether drawing from an iterator, or pickling a call, runs anyone's code: only then may an array change in between.

Calls are mostly drawn from something like ``(delayed(f)(array, i) for i in range(100))``, which can do nothing to an
array while it goes on. Such an iterator is recognised by what it is made of: its loop is followed through its bytecode,
and the iterators that it draws from itself are looked at. It may compute, with what is known to be numbers. Whatever is
not known to be harmless counts as harmful.
Pickling a call is harmless if the call is made of numbers, texts and arrays.
"""

from __future__ import annotations

import builtins
import dis
import functools
import gc
import itertools
import sys
from types import CodeType, FunctionType, GeneratorType, ModuleType
from typing import Any

from aparallel._ground.call import delayed
from aparallel._ground.sharing import Shared

# Iterators that only hand out what they were made of, those that give numbers, and those that give tuples.
_RANGES = frozenset(map(type, (iter(range(0)), iter(range(1 << 70)))))
_PLAIN = _RANGES | frozenset(map(type, (iter([]), iter(()), iter(""), iter(b""))))
_PLAIN |= frozenset(map(type, (iter({}), iter({}.values()), iter({}.items()), itertools.repeat(0))))
_IN_PAIRS = frozenset({enumerate, zip, type(iter({}.items()))})

# Instructions that do nothing to the stack, and those that load and set so many local variables, which they name in
# the order in which they pop and push; who does both sets first.
_IDLE = frozenset(
    {
        *("CACHE", "COPY_FREE_VARS", "END_FOR", "EXTENDED_ARG", "JUMP_BACKWARD", "JUMP_BACKWARD_NO_INTERRUPT"),
        *("KW_NAMES", "NOP", "NOT_TAKEN", "POP_ITER", "PRECALL", "RERAISE", "RESUME", "RETURN_CONST"),
    }
)
_LOADS = {
    "LOAD_FAST": 1,
    "LOAD_FAST_BORROW": 1,
    "LOAD_FAST_BORROW_LOAD_FAST_BORROW": 2,
    "LOAD_FAST_CHECK": 1,
    "LOAD_FAST_LOAD_FAST": 2,
    "STORE_FAST_LOAD_FAST": 1,
}
_STORES = {"STORE_FAST": 1, "STORE_FAST_LOAD_FAST": 1, "STORE_FAST_STORE_FAST": 2}
# What a compiler appends to a generator for the case of an error: a StopIteration becomes a RuntimeError. The same
# instruction, with another argument, is what ``+x`` is compiled to.
_STOPITERATION_ERROR = 3

# What is pickled without anyone's code, and has no parts that would not be.
_PARTLESS = frozenset({int, float, complex, bool, type(None), str, bytes, Shared})
_MANY_PARTS = 256

# What operators do to these is nobody's code, and neither are these functions of them; len() of those types is not.
_NUMBERS = (int, float, complex, bool)
_OF_NUMBERS = (abs, float, int, max, min, round)
_SIZED = frozenset({bytes, dict, list, range, set, str, tuple})
_MADE_BY_A_CLASS_STATEMENT = 1 << 9  # Py_TPFLAGS_HEAPTYPE

_NULL = object()
_UNKNOWN = object()
# A number, of one of the types above.
_NUMBER = object()
# What delayed(f) returned.
_BOUND = object()
# A tuple, new from zip or the like: to unpack it runs nobody's code, to unpack what is in it may.
_TUPLE = object()


def is_still(calls: Any) -> bool:
    """Whether drawing more from *calls*, from which something has been drawn, surely runs nobody's code but ours."""
    if type(calls) is not GeneratorType:
        return _only_hands_out(calls)
    iterators = [value for value in gc.get_referents(calls) if hasattr(type(value), "__next__")]
    if calls.gi_frame is None or not iterators or not all(map(_only_hands_out, iterators)):
        return False
    try:
        return _Loop(calls, frozenset(map(type, iterators))).is_still()
    except (IndexError, ValueError):  # the stack is not what was thought
        return False


def is_inert(content: object) -> bool:
    """Whether pickling *content* surely runs nobody's code but ours and NumPy's. Quick: what has many parts is not."""
    parts: list[Any] = [content]
    for part in parts:  # which grows meanwhile
        kind = type(part)  # isinstance() may run code
        if kind in _PARTLESS:
            continue
        if kind is tuple or kind is list:
            parts += part
        elif kind is dict:
            parts += [*part, *part.values()]
        elif kind is slice:
            parts += part.start, part.stop, part.step
        elif not _is_of_numpy(part):
            return False
        if len(parts) > _MANY_PARTS:
            return False
    return True


def _is_of_numpy(value: Any) -> bool:
    """Whether it is an array of NumPy's own types, or an item of one, that holds no objects."""
    np = sys.modules.get("numpy")
    if np is None:
        return False
    kind = type(value)
    is_scalar = issubclass(kind, np.generic) and not kind.__flags__ & _MADE_BY_A_CLASS_STATEMENT
    return (is_scalar or kind in (np.ndarray, np.memmap)) and not value.dtype.hasobject


def _only_hands_out(iterator: Any) -> bool:
    if type(iterator) not in (enumerate, zip):
        return type(iterator) in _PLAIN
    try:
        _, parts, *_ = iterator.__reduce__()
    except TypeError:  # a Python in which it cannot be copied any more
        return False
    return all(_only_hands_out(part) for part in parts if type(part) is not int)  # the number that comes next


@functools.lru_cache(64)
def _remaining(code: CodeType, last: int) -> list[dis.Instruction]:
    """The instructions that may still run in a generator that yielded at *last*."""
    instructions = list(dis.get_instructions(code))
    start = last
    for instruction in reversed(instructions):
        if instruction.opname.startswith("JUMP_BACKWARD") and instruction.offset > start:
            start = min(start, instruction.argval)
    return [instruction for instruction in instructions if instruction.offset >= start]


class _Loop:
    """The part of a generator's code that may run from now on, followed once from its start to its end.

    What is on its stack, and in its variables, is followed as values where they are known, else as what is known of
    them.

    Args:
        kinds: the types of what its loop may go through.
    """

    def __init__(self, generator: Any, kinds: frozenset[type]) -> None:
        frame = generator.gi_frame
        self._instructions = _remaining(generator.gi_code, frame.f_lasti)
        self._globals = frame.f_globals
        self._locals = frame.f_locals
        self._items = _TUPLE if kinds <= _IN_PAIRS else _NUMBER if kinds <= _RANGES else _UNKNOWN
        # The variables that the loop sets: nothing is known of them before it has.
        self._set: dict[str, Any] = {
            name: _UNKNOWN for instruction in self._instructions for name in _stored_names(instruction)
        }
        self._stack: list[Any] = []

    def is_still(self) -> bool:
        return self._instructions[0].opname == "FOR_ITER" and all(map(self._allows, self._instructions))

    def _allows(self, instruction: dis.Instruction) -> bool:
        """Follow one instruction; return whether it is harmless."""
        name, stack = instruction.opname, self._stack
        argument = int(instruction.arg or 0)
        if name in _IDLE:
            return True
        if name == "CALL_INTRINSIC_1":
            return instruction.arg == _STOPITERATION_ERROR
        if name in _LOADS or name in _STORES:
            for variable in _stored_names(instruction):
                self._set[variable] = stack.pop()
            stack.extend(map(self._variable, _loaded_names(instruction)))
        elif name in ("LOAD_CONST", "LOAD_SMALL_INT"):
            stack.append(instruction.argval)
        elif name in ("POP_TOP", "RETURN_VALUE"):
            del stack[-1:]  # at the loop's end that is its iterator, which is not followed
        elif name == "FOR_ITER":
            stack.append(self._items)
        elif name == "YIELD_VALUE":  # what is sent in takes the place of what is yielded
            stack[-1] = _UNKNOWN
        elif name in ("BUILD_TUPLE", "BUILD_LIST", "BUILD_CONST_KEY_MAP", "BUILD_SLICE"):
            del stack[len(stack) - argument - (name == "BUILD_CONST_KEY_MAP") :]
            stack.append(_UNKNOWN)
        elif name == "BUILD_MAP":
            start = len(stack) - 2 * argument
            keys = stack[start::2]
            stack[start:] = [_UNKNOWN]
            return all(type(key) is str or _is_number(key) for key in keys)  # else to hash them may be anyone's code
        elif name == "UNPACK_SEQUENCE":
            unpacked = stack.pop()
            stack.extend([_UNKNOWN] * argument)
            return unpacked is _TUPLE
        elif name == "BINARY_OP":
            operands = stack.pop(), stack.pop()
            stack.append(_NUMBER)
            return all(map(_is_number, operands))
        else:
            return self._allows_name(instruction)
        return True

    def _variable(self, name: str) -> Any:
        return self._set[name] if name in self._set else self._locals.get(name, _UNKNOWN)

    def _allows_name(self, instruction: dis.Instruction) -> bool:
        """Follow an instruction in which a name or a call matters."""
        name, stack = instruction.opname, self._stack
        argument = int(instruction.arg or 0)
        if name == "PUSH_NULL":
            stack.append(_NULL)
        elif name == "LOAD_DEREF":
            stack.append(self._locals.get(instruction.argval, _UNKNOWN))
        elif name == "LOAD_GLOBAL":
            value = self._globals.get(instruction.argval, getattr(builtins, str(instruction.argval), _UNKNOWN))
            stack.extend([_NULL, value] if argument & 1 else [value])
        elif name in ("LOAD_ATTR", "LOAD_METHOD"):
            owner = stack.pop()
            if _has_method(owner, instruction.argval):  # bound, as an argument: what calls it is not harmless
                stack.append(_UNKNOWN)
                return name == "LOAD_ATTR" and not (argument & 1 and _methods_are_attributes)
            if type(owner) is not ModuleType or instruction.argval not in owner.__dict__:
                return False
            is_method = name == "LOAD_METHOD" or (argument & 1 and _methods_are_attributes)
            stack.extend([*([_NULL] if is_method else []), owner.__dict__[instruction.argval]])
        elif name in ("CALL", "CALL_KW"):
            return self._allows_call(argument, has_names=name == "CALL_KW")
        else:
            return False
        return True

    def _allows_call(self, count: int, has_names: bool) -> bool:
        stack = self._stack
        start = len(stack) - count - has_names
        arguments = stack[start:]
        del stack[start:]
        called, *others = (value for value in (stack.pop(), stack.pop()) if value is not _NULL)
        if others:
            return False
        if called is delayed or called is _BOUND or called is slice:
            stack.append(_BOUND if called is delayed else _UNKNOWN)
            return True
        stack.append(_NUMBER)
        if called is len:
            return len(arguments) == 1 and _is_sized(arguments[0])
        return any(called is fn for fn in _OF_NUMBERS) and all(map(_is_number, arguments))


def _stored_names(instruction: dis.Instruction) -> tuple[str, ...]:
    """The local variables that an instruction sets, in the order in which they are taken from the stack."""
    return _names(instruction)[: _STORES.get(instruction.opname, 0)]


def _loaded_names(instruction: dis.Instruction) -> tuple[str, ...]:
    names = _names(instruction)
    return names[len(names) - _LOADS.get(instruction.opname, 0) :]


def _names(instruction: dis.Instruction) -> tuple[str, ...]:
    value = instruction.argval
    return value if isinstance(value, tuple) else (value,)


def _is_number(value: Any) -> bool:
    return value is _NUMBER or type(value) in _NUMBERS


def _has_method(owner: Any, name: str) -> bool:
    """Whether to look up *name* in *owner* gives a method, and runs nobody's code."""
    found: Any = None
    for base in type(owner).__mro__:
        if base is not object and "__getattribute__" in base.__dict__:
            return False
        found = base.__dict__.get(name) if found is None else found
    return type(found) is FunctionType


def _is_sized(value: Any) -> bool:
    kind = type(value)
    np = sys.modules.get("numpy")
    return kind in _SIZED or (np is not None and kind in (np.ndarray, np.memmap))


# Python 3.12 has no LOAD_METHOD any more: LOAD_ATTR does both.
_methods_are_attributes = "LOAD_METHOD" not in dis.opmap
