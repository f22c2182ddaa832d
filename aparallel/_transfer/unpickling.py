"""Reading pickles in a process that has an event loop: at once where that is quick, else in a thread, in slices."""

from __future__ import annotations

import io
import sys
from _pickle import Unpickler, loads
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


# What names something in a pickle of protocol 4 and later.
_STACK_GLOBAL = b"\x93"

# What is copied in one go, which takes some 0.1 ms.
_PIECE = 256 * 1024


class NotImported(Exception):
    """A pickle names a module that has yet to be imported. That may take long: NumPy, 100 ms."""


def unpickle_at_once(data: bytes | memoryview, buffers: list[memoryview] | None = None) -> Any:
    """Unpickle *data*, which refers to *buffers*, here and now. It is bytes if it is small, else a view.

    Raises:
        NotImported: use :func:`unpickle_in_slices` in a thread. Some of it may have been made, and is dropped.
    """
    if type(data) is memoryview:
        return _Careful(_PausingReader(data, int), buffers=buffers).load()
    return _Careful(io.BytesIO(data), buffers=buffers).load() if _STACK_GLOBAL in data else loads(data)


class _Careful(Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module not in sys.modules:
            raise NotImported
        return super().find_class(module, name)


def unpickle_in_slices(
    data: bytes | bytearray | memoryview, pause: Callable[[], object], buffers: list[memoryview] | None = None
) -> Any:
    """Unpickle *data*, which refers to *buffers*, calling *pause* between frames."""
    return Unpickler(_PausingReader(data, pause), buffers=buffers).load()


class _PausingReader:
    """A file as the unpickler wants it. Pickles are made of frames of 64 KB, so a read is a slice."""

    def __init__(self, data: bytes | bytearray | memoryview, pause: Callable[[], object]) -> None:
        self._data = memoryview(data)
        self._position = 0
        self._pause = pause

    def read(self, size: int) -> bytes:
        self._pause()
        start = self._position
        self._position = min(start + size, len(self._data))
        return bytes(self._data[start : self._position])

    def readinto(self, target: Any) -> int:
        view = memoryview(target).cast("B")
        size = min(len(view), len(self._data) - self._position)
        for start in range(0, size, _PIECE):  # large bytes are in no frame, and their memory is new
            self._pause()
            end = min(start + _PIECE, size)
            view[start:end] = self._data[self._position + start : self._position + end]
        self._position += size
        return size

    def readline(self) -> bytes:
        rest = self._data[self._position :]
        for end in range(len(rest)):
            if rest[end] == 10:
                return self.read(end + 1)
        return self.read(len(rest))
