"""Buffers that leave the pickle stream (protocol 5) instead of being copied into it.

What is put into the stream in their place is, for numpy's arrays, made here too: numpy's own way
keeps only contiguous arrays of the exact type and of types that the buffer protocol knows out of the stream.
"""

from __future__ import annotations

import sys
from pickle import PickleBuffer

from aparallel._transfer.pickling import TooLarge

TYPE_CHECKING = False  # as in aparallel/__init__.py
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from aparallel._transfer.shared_memory import Mode


# A limit that no buffer exceeds.
NEVER = 1 << 62


class Marker(bytearray):
    """Stands in a pickle buffer's place for what cannot be told as one."""


class OutOfBand:
    """Takes the large buffers of a pickle: what picklers call back for each buffer.

    Args:
        limit: buffers of more bytes leave the stream.
        mode: how arguments are to be mapped; None for results, which are always data.
        collecting: whether to take them, or to raise TooLarge for the first, which is for another thread then.

    Attributes:
        sources: what was taken, in the order in which the pickle needs it: memoryviews of bytes, and markers.
    """

    def __init__(self, limit: int, mode: Mode | None, *, collecting: bool) -> None:
        self.limit = limit
        self.mode = mode
        self.collecting = collecting
        self.sources: list[memoryview | Marker] = []
        # How arrays are reduced, and how many types of them there were when that was found out.
        self._arrays: dict[type, Callable[[Any], Any]] | None = None
        self._kinds = 0

    def __call__(self, buffer: PickleBuffer) -> bool:
        """Return whether the buffer stays in the stream."""
        with memoryview(buffer) as view:
            marker = view.obj
            size = view.nbytes
        if isinstance(marker, Marker):
            self.sources.append(marker)
            return False
        if size <= self.limit:
            return True
        self.check()
        self.sources.append(buffer.raw())
        return False

    def check(self) -> None:
        """Something large is to be taken.

        Raises:
            TooLarge: not here.
        """
        if not self.collecting:
            raise TooLarge

    def reducers(self) -> dict[type, Callable[[Any], Any]] | None:
        """How picklers are to reduce arrays; None if there can be none."""
        numpy = sys.modules.get("numpy")
        if numpy is None:
            return None
        kinds = len(numpy.ndarray.__subclasses__())
        if self._arrays is None or kinds != self._kinds:
            from aparallel._transfer.arrays import reducers

            self._arrays, self._kinds = reducers(self), kinds
        return self._arrays
