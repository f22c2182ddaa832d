"""Results as JSON."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import math
import sys
import uuid
from typing import TYPE_CHECKING, Any

from aparallel._ground.hop import in_thread, pause

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    Dumps = Callable[[Any], bytes | str]

# How many numbers, or as much else, are encoded at a time.
_SLICE = 2_000

_DEEPEST = 200
_TOO_DEEP = f"No JSON can be made of a value that is nested {_DEEPEST} deep, or contains itself."


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
        return _as_utf8(_text(value))
    encoded = dumps(value)
    return _one_line(_as_utf8(encoded) if isinstance(encoded, str) else bytes(encoded))


async def encode_aside(value: object, dumps: Dumps | None = None) -> bytes:
    """Return what :func:`encode` does, off the loop if that would hold it for more than about a millisecond.

    Then the encoder that is the default is fed in slices, because it holds the GIL for as long as it is called.
    """
    if isinstance(value, bytes | bytearray | memoryview) or weight(value) <= _SLICE:
        return encode(value, dumps)
    if dumps is not None:
        return await in_thread(encode, value, dumps)
    return await in_thread(_encode_in_slices, value)


def _text(value: object) -> str:
    try:
        return _strict.encode(value)
    except ValueError:  # NaN or an infinity, somewhere; or a circle, which the second try finds as well
        return _strict.encode(_finite(value))


def _as_utf8(text: str) -> bytes:
    # A lone surrogate is no UTF-8; Python writes it as \ud800, and so does JSON.
    return text.encode("utf-8", "backslashreplace")


def weight(value: object, depth: int = 0) -> int:
    """Return about how many numbers *value* is worth to the encoder, judging long containers by their first item."""
    if isinstance(value, str):
        return 1 + len(value) // 50
    size = getattr(value, "size", None)
    if isinstance(size, int) and _is_array(value):
        return size
    if depth > _DEEPEST:  # perhaps a circle: the encoder will say so
        return 1
    if isinstance(value, dict):
        return 1 + _weight_of_all(value.values(), depth)
    if isinstance(value, list | tuple):
        return 1 + _weight_of_all(value, depth)
    if (fields := _fields_of(value)) is not None:
        return 1 + sum(weight(field, depth + 1) for field in fields.values())
    return 1


def _weight_of_all(items: Collection[object], depth: int) -> int:
    if len(items) <= 16 and depth < 4:
        return sum(weight(item, depth + 1) for item in items)
    return len(items) * weight(next(iter(items), None), depth + 1)


def _is_array(value: object) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.ndarray)


def _fields_of(value: object) -> dict[str, object] | None:
    """The fields of a dataclass's instance by name, None for anything else."""
    if isinstance(value, type) or not dataclasses.is_dataclass(value):
        return None
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}


def _encode_in_slices(value: object) -> bytes:
    pieces = []
    for piece in _pieces(value):
        pieces.append(_as_utf8(piece))
        pause()
    return b"".join(pieces)


def _pieces(value: Any, depth: int = 0) -> Iterator[str]:
    """Yield the JSON of *value* in pieces, none of which takes long to make."""
    if depth > _DEEPEST:
        raise ValueError(_TOO_DEEP)
    if weight(value) <= _SLICE:
        yield _text(value)
    elif _is_array(value) and value.ndim == 1:
        for start in range(0, len(value), _SLICE):
            yield ("," if start else "[") + _text(value[start : start + _SLICE])[1:-1]
        yield "]"
    elif isinstance(value, list | tuple | dict) or (_is_array(value) and value.ndim > 1):
        yield from _pieces_of_parts(value, depth)
    elif (fields := _fields_of(value)) is not None:
        yield from _pieces(fields, depth)
    else:
        yield _text(value)


def _pieces_of_parts(container: Any, depth: int) -> Iterator[str]:
    """Yield the members of an object or the items of an array, as many at a time as are a slice together."""
    is_object = isinstance(container, dict)
    separator, end = "{}" if is_object else "[]"

    def inside(parts: dict[Any, Any]) -> str:
        return _text(parts if is_object else list(parts.values()))[1:-1]

    small: dict[Any, Any] = {}
    total = 0
    for key, item in container.items() if is_object else enumerate(container):
        heft = weight(item)
        if small and total + heft > _SLICE:
            yield separator + inside(small)
            separator, small, total = ",", {}, 0
        if heft > _SLICE:
            yield separator + (inside({key: None}).removesuffix("null") if is_object else "")
            yield from _pieces(item, depth + 1)
            separator = ","
        else:
            small[key] = item
            total += heft
    yield separator + inside(small) + end if small else end


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
    if (fields := _fields_of(value)) is not None:
        return fields
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
        raise ValueError(_TOO_DEEP)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item, depth + 1) for item in value]
    if value is None or isinstance(value, str | int):
        return value
    return _finite(_plain(value), depth + 1)


_strict = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_plain)
