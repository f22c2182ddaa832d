"""A segment of shared memory as the process that made it has it: written, lent, free again and, at last, closed."""

from __future__ import annotations

import os
from contextlib import suppress
from time import monotonic

from aparallel._transfer.shared_memory import Mapping
from aparallel._transfer.writing import do_all

TYPE_CHECKING = False  # as in aparallel/__init__.py
if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable

    from aparallel._transfer.shared_memory import Parts
    from aparallel._transfer.writing import Write

# A segment is not used for something much smaller: the rest of it would lie idle.
_WASTE = 2


class Segment:
    """A piece of shared memory.

    It is free when nobody in this process holds it and nobody else has it, and is then written again or closed.

    Attributes:
        number: what other processes know it by.
        parts: its descriptors.
        mapping: where it lies in this process, once it was written again; None before.
        written: bytes, from the start, that have been written once and therefore exist.
        held: a :class:`Hold` on it exists.
        lent: how many references to it were sent to other processes and have not been reported gone.
        spoiled: a process that nobody hears of, a fork of one that had it, may still read it.
        free_since: when it became free last, on time.monotonic's clock.
        pid: of the process that made it. A fork of that has a copy of this object.
    """

    __slots__ = (
        "_note_free",
        "_populated",
        "free_since",
        "held",
        "lent",
        "mapping",
        "number",
        "parts",
        "pid",
        "spoiled",
        "written",
    )

    def __init__(self, number: int, parts: Parts, note_free: Callable[[Segment], object]) -> None:
        self.number = number
        self.parts = parts
        self._note_free = note_free
        self.written = 0
        self.mapping: Mapping | None = None
        # Bytes, from the start, that were written through the mapping.
        self._populated = 0
        self.held = True
        self.lent = 0
        self.spoiled = False
        self.free_since = 0.0
        self.pid = os.getpid()

    @property
    def size(self) -> int:
        return self.parts.size

    @property
    def is_free(self) -> bool:
        return not self.held and self.lent == 0

    def let_go(self) -> None:
        """Nobody holds it any more. Called by a finaliser, in any thread."""
        self.held = False
        self._note_if_free()

    def lend(self, references: int) -> None:
        self.lent += references

    def take_back(self, references: int, spoiled: bool) -> None:
        """So many references to it are gone elsewhere."""
        self.lent -= references
        self.spoiled |= spoiled
        self._note_if_free()

    def _note_if_free(self) -> None:
        if self.is_free:
            self.free_since = monotonic()
            self._note_free(self)

    def write(self, writes: deque[Write], end: int, *, with_help: bool) -> bool:
        """Do *writes*, the last of which ends at *end*; return whether their hashers were fed.

        Raises:
            OSError: there is no room. Any bytes may have been written, and none count as such.
        """
        mapping = self._mapped() if end <= self.written else None
        if mapping is None:
            do_all(lambda write, give_way: write.into(self.parts, give_way), writes, with_help=with_help)
            self.written = max(self.written, end)
            return True
        is_new = end > self._populated
        do_all(lambda write, give_way: write.onto(mapping, give_way, is_new=is_new), writes, with_help=with_help)
        self._populated = max(self._populated, end)
        return False

    def _mapped(self) -> Mapping | None:
        if self.mapping is None:
            with suppress(OSError):  # pwrite will do
                self.mapping = Mapping(self.parts, "r+")
        return self.mapping


class Hold:
    """Keeps a segment, with what is written in it, from being used again. Let go of when it is dropped."""

    __slots__ = ("__weakref__", "segment")

    def __init__(self, segment: Segment) -> None:
        self.segment = segment

    def __del__(self) -> None:
        self.segment.let_go()


class Closing:
    """What is left to do of a segment that is closed.

    *unused*: nobody reads it, though others may have it mapped.
    """

    __slots__ = ("fds", "is_emptied", "mapping")

    def __init__(self, segment: Segment, unused: bool) -> None:
        self.fds = segment.parts.give_up()
        self.mapping, segment.mapping = segment.mapping, None
        # Otherwise its memory would stay until the last who mapped it has heard of its end, and that may be busy for
        # long. But a fork, of which nobody hears, may still read it; and in a fork of this process, which closes what
        # it got from it, it is not ours.
        self.is_emptied = unused and not segment.spoiled and segment.pid == os.getpid()


def close_all(segments: list[Closing]) -> None:
    """Free memory, some 0.2 ms a megabyte."""
    while segments:
        closing = segments.pop()
        closing.mapping = None
        for fd in closing.fds:
            if closing.is_emptied:
                with suppress(OSError):
                    os.ftruncate(fd, 0)
            os.close(fd)


def fits(found: int, size: int) -> bool:
    """Whether a segment of *found* bytes is large enough for *size*, and not much larger."""
    return size <= found <= capacity_for(size) * _WASTE


def capacity_for(size: int) -> int:
    """Round up to one of eight sizes per power of two, so that a segment fits what is a little larger, too."""
    step = max(1 << max(size.bit_length() - 4, 0), 4096)
    return -(-size // step) * step
