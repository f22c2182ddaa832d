"""Who uses what lies in shared memory for longer than one call."""

from __future__ import annotations

from typing import Any


class User:
    """A gather or stream, to those who keep something for it: they hold weak references.

    Calls between whose draws no code of others ran were drawn in one moment: all calls of a list, and of other sources
    mostly one each. What was found of a buffer for one call of a moment holds for all of it.

    Attributes:
        moment: counts the moments.
        superseded: what it goes on with, by where it lies, of buffers that were found changed for somebody else, and
            the moment for which that holds.
    """

    __slots__ = ("__weakref__", "moment", "superseded")

    def __init__(self) -> None:
        self.moment = 0
        self.superseded: dict[tuple[Any, ...], tuple[int, Any]] = {}

    def begin_moment(self) -> None:
        self.moment += 1
        self.superseded.clear()
