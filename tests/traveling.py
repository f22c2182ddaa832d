"""Have what a test module defines travel to workers by value.

A worker that imported the module would import pytest and all that the tests need, which takes it a second or two.
"""

from __future__ import annotations

from types import FunctionType
from typing import TypeVar

T = TypeVar("T")


def by_value(thing: T) -> T:
    """Have a function travel by value, or a class with its methods."""
    for part in (thing, *vars(thing).values()) if isinstance(thing, type) else (thing,):
        if isinstance(part, FunctionType | type):
            part.__module__ = "__main__"
    return thing
