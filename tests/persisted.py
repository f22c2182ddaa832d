"""Objects to dump, what makes two of them the same, and classes that importable modules have."""

from __future__ import annotations

import collections
import datetime as dt
import decimal
import fractions
import pathlib
import uuid
from typing import Any

import numpy as np


class Point:
    """A class of the user's, with plain state."""

    def __init__(self, x: float, y: float) -> None:
        self.x = x
        self.y = y

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Point) and (self.x, self.y) == (other.x, other.y)

    __hash__ = None  # type: ignore[assignment]

    class Inner:
        """Reached through a dot."""


class Tagged(np.ndarray[Any, Any]):
    """A subclass of ndarray that says nothing of pickling."""


def twice(x: float) -> float:
    return 2 * x


def arrays() -> dict[str, Any]:
    """Arrays of every kind that NumPy has, by name."""
    base = np.arange(24.0).reshape(2, 3, 4)
    record = [("a", "i4"), ("b", "f8", (2,)), ("c", "U3")]
    return {
        "C order": base.copy(),
        "Fortran order": np.asfortranarray(base),
        "neither order": base.transpose(1, 0, 2),
        "every other": np.arange(100)[::3],
        "backwards": np.arange(10)[::-1],
        "broadcast": np.broadcast_to(np.arange(3), (4, 3)),
        "no dimension": np.array(7),
        "empty": np.zeros((0, 5), "f4"),
        "empty in the middle": np.zeros((3, 0, 2)),
        "big-endian": np.arange(5, dtype=">i4"),
        "half": np.arange(5, dtype="f2"),
        "long double": np.arange(5, dtype=np.longdouble),
        "complex": np.arange(5) * (1 + 2j),
        "bool": np.array([True, False]),
        "bytes": np.array([b"ab", b"c"]),
        "text": np.array(["ab", "c", ""]),
        "void": np.zeros(3, "V5"),
        "dates": np.array(["2020-01-01", "NaT"], "M8[D]"),
        "spans": np.array([1, 2], "m8[25us]"),
        "records": np.zeros(3, record),
        "aligned records": np.zeros(3, np.dtype([("a", "i1"), ("b", "f8")], align=True)),
        "record array": np.rec.array([(1, 2.0, "x")], dtype=[("a", "i4"), ("b", "f8"), ("c", "U3")]),
        "matrix": np.array([[1, 2], [3, 4]]).view(np.matrix),
        "masked": np.ma.array([1.0, 2.0, 3.0], mask=[0, 1, 0], fill_value=9.0),
        "masked by nothing": np.ma.array([1, 2]),
        "subclass": np.arange(4).view(Tagged),
        "objects": np.array([1, "a", None, [2.5]], object),
        "records of objects": np.array([(1, "x"), (2, None)], [("a", "i4"), ("b", "O")]),
        "text of no length": np.array(["", ""], "U0"),
        "large": np.arange(300_000.0),
        "large and not contiguous": np.arange(400_000.0).reshape(2, -1).T[::2],
    }


def plain() -> dict[str, Any]:
    """Data of Python's own kinds and NumPy's scalars and types, by name."""
    return {
        "nothing": None,
        "numbers": [0, -1, 255, 256, 65536, -(2**31), 2**31, 10**40, -(10**40), 1.5, float("inf"), True, False],
        "complex": 1 + 2j,
        "text": ["", "a", "ü" * 300, "\ud800", "x" * 70_000],
        "bytes": [b"", b"a" * 300, b"b" * 200_000, bytearray(b"c" * 10)],
        "containers": ({"a": [1, (2, 3)]}, {1, 2}, frozenset({3}), (), [], {}),
        "ordered": collections.OrderedDict(b=1, a=2),
        "deque": collections.deque([1, 2], maxlen=5),
        "counter": collections.Counter("abca"),
        "default": collections.defaultdict(list, {"a": [1]}),
        "range": range(1, 10, 2),
        "slice": slice(1, None, 2),
        "ellipsis": [Ellipsis, NotImplemented],
        "types": [int, list, np.float64],
        "date": [dt.date(2020, 1, 2), dt.timedelta(1.5), dt.time(3, 4)],
        "datetime": dt.datetime(2020, 1, 2, tzinfo=dt.timezone(dt.timedelta(hours=2))),
        "decimal": decimal.Decimal("1.50"),
        "fraction": fractions.Fraction(1, 3),
        "uuid": uuid.UUID(int=5),
        "path": pathlib.PurePosixPath("/a/b"),
        "scalars": [np.float64(1.5), np.int8(-3), np.bool_(True), np.str_("x"), np.datetime64("2020-01-01")],
        "dtypes": [np.dtype("f8"), np.dtype(">i2"), np.dtype([("a", "i4"), ("b", "O")]), np.dtype("M8[ns]")],
    }


def assert_same(found: Any, expected: Any) -> None:
    """Fail unless both are equal in type, value and, of arrays, dtype, shape and mask."""
    assert type(found) is type(expected)
    if isinstance(expected, np.ma.MaskedArray):
        assert_same(np.asarray(found.filled()), np.asarray(expected.filled()))
        assert_same(np.ma.getmaskarray(found), np.ma.getmaskarray(expected))
        assert found.fill_value == expected.fill_value
    elif isinstance(expected, np.ndarray):
        assert found.dtype == expected.dtype
        assert found.shape == expected.shape
        assert found.flags.writeable
        if expected.dtype.names:  # between the fields there may be anything
            for name in expected.dtype.names:
                assert_same(np.asarray(found[name]), np.asarray(expected[name]))
        elif expected.dtype.kind in "fc":  # long doubles have bytes of no meaning
            assert np.array_equal(found, expected, equal_nan=True)
        elif expected.dtype.hasobject:
            assert found.tolist() == expected.tolist()
        else:
            assert found.tobytes() == expected.tobytes()
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        for key, value in expected.items():
            assert_same(found[key], value)
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    else:
        assert found == expected or (found != found and expected != expected)  # a NaN
