"""Who uses what lies in shared memory for longer than one call."""

from __future__ import annotations

from typing import Any


class User:
    """A gather or stream, to those who keep something for it: they hold weak references.

    Attributes:
        at_once: its calls count as drawn at once: what was found of a buffer for one of them holds for all.
        superseded: what it goes on with, by where it lies, of buffers that were found changed for somebody else.
    """

    __slots__ = ("__weakref__", "at_once", "superseded")

    def __init__(self, *, at_once: bool) -> None:
        self.at_once = at_once
        self.superseded: dict[tuple[Any, ...], Any] = {}
