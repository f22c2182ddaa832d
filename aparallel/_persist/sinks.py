"""What a container is written to: a descriptor, or a function that takes chunks."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any

from aparallel._ground.hop import pause

if TYPE_CHECKING:
    from collections.abc import Callable

    from aparallel._ground.stoppable import Stop

# The disk is told when so much is written.
_BEGIN = 1 << 20
# Small pieces are collected up to this size.
_COLLECT = 64 << 10
# A function is given so much at a time.
_GIVE = 1 << 20


class FileSink:
    """Writes to a descriptor. What is small is collected; what is large is written from where it lies.

    Args:
        reserve: have blocks for what is expected allocated before it is written.
        early: have the disk begin with what is written while more is, as the file will be synced.
    """

    def __init__(self, fd: int, stop: Stop, *, reserve: bool = False, early: bool = False) -> None:
        self._fd = fd
        self._stop = stop
        self._collected = bytearray()
        self._reserve = reserve
        self._early = early
        self._untold = 0  # bytes written that the disk was not told of

    def write(self, data: bytes | memoryview) -> None:
        size = len(data)
        if size + len(self._collected) <= _COLLECT:
            self._stop.check()
            self._collected += data
            return
        self.flush()
        if size <= _COLLECT:
            self._collected += data
        else:
            self._write_out(memoryview(data))

    def flush(self) -> None:
        if self._collected:
            collected, self._collected = self._collected, bytearray()
            self._write_out(memoryview(collected))

    def expect(self, size: int) -> None:
        """Take note that so many bytes follow."""
        if self._reserve and size > _COLLECT:
            self.flush()
            self._reserve_blocks(size)

    def _write_out(self, view: memoryview) -> None:
        while len(view):
            self._stop.check()
            written = self._write_some(view)
            view = view[written:]
            self._untold += written
            if self._early and self._untold >= _BEGIN:
                self._begin_sync(self._untold)
                self._untold = 0

    def _write_some(self, view: memoryview) -> int:
        return os.write(self._fd, view)

    def _begin_sync(self, size: int) -> None:
        # Linux answers this advice by writing out what is dirty, and does not wait. It drops only what is written
        # out already, which this is not, so the file stays in the cache. 100 MB, synced, take 82 ms and not 124.
        try:
            end = os.lseek(self._fd, 0, os.SEEK_CUR)
            os.posix_fadvise(self._fd, end - size, size, os.POSIX_FADV_DONTNEED)
        except OSError:
            self._early = False  # this file system does not do it

    def _reserve_blocks(self, size: int) -> None:
        # ext4 answers a rename over a file by allocating at once whatever of the new one is not allocated yet: 50 ms
        # for 100 MB, more than to write it. What was reserved is allocated, and written in slices as fast as in one
        # piece.
        try:
            os.posix_fallocate(self._fd, os.lseek(self._fd, 0, os.SEEK_CUR), size)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise
            self._reserve = False  # this file system does not do it


class CallableSink:
    """Hands what is written to a function, in chunks of 1 MiB and a last one.

    Args:
        keeps: it may keep what it is given; else it gets some from where that lies.
    """

    def __init__(self, give: Callable[[Any], Any], stop: Stop, *, keeps: bool = True) -> None:
        self._give = give
        self._stop = stop
        self._keeps = keeps
        self._collected = bytearray()

    def write(self, data: bytes | memoryview) -> None:
        self._stop.check()
        view = memoryview(data)
        if self._collected:
            room = _GIVE - len(self._collected)
            self._collected += view[:room]
            view = view[room:]
            if len(self._collected) == _GIVE:
                self.flush()
        while len(view) >= _GIVE:
            self._stop.check()
            self._give(bytes(view[:_GIVE]) if self._keeps else view[:_GIVE])
            pause()
            view = view[_GIVE:]
        self._collected += view

    def expect(self, size: int) -> None:
        pass

    def flush(self) -> None:
        self._stop.check()
        if self._collected:
            collected, self._collected = self._collected, bytearray()
            self._give(bytes(collected))
