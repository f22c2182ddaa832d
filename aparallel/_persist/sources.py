"""Where a container or another file is read from: a descriptor, memory, or a function that gives chunks."""

from __future__ import annotations

import inspect
import os
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from aparallel._ground.hop import pause
from aparallel.errors import TruncatedFileError

if TYPE_CHECKING:
    from collections.abc import Callable

    from aparallel._ground.stoppable import Stop


# What a source says that it holds is believed up to this size if its own is not known.
_BELIEVED = 64 << 20
# How far files are read ahead, and those of which only some places are read.
_AHEAD = 64 << 10
_AHEAD_IN_MAPPED = 4 << 10


class Digest(Protocol):
    def update(self, data: Any, /) -> object: ...


class Source(ABC):
    """Read from front to back.

    Attributes:
        position: bytes read so far.
        size: bytes that there are, or None if nobody knows.
        signature: is given all that is read, if it is not None.
        reads_ahead: more may be read than is needed: nothing follows, or what is not used can be given back.
        reads_anywhere: ``read_at`` can be used, by several threads at a time.
    """

    reads_ahead = True
    reads_anywhere = False

    def __init__(self, size: int | None, stop: Stop) -> None:
        self.position = 0
        self.size = size
        self.signature: Digest | None = None
        self._stop = stop

    @abstractmethod
    def _read(self, size: int) -> bytes | memoryview:
        """Return up to *size* bytes, none only at the end."""

    def _read_into(self, view: memoryview) -> int:
        """Read up to so many bytes to where they belong; 0 only at the end."""
        data = self._read(len(view))
        view[: len(data)] = data
        return len(data)

    def read_up_to(self, size: int) -> bytes | memoryview:
        """Return *size* bytes, fewer only at the end."""
        self._stop.check()
        data = self._read(size)
        if 0 < len(data) < size:
            parts = [data]
            missing = size - len(data)
            while missing and (data := self._read(missing)):
                parts.append(data)
                missing -= len(data)
            data = b"".join(parts)
        self.position += len(data)
        if self.signature is not None:
            self.signature.update(data)
        return data

    def read_some(self, size: int) -> bytes | memoryview:
        """Return up to *size* bytes, as many as come at once; none only at the end."""
        self._stop.check()
        data = self._read(size)
        self.position += len(data)
        return data

    def give_back(self, size: int) -> None:
        """Take back that the last *size* bytes were read: somebody else may want them."""
        self.position -= size

    @abstractmethod
    def peek(self, size: int) -> bytes:
        """Return the next *size* bytes, fewer only at the end, and leave them to be read."""

    def skip(self, size: int) -> None:
        """Leave out *size* bytes, or what there is."""
        while size and (data := self.read_some(min(size, 1 << 20))):
            size -= len(data)
            pause()

    def read(self, size: int) -> bytes | memoryview:
        """Return exactly *size* bytes. For sizes that the format bounds.

        Raises:
            TruncatedFileError: there are fewer.
        """
        self.demand(size)
        data = self.read_up_to(size)
        if len(data) < size:
            raise self._truncated()
        return data

    def read_into(self, view: memoryview) -> None:
        """Fill *view*.

        Raises:
            TruncatedFileError: there are fewer bytes.
        """
        filled = 0
        while filled < len(view):
            self._stop.check()
            count = self._read_into(view[filled:])
            if count == 0:
                raise self._truncated()
            filled += count
        self.position += filled
        if self.signature is not None:
            self.signature.update(view)

    def read_at(self, view: memoryview, position: int) -> int:
        """Read what is at *position*, up to so many bytes and at least one, without moving. Any thread may.

        Raises:
            TruncatedFileError: it ends before.
            Stopped: the stop was set.
        """
        self._stop.check()
        count = self._read_at(view, position)
        if count == 0:
            raise self._truncated()
        return count

    def _read_at(self, view: memoryview, position: int) -> int:
        raise NotImplementedError

    def go_past(self, data: memoryview) -> None:
        """Move behind *data*, which ``read_at`` has read from where this stands."""
        self.skip(len(data))
        if self.signature is not None:
            self.signature.update(data)

    def demand(self, size: int) -> None:
        """Make sure, before memory is taken for them, that so many bytes can follow.

        Raises:
            TruncatedFileError: the source is known to end before.
        """
        if self.size is not None and size > self.size - self.position:
            raise self._truncated()

    def believes(self, size: int) -> bool:
        """Whether memory for so many bytes may be taken before they come: from a stream, a large size may be a lie."""
        return self.size is not None or size <= _BELIEVED

    def _truncated(self) -> TruncatedFileError:
        return TruncatedFileError(
            f"it ends after {self.position if self.size is None else self.size:,} bytes, within a record"
        )

    def at_end(self) -> bool:
        """Whether nothing follows. May read."""
        if self.size is not None:
            return self.position >= self.size
        return not self.read_up_to(1)


class FileSource(Source):
    """A regular file, through a descriptor at its beginning that nobody else moves. It is read ahead in small steps.

    Args:
        size: bytes that are ours, from the file's beginning; None for all of them.
        is_mapped: little of it is read.
    """

    reads_anywhere = hasattr(os, "preadv")
    size: int

    def __init__(self, fd: int, stop: Stop, size: int | None = None, *, is_mapped: bool = False) -> None:
        self.fd = fd
        self._ahead = _AHEAD_IN_MAPPED if is_mapped else _AHEAD
        self._buffer = memoryview(b"")
        super().__init__(os.fstat(fd).st_size if size is None else size, stop)

    def _read(self, size: int) -> bytes | memoryview:
        if not len(self._buffer):
            if size >= self._ahead:
                return os.read(self.fd, size)
            self._buffer = memoryview(os.read(self.fd, self._ahead))
        data, self._buffer = self._buffer[:size], self._buffer[size:]
        return data

    def _read_into(self, view: memoryview) -> int:
        if len(self._buffer) or not hasattr(os, "readv"):
            return super()._read_into(view)
        return os.readv(self.fd, [view])

    def _read_at(self, view: memoryview, position: int) -> int:
        return os.preadv(self.fd, [view], position)

    def peek(self, size: int) -> bytes:
        if len(self._buffer) < size:
            self._buffer = memoryview(bytes(self._buffer) + os.read(self.fd, self._ahead))
        return bytes(self._buffer[:size])

    def move_to(self, position: int) -> None:
        """Have what is at *position* come next."""
        if position != self.position:
            os.lseek(self.fd, position, os.SEEK_SET)
            self._buffer = memoryview(b"")
            self.position = position

    def skip(self, size: int) -> None:
        at_hand = min(size, len(self._buffer))
        self._buffer = self._buffer[at_hand:]
        # What a file says of sizes may be more than the system can count.
        os.lseek(self.fd, min(size - at_hand, self.size + 1), os.SEEK_CUR)
        self.position += size


class MemorySource(Source):
    """Bytes that are in memory already. What is read is not copied."""

    reads_anywhere = True

    def __init__(self, data: memoryview, stop: Stop) -> None:
        self._data = data
        self._at = 0
        super().__init__(len(data), stop)

    def _read(self, size: int) -> memoryview:
        data = self._data[self._at : self._at + size]
        self._at += len(data)
        return data

    def _read_into(self, view: memoryview) -> int:
        count = self._read_at(view, self._at)
        self._at += count
        return count

    def _read_at(self, view: memoryview, position: int) -> int:
        data = self._data[position : position + len(view)]
        # NumPy copies without the GIL, which the loop may be waiting for; a memoryview does not.
        np.copyto(np.frombuffer(view[: len(data)], np.uint8), np.frombuffer(data, np.uint8))
        return len(data)

    def skip(self, size: int) -> None:
        self._at += size
        self.position += size

    def peek(self, size: int) -> bytes:
        return bytes(self._data[self._at : self._at + size])


class StreamSource(Source):
    """A function that returns some bytes, about as many as it is asked for, or none at the end.

    Args:
        exact: others may follow that are not ours, so none must be taken that are not needed.
        goes_back: the function, asked for fewer than none, goes back by so many.
    """

    def __init__(self, read: Callable[[int], Any], stop: Stop, *, exact: bool, goes_back: bool = False) -> None:
        super().__init__(None, stop)
        self._ask = read
        self._exact = exact
        self._goes_back = goes_back
        self.reads_ahead = goes_back or not exact
        self._buffer = memoryview(b"")

    _AHEAD = 256 << 10
    _AT_ONCE = 1 << 20

    def _read(self, size: int) -> memoryview:
        if not len(self._buffer):
            self._buffer = self._more(size)
        data, self._buffer = self._buffer[:size], self._buffer[size:]
        return data

    def peek(self, size: int) -> bytes:
        while len(self._buffer) < size and len(more := self._more(size - len(self._buffer))):
            self._buffer = memoryview(bytes(self._buffer) + bytes(more))
        return bytes(self._buffer[:size])

    def give_back(self, size: int) -> None:
        super().give_back(size)
        unused = size + len(self._buffer)
        if self._goes_back and unused:
            self._ask(-unused)
            self._buffer = memoryview(b"")

    def _more(self, size: int) -> memoryview:
        # Not all at once: what a hostile file says that it holds is believed as far as it comes.
        wanted = size if self._exact else max(size, self._AHEAD)
        data = self._ask(min(wanted, self._AT_ONCE))
        if data is None:
            raise BlockingIOError("The source has no data now. Give one that waits until it has.")
        if isinstance(data, str):
            raise TypeError("The source gives text. Open it in binary mode.")
        try:
            return memoryview(data).cast("B")
        except TypeError:
            if inspect.iscoroutine(data):
                data.close()
            if inspect.isawaitable(data):
                raise TypeError(
                    "The source's read() is no coroutine function and returns an awaitable. Make it an async def."
                ) from None
            raise TypeError(f"The source gives {type(data).__name__} where bytes belong.") from None
