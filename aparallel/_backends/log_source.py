"""A worker's pipe for log records, this process's end."""

from __future__ import annotations

import contextlib
import os
import select
from typing import TYPE_CHECKING

from aparallel._ground.forks import renew_after_fork

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aparallel._wire.records import Assembler

# A worker that is this many bytes ahead of the handlers waits.
MOST_AHEAD = 8 * 1024 * 1024

READ_BYTES = 64 * 1024

# A worker can be ahead by this much more before the reader comes. The kernel allows a user some 64 MB in all.
PIPE_BYTES = 256 * 1024


class Source:
    """One worker's pipe, our end.

    Invariant: *read* is written by the reader and *handled* by the handling thread alone, so
    neither needs a lock; the difference is how many bytes the worker is ahead.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        os.set_blocking(fd, False)
        renew_after_fork(self)
        # Made with the first record.
        self.assembler: Assembler | None = None
        self.read = 0
        self.handled = 0
        # The reader has stopped reading it, because the worker is too far ahead.
        self.waits = False

    @property
    def is_open(self) -> bool:
        return self.fd >= 0

    def is_far_ahead(self) -> bool:
        return self.read - self.handled >= MOST_AHEAD

    def enlarge(self) -> None:
        """Give the pipe more room, where that can be had: a worker should not wait for threads to be switched."""
        import fcntl  # which Windows lacks

        set_size = getattr(fcntl, "F_SETPIPE_SZ", None)
        if set_size is not None:
            with contextlib.suppress(OSError):
                fcntl.fcntl(self.fd, set_size, PIPE_BYTES)

    def has_more(self) -> bool:
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        return any(event & select.POLLIN for _, event in poll.poll(0))

    def take(self) -> bytes | None:
        """Read once: None if there is nothing now, b"" at the end."""
        try:
            return os.read(self.fd, READ_BYTES)
        except BlockingIOError:
            return None

    def records(self, data: bytes) -> Iterator[bytes]:
        """Yield the records that *data*, read from here, completes."""
        if self.assembler is None:
            from aparallel._wire.records import Assembler

            self.assembler = Assembler()
        return self.assembler.feed(data)

    def close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def after_fork(self) -> None:
        """In a forked copy of this process: an open end there would keep a worker writing to nobody."""
        self.close()
