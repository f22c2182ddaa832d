"""Which values cannot change in place: it is enough to look at them once, and they may be given to everyone."""

from __future__ import annotations

import re
import sys
from dataclasses import fields
from datetime import date, time, timedelta, tzinfo
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from pathlib import PurePath
from typing import TYPE_CHECKING, Any
from uuid import UUID

from aparallel._memory.encoding import ATOMS

if TYPE_CHECKING:
    from collections.abc import Iterable

_CONSTANTS = (Enum, PurePath, Decimal, Fraction, date, time, timedelta, tzinfo, range, slice, UUID, re.Pattern)


def is_frozen(value: object) -> bool:
    """Whether nobody can change *value*: it may be given to everyone who asks."""
    left: list[Any] = [value]
    seen: set[int] = set()  # what many share is looked at once
    while left:
        part = left.pop()
        kind = type(part)
        if kind in ATOMS or id(part) in seen:
            continue
        if kind is not tuple and kind is not frozenset:
            return False
        seen.add(id(part))
        left += part
    return True


def is_constant(value: Any) -> bool:
    """Whether *value* cannot change in place, all the way down."""
    left = [value]
    seen: dict[int, Any] = {}  # what many share is looked at once; kept alive, so that no id comes twice
    while left:
        part = left.pop()
        if id(part) not in seen:
            seen[id(part)] = part
            parts = _parts_of(part)
            if parts is None:
                return False
            left += parts
    return True


def _parts_of(value: Any) -> Iterable[Any] | None:
    """What else has to be constant for *value* to be so; None if it can change in place."""
    kind = type(value)
    if kind in ATOMS or isinstance(value, _CONSTANTS) or _is_numpys(value):
        return ()
    if isinstance(value, tuple | frozenset):
        return value if kind is tuple or kind is frozenset or hasattr(kind, "_fields") else None
    if "__dataclass_fields__" in vars(kind) and kind.__dataclass_params__.frozen:
        return [getattr(value, field.name, None) for field in fields(kind)]
    return None


def _is_numpys(value: Any) -> bool:
    """Whether *value* is a number or a dtype of NumPy's."""
    np: Any = sys.modules.get("numpy")
    return hasattr(np, "dtype") and isinstance(value, np.generic | np.dtype) and not isinstance(value, np.void)
