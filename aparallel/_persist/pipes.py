"""Files that are no regular ones, such as pipes with a name and terminals, opened by their path.

Who opens such a pipe waits for its other end, and who reads or writes it for what that does. What waits in the kernel
cannot be stopped, so here the descriptor does not block, and who waits looks at their stop every now and then.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import stat
import sys
import time
from typing import TYPE_CHECKING, TypeVar

from aparallel._persist.sinks import FileSink

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from aparallel._ground.stoppable import Stop

T = TypeVar("T")

_LOOK_SECONDS = 0.02
_NONBLOCK = getattr(os, "O_NONBLOCK", 0)  # Windows
_BINARY = getattr(os, "O_BINARY", 0)  # Windows

# Elsewhere a pipe that nobody writes to yet looks as one does that has ended, so there its opening waits in the kernel.
_WAITS_FOR_WRITERS = sys.platform == "linux"


@contextlib.contextmanager
def reading_pipe(path: str, stop: Stop) -> Iterator[Callable[[int], bytes]]:
    """Open *path* and give a function that reads up to so many bytes: as many as come at once, none at the end.

    Raises:
        OSError: it cannot be opened.
    """
    stop.may_wait_long()
    fd = os.open(path, os.O_RDONLY | _BINARY | (_NONBLOCK if _WAITS_FOR_WRITERS else 0))
    try:
        if _NONBLOCK:
            os.set_blocking(fd, False)
        yield lambda size: _when_ready(fd, "POLLIN", stop, lambda: os.read(fd, size))
    finally:
        os.close(fd)


@contextlib.contextmanager
def writing_to_pipe(path: str, stop: Stop) -> Iterator[FileSink]:
    """Open *path*, when its other end is there, and give what writes to it.

    Raises:
        OSError: it cannot be opened.
    """
    stop.may_wait_long()
    fd = _opened_to_write(path, stop)
    try:
        sink = _PipeSink(fd, stop)
        yield sink
        sink.flush()
    finally:
        os.close(fd)


def _opened_to_write(path: str, stop: Stop) -> int:
    while True:
        stop.check()
        try:
            return os.open(path, os.O_WRONLY | _BINARY | _NONBLOCK)
        except OSError as error:
            # It says so of a pipe that nobody reads yet, and of a device that is not there.
            if error.errno != errno.ENXIO or not stat.S_ISFIFO(os.stat(path).st_mode):
                raise
        time.sleep(_LOOK_SECONDS)


class _PipeSink(FileSink):
    def _write_some(self, view: memoryview) -> int:
        return _when_ready(self._fd, "POLLOUT", self._stop, lambda: os.write(self._fd, view))


def _when_ready(fd: int, events: str, stop: Stop, do: Callable[[], T]) -> T:
    """Return what *do* does when *fd* is ready for it: *events* are those of ``select.poll``, by name."""
    if sys.platform == "win32":  # where nothing tells
        return do()
    ready = select.poll()
    ready.register(fd, getattr(select, events))
    while True:
        stop.check()
        if ready.poll(_LOOK_SECONDS * 1000):
            with contextlib.suppress(BlockingIOError):  # others read or write there, too
                return do()
