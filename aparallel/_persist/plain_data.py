"""Plain data and NumPy's data types: the names that pickles of them use, and how.

They must be no way to more. So a name is trusted *as something*: most only as a value; a call is checked with its
arguments (``set`` of a list yes, of a range of 10^12 no); and nothing may change the state of something that was
imported.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from aparallel._persist.dtypes import known_dtype
from aparallel._persist.nesting import STATED_ARRAYS
from aparallel._persist.standins import (
    BUFFER,
    BYTES,
    GETTERS,
    RECONSTRUCTORS,
    SET,
    TEXT,
    WRAPPERS,
    Global,
    Items,
    Listed,
    Made,
    Opaque,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    Check = Callable[[Made], bool]

ARRAYS = "aparallel._persist.arrays"


def anything(made: Made) -> bool:
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
    return made.known is not None  # else the guard has found it wrong


def _scalar(made: Made) -> bool:
    args = _args(made)
    found = known_dtype(args[0]) if args else None
    # NumPy makes an array of what has a shape, and crashes where a scalar has one.
    return len(args) <= 2 and found is not None and not found.hasobject and found.subdtype is None


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
    add(builtin, "complex slice range xrange object", anything)
    add(builtin, "set frozenset", _of_literal)
    add(builtin, "bytearray", _of_bytes)
    add("_codecs", "encode", _of_latin1)
    add("collections", "OrderedDict deque Counter", _of_literal)
    add("collections", "defaultdict", _of_type)
    add("datetime", "date datetime time timedelta timezone", anything)
    add("decimal", "Decimal", anything)
    add("fractions", "Fraction", _of_fraction)
    add("uuid", "UUID", anything)
    add("uuid", "SafeUUID", _never)
    add("zoneinfo", "ZoneInfo", _never)
    add("zoneinfo", "ZoneInfo._unpickle", anything)
    paths = "Path PosixPath WindowsPath PurePath PurePosixPath PureWindowsPath"
    add("pathlib pathlib._local", paths, anything)

    add("numpy", "dtype", _a_dtype)
    add("numpy._core._internal", "_convert_to_stringdtype_kwargs", _a_dtype)
    add("numpy", "ndarray matrix memmap record recarray", _never)
    add("numpy.core.memmap", "memmap", _never)
    add("numpy.matrixlib.defmatrix", "matrix", _never)
    add("numpy.rec numpy.core.records numpy._core.records", "record recarray", _never)
    add("numpy.char numpy.core.defchararray numpy._core.defchararray", "chararray", _never)
    add("numpy.ma numpy.ma.core", "MaskedArray", _never)
    add("numpy.ma.core", "MaskedConstant", _of_nothing)
    add("numpy", _SCALARS, _never)
    cores = "numpy.core.multiarray numpy._core.multiarray"
    add(cores, "_reconstruct", _empty_array)
    add(cores, "scalar", _scalar)
    add("numpy.core.numeric numpy._core.numeric", "_frombuffer", _from_buffer)
    add("numpy.ma.core", "_mareconstruct", _empty_masked)
    add(ARRAYS, "array subclass_array", _from_buffer)
    add(ARRAYS, "masked_array", _of_arrays)
    return table


_SCALARS = (
    "bool bool_ int8 int16 int32 int64 uint8 uint16 uint32 uint64 intc uintc int_ uint longlong ulonglong "
    "float16 float32 float64 longdouble float128 complex64 complex128 clongdouble complex256 "
    "str_ bytes_ void datetime64 timedelta64 object_"
)
DATA = _table()
DATA.update(dict.fromkeys(WRAPPERS, anything))
# The guard takes a call of these for one of the class that it is given; so what is left are other ones.
DATA.update(dict.fromkeys(RECONSTRUCTORS, _never))
# The walk takes a call of these for the name of the member that it gives.
DATA.update(dict.fromkeys(GETTERS, _never))
# What is made by calling these may be given a state; other plain data has none.
STATED = frozenset({*WRAPPERS, *STATED_ARRAYS, Global("numpy", "dtype"), Global("uuid", "UUID")})
# What may be given items one by one.
FILLED = frozenset(Global("collections", name) for name in ("OrderedDict", "deque", "Counter", "defaultdict"))
