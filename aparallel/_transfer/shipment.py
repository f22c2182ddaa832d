"""A call's payload that is large, or whose large buffers lie in shared memory."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from aparallel._wire.frames import OUT_OF_LINE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from aparallel._transfer.arguments import ArgumentMemory
    from aparallel._transfer.contents import Content
    from aparallel._transfer.out_of_band import Reference, Source
    from aparallel._transfer.segments import Segment
    from aparallel._transfer.shared_memory import Mode
    from aparallel._transfer.users import User


class Shipment:
    """A pickle, and the contents that it refers to, in the order in which it does. They stay while it is there.

    Attributes:
        pieces: of the pickle, *size* bytes together.
    """

    __slots__ = ("parts", "pieces", "size")

    def __init__(self, pieces: Sequence[bytes | memoryview], size: int, parts: list[tuple[Content, Mode]]) -> None:
        self.pieces = pieces
        self.size = size
        self.parts = parts


def with_references(pieces: Sequence[bytes | memoryview], references: list[Any]) -> bytes | Shipment:
    """Return the payload for a pickle that refers only to what is shared already."""
    size = sum(map(len, pieces))
    if not references and size <= OUT_OF_LINE:
        return b"".join(pieces)
    return Shipment(pieces, size, [(reference.content, reference.mode) for reference in references])


class LazyMemory:
    """A pool's memory for arguments, made in the thread that needs it first: it imports numpy.

    Args:
        on_unused: called, in any thread, when some of it is used no more, or soon may be.
        has_spare_core: asked, in any thread, whether a second one may help with what is large.
        on_shortage: called by a thread that finds no room: to have others give back what they keep for later.
    """

    def __init__(
        self,
        on_unused: Callable[[], object] = lambda: None,
        has_spare_core: Callable[[], bool] = lambda: False,
        on_shortage: Callable[[], object] = lambda: None,
    ) -> None:
        self._on_unused = on_unused
        self._has_spare_core = has_spare_core
        self._on_shortage = on_shortage
        self._made: ArgumentMemory | None = None
        self._is_closed = False
        self._lock = threading.Lock()

    def get(self) -> ArgumentMemory:
        with self._lock:
            if self._made is None:
                from aparallel._transfer.arguments import ArgumentMemory

                self._made = ArgumentMemory(self._on_unused, self._has_spare_core, self._on_shortage)
                if self._is_closed:  # a call that was cancelled is still being written
                    self._made.close()
            return self._made

    @property
    def is_made(self) -> bool:
        return self._made is not None

    def give_back(self) -> None:
        """Keep nothing for later, and have others do so. Takes long."""
        if self._made is None:
            self._on_shortage()
        else:
            self._made.give_back()

    def reference_to(
        self, source: Source, mode: Mode, user: User | None, may_ask: Callable[[], bool] | None
    ) -> Reference | None:
        """Return a reference to what was written of *source* if it surely is the same now, else None.

        *may_ask*: whether the buffer is by now as the call is to see it, so that the kernel may be asked about it.
        """
        return None if self._made is None else self._made.reference_to(source, mode, user, may_ask)

    def trim(self, unused_since: float) -> tuple[list[Segment], bool]:
        """Close what nobody has used since then; return that, and whether there is more that is not used now."""
        return ([], False) if self._made is None else self._made.trim(unused_since)

    def close(self) -> None:
        """Close it, now or when it is made."""
        self._is_closed = True  # before the look, as get() looks after it has made it
        if self._made is not None:
            self._made.close()
