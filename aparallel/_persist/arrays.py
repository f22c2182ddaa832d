"""How arrays are rebuilt. Files name these functions: their names and arguments stay as they are.

An array stands in the pickle as a call of :func:`array` with its raw bytes as a buffer out of the pickle's band.
NumPy's own reduction is not used: it names functions that moved between NumPy 1 and 2, copies arrays that are not
contiguous, and keeps those of subclasses inside the pickle.
"""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np


def array(buffer: Any, dtype: np.dtype[Any], shape: tuple[int, ...], order: str) -> Any:
    """Return the array of *shape* and *order* ("C" or "F") whose items lie in *buffer*.

    It is a view of *buffer*; one of mapped memory is a :class:`numpy.memmap` that knows its file and its place there.

    Raises:
        ValueError: dtype and shape do not fit the buffer, or the dtype holds objects.
    """
    if dtype.hasobject:
        raise ValueError("an array of objects cannot be made of bytes")
    if isinstance(buffer, np.memmap):
        return _mapped(buffer, dtype, shape, order)
    if not isinstance(buffer, np.ndarray):
        buffer = np.frombuffer(buffer, np.uint8)
    _check_size(buffer.nbytes, dtype, shape)
    in_order: Any = order
    return np.ndarray(shape, dtype, buffer, 0, None, in_order)  # by keyword, it takes half as long again


def _mapped(buffer: np.memmap[Any, Any], dtype: np.dtype[Any], shape: tuple[int, ...], order: str) -> Any:
    _check_size(buffer.nbytes, dtype, shape)
    in_order: Any = order
    found: Any = np.ndarray.__new__(np.memmap, shape, dtype, buffer, order=in_order)
    # As numpy.memmap's own constructor leaves them.
    found._mmap = buffer._mmap  # type: ignore[attr-defined]
    found.filename = buffer.filename
    found.mode = buffer.mode
    found.offset = buffer.offset
    return found


def _check_size(size: int, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    # Of negative lengths, NumPy says what it thinks itself; but it does not see how many items of no size there are.
    count = math.prod(shape)
    expected = count * dtype.itemsize
    if expected != size or (not expected and (min(shape, default=0) < 0 or count > sys.maxsize)):
        raise ValueError(f"an array of {dtype} and shape {shape} has {expected} bytes, and not {size}")


def subclass_array(buffer: Any, dtype: np.dtype[Any], shape: tuple[int, ...], order: str, kind: type) -> Any:
    """Return the array as a subclass of ``numpy.ndarray``.

    Raises:
        TypeError: *kind* is no such class.
    """
    if not (isinstance(kind, type) and issubclass(kind, np.ndarray)):
        raise TypeError(f"{kind!r} is no kind of array")
    return array(buffer, dtype, shape, order).view(kind)


def masked_array(data: Any, mask: Any, fill_value: Any) -> Any:
    """Return a ``numpy.ma.MaskedArray`` of *data*; *mask* is an array or None for none."""
    return np.ma.MaskedArray(data, np.ma.nomask if mask is None else mask, fill_value=fill_value)
