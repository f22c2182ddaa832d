"""Which values cannot change in place, so that it is enough to look at them once."""

from __future__ import annotations

import re
import sys
from dataclasses import fields
from datetime import date, time, timedelta, tzinfo
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from pathlib import PurePath
from typing import Any
from uuid import UUID

from aparallel._memory.plain import ATOMS

_CONSTANTS = (Enum, PurePath, Decimal, Fraction, date, time, timedelta, tzinfo, range, slice, UUID, re.Pattern)


def is_constant(value: Any) -> bool:
    """Whether *value* cannot change in place, all the way down."""
    kind = type(value)
    if kind in ATOMS or isinstance(value, _CONSTANTS):
        return True
    if isinstance(value, tuple | frozenset):
        is_plain = kind is tuple or kind is frozenset or hasattr(kind, "_fields")
        return is_plain and all(map(is_constant, value))
    if "__dataclass_fields__" in vars(kind):
        is_frozen: bool = kind.__dataclass_params__.frozen
        return is_frozen and all(is_constant(getattr(value, field.name, None)) for field in fields(kind))
    return _is_numpys(value)


def _is_numpys(value: Any) -> bool:
    """Whether *value* is a number or a dtype of NumPy's."""
    np: Any = sys.modules.get("numpy")
    return hasattr(np, "dtype") and isinstance(value, np.generic | np.dtype) and not isinstance(value, np.void)
