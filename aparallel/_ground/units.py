"""Amounts as people write them: ``"10MB"`` in bytes, ``"7d"`` in seconds; and whole numbers, whoever made them.

All parsers are pure. No float stands between a text and its number of bytes.
"""

from __future__ import annotations

import math
import operator
import re
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import timedelta

# As in joblib, and as memory is counted: each step is 1,024, with or without "B" or "iB" after it.
_BYTES: Mapping[str, int] = MappingProxyType(
    {prefix + ending: 1024**power for power, prefix in enumerate("KMGTP", start=1) for ending in ("", "B", "IB")}
    | {"": 1, "B": 1}
)
_SECONDS = MappingProxyType({"ms": 0.001, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400, "w": 604800, "": 1})

# Thirty digits are enough for any amount, and stay below int()'s own limit on digits.
_AMOUNT = r"\s*([0-9]{1,30})(?:\.([0-9]{1,30}))?\s*([A-Za-z]*)\s*"


def whole_number(value: object) -> int | None:
    """Return *value* as an int if it is a whole number, such as an int or one of NumPy's; None for all else.

    A float is none, and neither is a bool.
    """
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)  # type: ignore[arg-type]  # it is the check
    except TypeError:
        return None


def parse_bytes(amount: str | int) -> int:
    """Return *amount* in bytes: an integer as it is, or text such as ``"500"``, ``"64K"``, ``"1.5GB"``.

    ``K``, ``KB`` and ``KiB`` are all 1,024 bytes, ``M``, ``MB`` and ``MiB`` 1,024 of those, and so on
    for ``G``, ``T`` and ``P``; case does not matter. Part of a byte is dropped.

    Raises:
        ValueError: the text is not understood, or the amount is negative.
        TypeError: *amount* is neither text nor an integer.
    """
    if not isinstance(amount, str):
        return _checked_bytes(amount)
    match = re.fullmatch(_AMOUNT, amount)
    factor = _BYTES.get(match[3].upper()) if match else None
    if match is None or factor is None:
        raise ValueError(f"{amount!r} is not a number of bytes. Write for example 500, '64K', '1.5GB' or '2TiB'.")
    decimals = match[2] or ""
    scale: int = 10 ** len(decimals)  # int ** int may be a float to a type checker
    return int(match[1] + decimals) * factor // scale


def _checked_bytes(amount: int) -> int:
    count = whole_number(amount)
    if count is None:
        raise TypeError(f"A number of bytes is an integer or text such as '10MB', got {amount!r}.")
    if count < 0:
        raise ValueError(f"A number of bytes cannot be negative, got {count}.")
    return count


def parse_seconds(amount: str | float | timedelta) -> float:
    """Return *amount* in seconds: a number as it is, a timedelta, or text such as ``"90"``, ``"250ms"``, ``"1h30m"``.

    The units are ``ms``, ``s``, ``m`` or ``min`` (minutes), ``h``, ``d`` and ``w``, in lower case, because ``M``
    is a month to some; several add up. A number without a unit is seconds and stands alone.

    Raises:
        ValueError: the text is not understood, or the amount is negative, infinite or not a number.
        TypeError: *amount* is none of the three.
    """
    seconds = _read_seconds(amount) if isinstance(amount, str) else _seconds_of(amount)
    if not (seconds >= 0 and math.isfinite(seconds)):
        raise ValueError(f"A time span must be a finite number of seconds, 0 or more, got {amount!r}.")
    return seconds


def _read_seconds(text: str) -> float:
    total, position = 0.0, 0
    while position < len(text) or position == 0:
        match = re.compile(_AMOUNT).match(text, position)
        factor = _SECONDS.get(match[3]) if match else None
        stands_alone = match is not None and match.span() == (0, len(text))
        if match is None or factor is None or not (match[3] or stands_alone):
            raise ValueError(f"{text!r} is not a time span. Write for example 90, '250ms', '1h30m' or '7d'.")
        total += float(f"{match[1]}.{match[2] or 0}") * factor
        position = match.end()
    return total


def _seconds_of(amount: float | timedelta) -> float:
    from datetime import timedelta
    from numbers import Real  # NumPy's scalars count as such

    if isinstance(amount, timedelta):
        return amount.total_seconds()
    if isinstance(amount, Real) and not isinstance(amount, bool):
        return float(amount)
    raise TypeError(f"A time span is a number of seconds, a timedelta or text such as '7d', got {amount!r}.")
