"""What ``load(..., trusted=...)`` lets a file build.

Two lines of defence. Before anything runs, the pickle is walked (:mod:`aparallel._persist.opcodes`) and every import,
call and change of state in it is held against the lists below. Then, while it is unpickled, names are resolved here
only: each to an object that is trusted itself, whose own module and name are compared with those asked for. A module
is never trusted, nor is what is reached through a dot.

Plain data and NumPy's data types must be no way to more. So a name is trusted *as something*: most only as a value; a
call is checked with its arguments (``set`` of a list yes, of a range of 10^12 no); and nothing may change the state of
something that was imported.
"""

from __future__ import annotations

import importlib
import math
import re
import sys
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

from aparallel._persist.inspector import WRAPPERS, Inspector, known_dtype
from aparallel._persist.opcodes import BUFFER, BYTES, SET, TEXT, Global, Items, Listed, Made, Opaque
from aparallel.errors import UntrustedTypeError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    Check = Callable[[Made], bool]

_ARRAYS = "aparallel._persist.arrays"


def _anything(made: Made) -> bool:
    return True


def _never(made: Made) -> bool:
    return False


def _args(made: Made) -> tuple[Any, ...]:
    return made.args if isinstance(made.args, tuple) else (None,) * 9


def _of_literal(made: Made) -> bool:
    """Nothing, or items that stand in the file, and plain numbers after them (``deque``'s length)."""
    args = _args(made)
    first_is_items = not args or args[0] is SET or isinstance(args[0], (Listed, Items, tuple))
    return first_is_items and all(item is None or isinstance(item, int) for item in args[1:])


def _of_nothing(made: Made) -> bool:
    return not _args(made)


def _of_bytes(made: Made) -> bool:
    args = _args(made)
    return not args or (len(args) <= 2 and _is_text_or_bytes(args[0]))


def _is_text_or_bytes(value: Any) -> bool:
    known = value.known if isinstance(value, Made) else value
    return isinstance(known, (bytes, str)) or known is BYTES or known is TEXT


def _of_latin1(made: Made) -> bool:
    # How bytes are pickled in protocol 2. Any other codec might be anyone's.
    args = _args(made)
    return len(args) == 2 and args[1] in ("latin1", "latin-1")


def _of_fraction(made: Made) -> bool:
    # Fraction("1e999999999") would be computed.
    return all(
        isinstance(item, int)
        or (isinstance(item, Opaque) and item is not TEXT)
        or (isinstance(item, str) and re.fullmatch(r"-?\d+(/\d+)?", item) is not None)
        for item in _args(made)
    )


def _of_type(made: Made) -> bool:
    """``defaultdict``'s factory: a type of plain data, by name."""
    args = _args(made)
    return not args or args == (None,) or (len(args) == 1 and isinstance(args[0], Global))


def _empty_array(made: Made) -> bool:
    """NumPy's ``_reconstruct``: always an empty array, which then gets its state."""
    args = _args(made)
    return len(args) == 3 and isinstance(args[0], Global) and args[1] == (0,)


def _empty_masked(made: Made) -> bool:
    args = _args(made)
    return len(args) == 4 and all(isinstance(kind, Global) for kind in args[:2]) and args[2] == (0,)


def _a_dtype(made: Made) -> bool:
    return made.known is not None  # else the inspector has found it wrong


def _scalar(made: Made) -> bool:
    args = _args(made)
    found = known_dtype(args[0]) if args else None
    return len(args) <= 2 and found is not None and not found.hasobject


def _from_buffer(made: Made) -> bool:
    args = _args(made)
    found = known_dtype(args[1]) if len(args) in (4, 5) else None
    # A subclass of ndarray is given by name, and by a name that is trusted.
    return (args[0] is BUFFER or args[0] is BYTES or isinstance(args[0], bytes)) and (
        found is not None and not found.hasobject
    )


def _of_arrays(made: Made) -> bool:
    return all(isinstance(item, Made) or item is None for item in _args(made)[:2])


def _table() -> dict[Global, Check]:
    """Every name that is trusted without being asked for, and the calls of it that are."""
    table: dict[Global, Check] = {}

    def add(modules: str, names: str, check: Check) -> None:
        table.update({Global(module, name): check for module in modules.split() for name in names.split()})

    # Protocol 2 has Python 2's names for them.
    builtin = "builtins __builtin__"
    add(builtin, "int float str tuple list dict bool type Ellipsis NotImplemented", _never)
    add("__builtin__", "long unicode", _never)
    add(builtin, "bytes", _of_nothing)
    add(builtin, "complex slice range xrange object", _anything)
    add(builtin, "set frozenset", _of_literal)
    add(builtin, "bytearray", _of_bytes)
    add("_codecs", "encode", _of_latin1)
    add("collections", "OrderedDict deque Counter", _of_literal)
    add("collections", "defaultdict", _of_type)
    add("datetime", "date datetime time timedelta timezone", _anything)
    add("decimal", "Decimal", _anything)
    add("fractions", "Fraction", _of_fraction)
    add("uuid", "UUID", _anything)
    add("uuid", "SafeUUID", _never)
    paths = "Path PosixPath WindowsPath PurePath PurePosixPath PureWindowsPath"
    add("pathlib pathlib._local", paths, _anything)

    add("numpy", "dtype", _a_dtype)
    add("numpy", "ndarray matrix memmap record recarray", _never)
    add("numpy.matrixlib.defmatrix", "matrix", _never)
    add("numpy.rec numpy.core.records numpy._core.records", "record recarray", _never)
    add("numpy.ma numpy.ma.core", "MaskedArray", _never)
    add("numpy", _SCALARS, _never)
    cores = "numpy.core.multiarray numpy._core.multiarray"
    add(cores, "_reconstruct", _empty_array)
    add(cores, "scalar", _scalar)
    add("numpy.core.numeric numpy._core.numeric", "_frombuffer", _from_buffer)
    add("numpy.ma.core", "_mareconstruct", _empty_masked)
    add(_ARRAYS, "array subclass_array", _from_buffer)
    add(_ARRAYS, "masked_array", _of_arrays)
    return table


_SCALARS = (
    "bool bool_ int8 int16 int32 int64 uint8 uint16 uint32 uint64 intc uintc int_ uint longlong ulonglong "
    "float16 float32 float64 longdouble float128 complex64 complex128 clongdouble complex256 "
    "str_ bytes_ void datetime64 timedelta64 object_"
)
_DATA = _table()
_DATA.update(dict.fromkeys(WRAPPERS, _anything))
_STATED_ARRAYS = frozenset(
    Global(module, name)
    for module, name in (
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy.ma.core", "_mareconstruct"),
    )
)
# What is made by calling these may be given a state; other plain data has none.
_STATED = frozenset({*WRAPPERS, *_STATED_ARRAYS, Global("numpy", "dtype"), Global("uuid", "UUID")})
# What may be given items one by one.
_FILLED = frozenset(Global("collections", name) for name in ("OrderedDict", "deque", "Counter", "defaultdict"))


class Trust:
    """What the user trusts beyond plain data and NumPy's data types.

    Args:
        trusted: types and functions, or their names as ``"module.qualname"``.

    Raises:
        TypeError: something else, such as a module: a module is no list of what it will ever hold.
        ValueError: a name without a module.
    """

    def __init__(self, trusted: Iterable[Any]) -> None:
        if isinstance(trusted, (str, bytes, bool)) or not hasattr(trusted, "__iter__"):
            raise TypeError(
                f"trusted must be a list of types, functions or names such as 'module.Name', got {trusted!r}. "
                f"An empty list trusts plain data and NumPy's data types."
            )
        self._objects: dict[str, Any] = {}
        self._names: set[str] = set()
        for item in trusted:
            if isinstance(item, str):
                self._names.add(_checked_name(item))
            elif isinstance(item, ModuleType):
                raise TypeError(
                    f"trusted has the module {item.__name__}. Name the types in it one by one: what is trusted must be "
                    f"known, and a module reaches everything that it imports."
                )
            elif callable(item) and hasattr(item, "__qualname__"):
                self._objects[name_of(item)] = item
            else:
                raise TypeError(f"trusted has {item!r}, which is no type, function or name.")

    def allows(self, asked: Global) -> bool:
        """Whether a name may be resolved. Nothing is imported to find out."""
        return asked in _DATA or self._is_users(asked)

    def resolve(self, module: str, name: str) -> Any:
        """Return what a name means, if that is trusted.

        Raises:
            UntrustedTypeError: it is not.
        """
        asked = Global(module, name)
        if str(asked) in self._objects:
            return self._objects[str(asked)]
        if asked in _DATA and "." not in name:
            return _safe(asked)
        if str(asked) in self._names:
            return _resolved(asked)
        known = self._imported(asked)
        if known is None:
            raise untrusted([str(asked)])
        return known

    def _is_users(self, asked: Global) -> bool:
        return str(asked) in self._objects or str(asked) in self._names or self._imported(asked) is not None

    def _imported(self, asked: Global) -> Any:
        """What is trusted under its own name, and asked for by another that is loaded already, such as an old one."""
        if "." in asked.name:
            return None
        found = getattr(sys.modules.get(asked.module), "__dict__", {}).get(asked.name)
        if found is None or isinstance(found, ModuleType):
            return None
        own = name_of(found)
        if any(found is item for item in self._objects.values()) or own in self._names:
            return found
        return None

    def may_call(self, made: Made) -> bool:
        if not isinstance(made.of, Global):
            return False
        check = _DATA.get(made.of)
        # What the user trusts is trusted with any arguments.
        return (check is not None and check(made)) or self._is_users(made.of)

    def may_build(self, target: Any) -> bool:
        if not isinstance(target, Made) or not isinstance(target.of, Global):
            return False
        return target.of in _STATED or self._is_users(target.of)

    def may_fill(self, target: Any) -> bool:
        if not isinstance(target, Made) or not isinstance(target.of, Global):
            return False
        return target.of in _FILLED or self._is_users(target.of)


def _checked_name(name: str) -> str:
    module, dot, rest = name.partition(".")
    if not (dot and module and rest) or not all(part.isidentifier() or "<" in part for part in name.split(".")):
        raise ValueError(f"trusted has {name!r}, which is no name such as 'module.Name'.")
    if name in sys.modules:
        raise TypeError(f"trusted has the module {name}. Name the types in it one by one.")
    return name


def name_of(item: Any) -> str:
    """The module and qualified name by which something is known."""
    module = getattr(item, "__module__", None) or "builtins"
    return f"{module}.{getattr(item, '__qualname__', getattr(item, '__name__', ''))}"


def _resolved(asked: Global) -> Any:
    """Import what the user has named.

    Raises:
        UntrustedTypeError: it is something of elsewhere under that name.
    """
    found: Any = importlib.import_module(asked.module)
    for part in asked.name.split("."):
        found = getattr(found, part)
        # The name of a class in a class goes through classes only; a module on the way leads out.
        if isinstance(found, ModuleType):
            raise untrusted([str(asked)], f"{asked} is a module")
    own = name_of(found)
    if own != str(asked) and own.partition(".")[0].lstrip("_") != asked.module.partition(".")[0].lstrip("_"):
        raise untrusted([str(asked)], f"{asked} is {own} under another name; trust that name if you mean it")
    return found


def _safe(asked: Global) -> Any:
    """What one of our own names means."""
    if asked == Global("_codecs", "encode"):
        return _encode_latin1
    module, name = asked
    if module == "__builtin__":
        module, name = "builtins", _OF_PYTHON_2.get(name, name)
    elif module == "pathlib._local":
        module = "pathlib"
    if module.startswith("numpy."):
        return _safe_of_numpy(module, name)
    found = getattr(importlib.import_module(module), name)
    if isinstance(found, ModuleType) or (isinstance(found, FunctionType) and found.__module__ != _ARRAYS):
        raise untrusted([str(asked)])
    return found


_OF_PYTHON_2 = {"xrange": "range", "long": "int", "unicode": "str"}


def _safe_of_numpy(module: str, name: str) -> Any:
    """Found where this NumPy has it: 1 and 2 name their cores differently."""
    import numpy as np

    core = getattr(np, "_core", None) or np.core
    homes = {
        "_reconstruct": core.multiarray,
        "scalar": core.multiarray,
        "_frombuffer": core.numeric,
        "_mareconstruct": np.ma.core,
        "MaskedArray": np.ma,
        "matrix": np,
        "record": np,
        "recarray": np,
    }
    return getattr(homes[name], name)


def _encode_latin1(text: Any, encoding: Any) -> bytes:
    if not (isinstance(text, str) and encoding in ("latin1", "latin-1")):
        raise untrusted(["_codecs.encode"], "it is called with another codec than latin1")
    return text.encode("latin-1")


def untrusted(names: list[str], why: str = "") -> UntrustedTypeError:
    listed = ", ".join(names)
    return UntrustedTypeError(why or f"it asks for {listed}", names=tuple(names))


class Guard(Inspector):
    """Holds what a pickle would do against what is trusted, and collects what is not."""

    def __init__(self, trust: Trust) -> None:
        super().__init__()
        self._trust = trust
        # In the order of the file, each once.
        self._refused: dict[str, None] = {}
        self._whys: list[str] = []

    def check(self) -> None:
        """Raise if anything was not trusted.

        Raises:
            UntrustedTypeError: it names all that was asked for.
        """
        if self._refused or self._whys:
            names = list(self._refused)
            asks = [f"it asks for {', '.join(names)}"] if names else []
            raise untrusted(names, "; ".join([*asks, *self._whys]))

    def on_global(self, found: Global) -> None:
        if not self._trust.allows(found):
            self._refused[str(found)] = None

    def on_call(self, made: Made) -> None:
        super().on_call(made)
        if not self._is_refused(made.of) and not self._trust.may_call(made):
            self._refuse(made.of, f"calls {_text(made.of)} in a way that plain data does not need")

    def on_build(self, target: Any, state: Any) -> None:
        super().on_build(target, state)
        if self._is_refused(target):
            return
        if not self._trust.may_build(target):
            self._refuse(target, f"changes the state of {_text(target)}")
        elif target.of in _STATED_ARRAYS and not _is_array_state(state):
            self._refuse(target, "has the state of an array that NumPy would not write")

    def on_fill(self, target: Any) -> None:
        if self._is_refused(target):
            return
        if not self._trust.may_fill(target):
            self._refuse(target, f"adds items to {_text(target)}")

    def on_odd(self, what: str) -> None:
        self._note(f"it uses {what}")

    def on_wrong_dtype(self, made: Made, why: str) -> None:
        self._refuse(made, f"has a numpy.dtype that {why}")

    def _is_refused(self, of: Any) -> bool:
        while isinstance(of, Made):
            of = of.of
        return isinstance(of, Global) and str(of) in self._refused

    def _refuse(self, of: Any, why: str) -> None:
        of = of.of if isinstance(of, Made) else of
        if isinstance(of, Global):
            self._refused[str(of)] = None
        self._note(f"it {why}")

    def _note(self, why: str) -> None:
        if why not in self._whys and len(self._whys) < _MOST_WHYS:
            self._whys.append(why)


_MOST_WHYS = 8


def _is_array_state(state: Any) -> bool:
    """Whether it is ``(1, shape, dtype, is_fortran, data)``, or a masked array's with its mask and fill value after."""
    if not (isinstance(state, tuple) and len(state) in (4, 5, 7)):
        return False
    shape, found, _, data = state[-4:] if len(state) < 7 else state[1:5]
    dtype = known_dtype(found)
    if dtype is None or not isinstance(shape, tuple) or not all(isinstance(n, int) and n >= 0 for n in shape):
        return False
    if dtype.hasobject:
        # NumPy takes as many items as the shape says, whatever the list has, and crashes if it has fewer.
        return isinstance(data, Listed) and data.count == math.prod(shape) and len(state) < 7
    return data is BYTES or isinstance(data, bytes) or (isinstance(data, Made) and isinstance(data.known, bytes))


def _text(of: Any) -> str:
    if isinstance(of, Made):
        return f"what {_text(of.of)} gave"
    return str(of) if isinstance(of, Global) else "what is nothing imported"
