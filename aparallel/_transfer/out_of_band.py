"""Buffers that leave the pickle stream (protocol 5) instead of being copied into it."""

from __future__ import annotations

TYPE_CHECKING = False  # as in aparallel/__init__.py
if TYPE_CHECKING:
    from _pickle import PickleBuffer
    from collections.abc import Callable
    from typing import Any, TypeAlias

    from aparallel._transfer.shared_memory import Mode

    # A buffer that left a pickle, as bytes, or what stands for it.
    Source: TypeAlias = "memoryview | Marker"


class TooLarge(Exception):
    """The pickle outgrew its limit, or a buffer is to be taken elsewhere; nothing of it is kept."""


# A limit that no buffer exceeds.
NEVER = 1 << 62


class Marker(bytearray):
    """Stands in a pickle buffer's place for what cannot be told as one."""


class Reference(Marker):
    """A part of memory that workers map already. *content* is what :mod:`arguments` knows of it."""

    def __init__(self, content: Any, mode: Mode) -> None:
        super().__init__()
        self.content = content
        self.mode = mode


class Awaited(Marker):
    """Stands for *source*, which is being written, or may have to be."""

    def __init__(self, source: Source) -> None:
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
        sources: what was taken of the pickle that is being made.
    """

    def __init__(self, limit: int, mode: Mode | None, refer: Callable[[Source], Marker | None] | None = None) -> None:
        self.limit = limit
        self.mode = mode
        self._refer = refer
        self.sources: list[Source] = []
        # How arrays are reduced, and the subtypes of each of those types when that was found out.
        self.reducers: dict[type, Callable[[Any], Any]] = {}
        self.kinds: list[list[type]] = []

    def __call__(self, buffer: PickleBuffer) -> bool:
        """Return whether the buffer stays in the stream."""
        with memoryview(buffer) as view:
            marker = view.obj
            size = view.nbytes
        source: Source
        if isinstance(marker, Marker):
            source = marker
        elif size > self.limit:
            source = buffer.raw()
        else:
            return True
        if self._refer is not None and not isinstance(source, Reference):
            reference = self._refer(source)
            if reference is None:
                raise TooLarge
            source = reference
        self.sources.append(source)
        return False

    def check_thread(self) -> None:
        """Something is to be done that takes long.

        Raises:
            TooLarge: not here.
        """
        if self._refer is not None:
            raise TooLarge
