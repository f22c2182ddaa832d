"""The reading side of shared memory: another process's segments, mapped here and given back."""

from __future__ import annotations

import os
import weakref
from collections import deque

from aparallel._transfer.shared_memory import Mapping, Parts, mapped
from aparallel.errors import SharedMemoryError

TYPE_CHECKING = False  # as in aparallel/__init__.py
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, TypeAlias

    from aparallel._transfer.shared_memory import Mode

    # The segment's number, how many references to it are gone, and whether it is spoiled, and lost.
    GivenBack = tuple[int, int, bool, bool]
    Mapped: TypeAlias = "Mapping | _Copy"


# With so many mappings here, what is small is copied instead: of the 65,000 that a process may have, the rest is needed
# for what is large, and for its heap, its threads and its libraries.
_MANY_MAPPINGS = 16_384
_SMALL_BYTES = 256 * 1024


class _Copy:
    """What a segment held when it came, in memory of this process. In place of a mapping."""

    def __init__(self, parts: Parts) -> None:
        self._data = parts.read()

    def view(self, offset: int, size: int, *, readonly: bool, keep: object = None) -> Any:
        """Return a part as an array of bytes. It is the caller's: the segment, and *keep*, may go."""
        import numpy as np

        return np.frombuffer(self._data, np.uint8)[offset : offset + size]


class _Segment:
    """Another process's segment. Mappings stay for its next use, until it is discarded.

    Attributes:
        spoiled: a fork of this process may have it mapped, too.
    """

    __slots__ = ("copy", "failure", "maps", "number", "parts", "size", "spoiled")

    def __init__(self, number: int, size: int, parts: Parts | None) -> None:
        self.number = number
        self.size = size
        self.parts = parts
        self.maps: dict[Mode, Mapping] = {}
        self.copy: _Copy | None = None
        # Why it could not be mapped when it came. Not the error: what that refers to would stay.
        self.failure = ""
        self.spoiled = False

    @property
    def is_lost(self) -> bool:
        """Whether nothing of it is left here: a descriptor found no room, or it could not be mapped."""
        return self.parts is None and not self.maps

    def take_over(self) -> None:
        """Do without the descriptors from now on.

        Raises:
            SharedMemoryError: that takes more memory than there is, or there are no descriptors.
        """
        try:
            if self.parts is not None and self.size <= _SMALL_BYTES and len(Mapping.alive) >= _MANY_MAPPINGS:
                self.copy = _Copy(self.parts)
            else:
                self.mapping("r+")
        except SharedMemoryError as error:
            if self.parts is None:
                raise
            try:
                self.copy = _Copy(self.parts)
            except MemoryError:
                raise error from None
        finally:
            self.close()

    def mapping(self, mode: Mode) -> Mapped:
        if self.copy is not None:
            return self.copy
        if mode == "c":  # each has its own
            return self._map(mode)
        mapping = self.maps.get(mode)
        if mapping is None:
            mapping = self.maps[mode] = self._map(mode)
        return mapping

    def _map(self, mode: Mode) -> Mapping:
        if self.parts is None:
            raise SharedMemoryError(
                f"{self.size:,} bytes of shared memory could not be taken over: no file descriptor was left. "
                f"Close what leaks them, or raise the limit (ulimit -n).",
                nbytes=self.size,
            )
        return mapped(self.parts, mode)

    def close(self) -> None:
        parts, self.parts = self.parts, None
        if parts is not None:
            parts.close()


class Loan:
    """Some references to a segment that arrived together. When nothing refers to it any more, that is reported."""

    __slots__ = ("_borrower", "_count", "_segment")

    def __init__(self, borrower: Borrower, segment: _Segment, count: int) -> None:
        self._borrower = borrower
        self._segment = segment
        self._count = count

    def mapping(self, mode: Mode) -> Mapped:
        """Return the segment's mapping; with "c", a new one.

        Raises:
            SharedMemoryError: it cannot be mapped.
        """
        return self._segment.mapping(mode)

    def view(self, offset: int, size: int, mode: Mode, mapping: Mapped | None = None) -> memoryview:
        """Return bytes of the segment, as *mapping* has them if that is given. What is made from them keeps the loan.

        Raises:
            SharedMemoryError: it cannot be mapped.
        """
        if mapping is None:
            mapping = self._segment.mapping(mode)
        return memoryview(mapping.view(offset, size, readonly=mode == "r", keep=self))

    def __del__(self) -> None:
        self._borrower._on_gone(self._segment, self._count)


class Borrower:
    """Segments lent by one other process.

    Attributes:
        released: loans that are gone and have not been reported yet.
    """

    def __init__(self, notify: Callable[[], object] | None = None) -> None:
        self.released: deque[GivenBack] = deque()
        self._notify = notify
        self._segments: dict[int, _Segment] = {}
        _borrowers.add(self)

    def __len__(self) -> int:
        return len(self._segments)

    def introduce(self, number: int, sizes: Sequence[int], fds: Sequence[int], *, keep: bool) -> None:
        """Take in a segment of parts of *sizes*. Unless it is to *keep*, *fds* are closed once it is mapped, writable.

        *fds* are fewer if some were lost for want of room for descriptors; who uses the segment gets the error.
        """
        parts: Parts | None = Parts(fds, sizes)
        if len(fds) != len(sizes):
            Parts(fds, sizes).close()
            parts = None
        segment = self._segments[number] = _Segment(number, sum(sizes), parts)
        if not keep:
            try:
                segment.take_over()
            except SharedMemoryError as error:
                segment.failure = str(error)

    def borrow(self, number: int, count: int = 1) -> Loan:
        """Take in references to a segment.

        Raises:
            SharedMemoryError: it could not be mapped when it came. They count as gone.
        """
        segment = self._segments[number]
        if segment.failure:
            self._on_gone(segment, count)
            raise SharedMemoryError(segment.failure, nbytes=segment.size)
        return Loan(self, segment, count)

    def discard(self, number: int) -> None:
        """Forget a segment: its owner does. What refers to it keeps it mapped."""
        segment = self._segments.pop(number, None)
        if segment is not None:
            segment.close()

    def close(self) -> None:
        """Report nothing any more; the other process is gone."""
        self._notify = None
        for number in list(self._segments):
            self.discard(number)

    def _on_gone(self, segment: _Segment, count: int) -> None:
        self.released.append((segment.number, count, segment.spoiled, segment.is_lost))
        if self._notify is not None:
            self._notify()


# A forked copy of this process has our mappings, and nobody hears when it lets go of them.
_borrowers: weakref.WeakSet[Borrower] = weakref.WeakSet()


def _spoil() -> None:
    for borrower in list(_borrowers):
        for segment in list(borrower._segments.values()):
            segment.spoiled = True


def _be_silent() -> None:
    for borrower in list(_borrowers):
        borrower._notify = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_parent=_spoil, after_in_child=_be_silent)
