"""A pickle as those see it who step through it without an unpickler."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aparallel._ground.hop import pause
from aparallel.errors import CorruptFileError, TruncatedFileError

if TYPE_CHECKING:
    from collections.abc import Callable

    from aparallel._ground.stoppable import Stop


class Window:
    """The bytes that are walked: read ahead, and skipped where they do not matter.

    Attributes:
        data: what is at hand.
        at: where in it the walk stands.
        start: how many bytes were before ``data``.
    """

    def __init__(
        self, read: Callable[[int], bytes | memoryview], stop: Stop, skip: Callable[[int], object] | None = None
    ) -> None:
        """*skip* goes past bytes, and past the end without a word; without it they are read."""
        self._read = read
        self._skip = skip
        self._stop = stop
        self.data = b""
        self.at = 0
        self.start = 0

    @property
    def position(self) -> int:
        return self.start + self.at

    def more(self, at: int, needed: int) -> bool:
        """Bring at least *needed* bytes from index *at* on to hand, if there are so many; ``at`` becomes 0."""
        self._stop.check()
        pause()
        self.start += at
        parts = [self.data[at:]]
        missing = needed - len(parts[0])
        while missing > 0 and (part := bytes(self._read(max(missing, _AHEAD)))):
            parts.append(part)
            missing -= len(part)
        self.data, self.at = b"".join(parts), 0
        return missing <= 0

    def take(self, size: int) -> bytes:
        """Return the next *size* bytes. For sizes that are bounded."""
        if self.at + size > len(self.data) and not self.more(self.at, size):
            raise cut()
        self.at += size
        return self.data[self.at - size : self.at]

    def line(self) -> bytes:
        """Return what comes up to the end of the line, and go past that."""
        end = self.data.find(b"\n", self.at)
        while end < 0:
            if len(self.data) - self.at > _LONGEST_LINE:
                raise CorruptFileError("its pickle has a line without end")
            before = len(self.data) - self.at
            if not self.more(self.at, before + 1):
                raise cut()
            end = self.data.find(b"\n")
        line = self.data[self.at : end]
        self.at = end + 1
        return line

    def skip(self, size: int) -> None:
        """Leave out the next *size* bytes."""
        at_hand = len(self.data) - self.at
        if size <= at_hand:
            self.at += size
            return
        self.start += len(self.data)
        self.data, self.at = b"", 0
        size -= at_hand
        if self._skip is not None:
            self._skip(size)
            self.start += size
            return
        while size:
            self._stop.check()
            pause()
            part = self._read(min(size, 1 << 20))
            if not len(part):
                raise cut()
            size -= len(part)
            self.start += len(part)


_AHEAD = 64 << 10
_LONGEST_LINE = 1 << 20


def cut() -> TruncatedFileError:
    return TruncatedFileError("its pickle ends before it is complete")
