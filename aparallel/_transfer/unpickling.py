"""Reading a large pickle in a thread, in slices, so that other threads can run."""

from __future__ import annotations

from _pickle import Unpickler
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


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
        self._pause()
        view = memoryview(target).cast("B")
        block = self._data[self._position : self._position + len(view)]
        view[: len(block)] = block
        self._position += len(block)
        return len(block)

    def readline(self) -> bytes:
        rest = self._data[self._position :]
        for end in range(len(rest)):
            if rest[end] == 10:
                return self.read(end + 1)
        return self.read(len(rest))
