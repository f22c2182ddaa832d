"""Buffers that leave the pickle stream (protocol 5) instead of being copied into it."""

from __future__ import annotations

TYPE_CHECKING = False  # as in aparallel/__init__.py
if TYPE_CHECKING:
    from _pickle import PickleBuffer
    from collections.abc import Callable
    from typing import Any

    from aparallel._transfer.shared_memory import Mode


class TooLarge(Exception):
    """The pickle outgrew its limit, or a buffer is to be taken elsewhere; nothing of it is kept."""


# A limit that no buffer exceeds.
NEVER = 1 << 62


class Marker(bytearray):
    """Stands in a pickle buffer's place for what cannot be told as one.

    Attributes:
        is_reference: it refers to memory that workers map already; nothing has to be written.
    """

    is_reference = False


class Awaited(Marker):
    """Stands for *source*, which is being written, or may have to be."""

    def __init__(self, source: memoryview | Marker) -> None:
        super().__init__()
        self.source = source


class OutOfBand:
    """Takes the large buffers of a pickle: what picklers call back for each buffer.

    Args:
        limit: buffers of more bytes leave the stream.
        mode: how arguments are to be mapped; None for results, which are always data.
        refer: None to take all of them. Else what knows a reference to what was written before and cannot have changed
            since; for anything else TooLarge is raised, as that is for another thread.

    Attributes:
        sources: what was taken, in the order in which the pickle needs it: memoryviews of bytes, and markers.
    """

    def __init__(
        self, limit: int, mode: Mode | None, refer: Callable[[memoryview | Marker], Marker | None] | None = None
    ) -> None:
        self.limit = limit
        self.mode = mode
        self._refer = refer
        self.sources: list[memoryview | Marker] = []
        # How arrays are reduced, and the subtypes of each of those types when that was found out.
        self.reducers: dict[type, Callable[[Any], Any]] = {}
        self.kinds: list[list[type]] = []

    def __call__(self, buffer: PickleBuffer) -> bool:
        """Return whether the buffer stays in the stream."""
        with memoryview(buffer) as view:
            marker = view.obj
            size = view.nbytes
        source: memoryview | Marker
        if isinstance(marker, Marker):
            source = marker
        elif size > self.limit:
            source = buffer.raw()
        else:
            return True
        if self._refer is not None and not (isinstance(source, Marker) and source.is_reference):
            reference = self._refer(source)
            if reference is None:
                raise TooLarge
            source = reference
        self.sources.append(source)
        return False

    def take(self) -> list[memoryview | Marker]:
        """Hand over what was taken: kept here, in a cycle with the reducers, arrays would wait for the collector."""
        sources, self.sources = self.sources, []
        return sources

    def check_thread(self) -> None:
        """Something is to be done that takes long.

        Raises:
            TooLarge: not here.
        """
        if self._refer is not None:
            raise TooLarge
