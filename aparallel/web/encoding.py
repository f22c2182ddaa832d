"""Results as JSON."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import math
import sys
import uuid
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    Dumps = Callable[[Any], bytes | str]


def encode(value: object, dumps: Dumps | None = None) -> bytes:
    """Return *value* as JSON on one line, without a newline at its end.

    ``bytes`` are JSON already: a call that encodes its own result in its worker spares the loop. By default, beyond
    what :mod:`json` knows: NumPy's arrays and scalars, dataclasses, dates, times and UUIDs (ISO 8601 and RFC
    9562), and ``null`` for a number that JSON has not, as JavaScript does.

    Raises:
        TypeError: no JSON can be made of it.
        ValueError: *dumps*, or the bytes given, break the line.
    """
    if isinstance(value, bytes | bytearray | memoryview):
        return _one_line(bytes(value))
    if dumps is None:
        return to_json(value)
    encoded = dumps(value)
    return _one_line(encoded.encode("utf-8", "backslashreplace") if isinstance(encoded, str) else bytes(encoded))


def to_json(value: object) -> bytes:
    """Return *value* as JSON by the encoder that is the default."""
    try:
        text = _strict.encode(value)
    except ValueError:  # NaN or an infinity, somewhere; or a circle, which the second try finds as well
        text = _strict.encode(_finite(value))
    # A lone surrogate is no UTF-8; Python writes it as \ud800, and so does JSON.
    return text.encode("utf-8", "backslashreplace")


def _one_line(encoded: bytes) -> bytes:
    encoded = encoded.removesuffix(b"\n")
    if b"\n" in encoded or b"\r" in encoded:
        raise ValueError(
            "A result was encoded to several lines, and lines separate results. Encode without indentation."
        )
    return encoded


def _plain(value: object) -> object:
    """What json asks for when it does not know a type."""
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        if isinstance(value, numpy.ndarray):
            return value.astype(str).tolist() if value.dtype.kind in "Mm" else value.tolist()
        if isinstance(value, numpy.generic):
            return str(value) if value.dtype.kind in "Mm" else value.item()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, dt.date | dt.time):
        return value.isoformat()
    if isinstance(value, uuid.UUID):
        return str(value)
    raise TypeError(
        f"No JSON can be made of a {type(value).__qualname__}. Return plain data from the call, or JSON as bytes, "
        f"or give dumps= a function that knows it."
    )


def _finite(value: object, depth: int = 0) -> object:
    """Return *value* with None for the numbers that JSON has not."""
    if depth > _DEEPEST:
        raise ValueError(f"No JSON can be made of a value that is nested {_DEEPEST} deep, or contains itself.")
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item, depth + 1) for item in value]
    if value is None or isinstance(value, str | int):
        return value
    return _finite(_plain(value), depth + 1)


_DEEPEST = 200
_strict = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_plain)
