"""How arrays and tables are taken apart: NumPy's, pandas' and SciPy's. Imported when the first one is met.

Arrays are encoded by dtype, shape, memory order and contents. The order counts where an array has two
or more dimensions and lies in Fortran order only, because functions can tell; every other array is read in C order,
so a view equals its C-ordered copy, and a memory map the array it holds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from aparallel._memory.digest import Hasher
from aparallel._memory.encoding import Handler, Parts, Spend
from aparallel.errors import UnstableValueError

if TYPE_CHECKING:
    from collections.abc import Iterable

_SLICE = 4 << 20  # bytes that are copied at a time where an array does not lie in one piece

# x87's long double: 10 bytes that mean something in 12 or 16. The others are whatever was there.
_LONG_DOUBLE_BYTES = 10
_HAS_PADDING = np.finfo(np.longdouble).nmant == 63


def find_handler(cls: type) -> Handler | None:
    """Return what takes apart values of *cls*, a class of NumPy, pandas or SciPy or a subclass of one."""
    if issubclass(cls, np.ndarray):
        return _masked if issubclass(cls, np.ma.MaskedArray) else _ndarray
    if issubclass(cls, np.generic):
        return _scalar
    if issubclass(cls, np.dtype):
        return _dtype
    if issubclass(cls, np.ufunc):
        return _ufunc
    roots = {base.__module__.partition(".")[0] for base in cls.__mro__}
    if "pandas" in roots:
        return _find_pandas_handler(cls)
    if (
        "scipy" in roots
        and all(hasattr(cls, name) for name in ("tocsr", "format", "shape"))
        and not issubclass(cls, dict)
    ):
        return _sparse
    return None


def _ndarray(value: np.ndarray[Any, Any], spend: Spend) -> Parts:
    cls = type(value)
    if cls is np.ndarray or cls is np.memmap:
        return _array(np.asarray(value), spend)
    return Parts(b"a", [cls, np.asarray(value), _attributes(value)])


def _attributes(value: np.ndarray[Any, Any]) -> dict[str, Any]:
    """What a subclass's array has besides its items. A unit may be private; a memory map is where they lie."""
    state: Any = object.__getstate__(value)  # NumPy's own leaves it out
    own, slots = state if isinstance(state, tuple) else (state, None)
    return {name: part for name, part in {**(own or {}), **(slots or {})}.items() if name != "_mmap"}


def _array(array: np.ndarray[Any, Any], spend: Spend) -> Parts:
    dtype = array.dtype
    in_fortran_order = array.ndim > 1 and array.flags.f_contiguous and not array.flags.c_contiguous
    content: object
    if dtype.names is not None:  # field by field: between them may be anything
        content = [array[name] for name in dtype.names]
    elif dtype.hasobject or dtype.kind == "T":
        content = array.ravel().tolist()
    else:
        spend(array.nbytes >> 7)
        hasher = Hasher()
        _update(hasher, array.T if in_fortran_order else array)
        content = hasher.digest()
    return Parts(b"A", [dtype, "F" if in_fortran_order else "C", array.shape, content])


def _update(hasher: Hasher, array: np.ndarray[Any, Any]) -> None:
    """Hash the elements in C order, without copying all of them."""
    if _HAS_PADDING and array.dtype.char in "gG":
        items = np.ascontiguousarray(array).reshape(-1).view(np.uint8).reshape(-1, np.dtype("g").itemsize)
        hasher.update(np.ascontiguousarray(items[:, :_LONG_DOUBLE_BYTES]).reshape(-1))
    elif array.size == 0:
        pass
    elif array.flags.c_contiguous:
        hasher.update(array.reshape(-1).view(np.uint8))
    elif array.nbytes <= _SLICE:
        hasher.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    else:
        step = max(1, _SLICE * len(array) // array.nbytes)
        for start in range(0, len(array), step):
            part = array[start : start + step]
            _update(hasher, part[0] if len(part) == 1 else part)


def _scalar(value: np.generic, spend: Spend) -> Parts:
    return Parts(b"#", [type(value), _array(np.asarray(value), spend).children])


def _masked(value: Any, spend: Spend) -> Parts:
    data, mask = np.ma.getdata(value), np.ma.getmaskarray(value)
    return Parts(b"x", [type(value), np.asarray(data), np.asarray(mask), value.fill_value])


def _dtype(value: np.dtype[Any], spend: Spend) -> Parts:
    content: list[Any]
    if value.names is not None and value.fields is not None:
        fields = [(name, *value.fields[name]) for name in value.names]
        content = [fields, value.itemsize, value.isalignedstruct]
    elif value.subdtype is not None:
        content = list(value.subdtype)
    else:
        content = [value.str, value.name if value.kind != "T" else repr(value)]
    return Parts(b"d", content)


def _ufunc(value: np.ufunc, spend: Spend) -> Parts:
    if value.__name__.endswith(" (vectorized)"):  # by frompyfunc, and the function cannot be seen
        raise UnstableValueError.of(value)
    # Others' by their loops too: they do not know their module, and some of SciPy's have the names of NumPy's.
    is_numpys = getattr(np, value.__name__, None) is value
    return Parts(b"U", [value.__name__, *([] if is_numpys else [value.types])])


def _sparse(value: Any, spend: Spend) -> Parts:
    names = ("data", "indices", "indptr", "row", "col", "offsets", "rows")
    content = {name: part for name in names if (part := getattr(value, name, None)) is not None}
    if len(value.shape) != 2 and hasattr(value, "coords"):
        content["coords"] = value.coords  # of which rows and columns are the last two
    return Parts(b"z", [type(value), value.format, value.shape, value.dtype, content])


def _find_pandas_handler(cls: type) -> Handler | None:
    import pandas as pd

    handlers: Iterable[tuple[type, Handler]] = (
        (pd.DataFrame, _frame),
        (pd.Series, _series),
        (pd.Index, _index),
        (pd.api.extensions.ExtensionArray, _extension_array),
    )
    return next((handler for base, handler in handlers if issubclass(cls, base)), None)


def _frame(value: Any, spend: Spend) -> Parts:
    columns = [_column(value.iloc[:, position]) for position in range(value.shape[1])]
    spend(8 * len(columns))
    return Parts(b"w", [type(value), value.columns, value.index, columns, _extras(value)])


def _series(value: Any, spend: Spend) -> Parts:
    return Parts(b"v", [type(value), value.name, value.index, _column(value), _extras(value)])


def _extras(value: Any) -> list[Any]:
    """What pandas and its subclasses keep beside the data."""
    more = {name: getattr(value, name, None) for name in value._metadata if name != "_name"}
    return [value.attrs, value.flags.allows_duplicate_labels, more]


def _column(values: Any) -> Any:
    """The array of a series or an index: NumPy's where it is one."""
    return values.to_numpy() if isinstance(values.dtype, np.dtype) else values.array


def _index(value: Any, spend: Spend) -> Parts:
    import pandas as pd

    content: list[Any]
    if isinstance(value, pd.RangeIndex):
        content = [value.start, value.stop, value.step]
    elif isinstance(value, pd.MultiIndex):
        content = [_column(value.get_level_values(level)) for level in range(value.nlevels)]
    else:
        content = [_column(value), getattr(value, "freqstr", None)]
    return Parts(b"j", [type(value), list(value.names), *content])


def _extension_array(value: Any, spend: Spend) -> Parts:
    import pandas as pd

    content: list[Any]
    if isinstance(value, pd.Categorical):
        content = [value.codes, value.categories, value.ordered]
    elif hasattr(value, "_mask") and hasattr(value, "_data"):
        data = value._data.copy()
        data[value._mask] = data.dtype.type()  # under the mask lies anything
        content = [data, value._mask]
    elif hasattr(value, "asi8"):
        content = [value.asi8]
    elif isinstance(value, pd.arrays.IntervalArray):
        content = [value.left, value.right, value.closed]
    elif isinstance(value, pd.arrays.SparseArray):
        content = [value.sp_values, value.sp_index.indices, value.fill_value, len(value)]
    else:
        content = [value.to_numpy(dtype=object)]
    return Parts(b"l", [type(value), str(value.dtype), *content])
