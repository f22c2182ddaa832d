"""The worker's stdout and stderr: the user's own descriptors, whole lines at a time."""

from __future__ import annotations

import io
import os
import select
import sys
from _thread import get_ident

TYPE_CHECKING = False  # as in aparallel/__init__.py
if TYPE_CHECKING:
    from typing import Any

# A write of up to this many bytes to a pipe is never mixed with another process's.
PIPE_BUF = select.PIPE_BUF


_MAIN_THREAD = get_ident()

# The streams that may hold an unfinished line back.
unfinished: set[Lines] = set()


class Lines(io.RawIOBase):
    """Writes complete lines at once and holds an unfinished one back until it ends or is flushed.

    Each thread has an unfinished line of its own: ``print`` writes a line in two parts.
    """

    def __init__(self, fd: int, name: str) -> None:
        self.fd = fd
        self.name = name  # which the text stream above has, too
        self.rests: dict[int, bytes] = {}  # by thread; each is taken out and put in at one go

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return os.isatty(self.fd)

    def fileno(self) -> int:
        return self.fd

    def write(self, data: object) -> int:
        block = bytes(data)  # type: ignore[call-overload]
        thread = get_ident()
        text = self.rests.pop(thread, b"") + block
        end = text.rfind(b"\n") + 1 if len(text) < PIPE_BUF or b"\n" in block else len(text)
        # Kept or dropped before it is written: what cannot be written must not be tried for ever.
        if end < len(text):
            self.rests[thread] = text[end:]
            unfinished.add(self)
        if end:
            self._emit(text[:end])
        return len(block)

    def flush(self) -> None:
        """Write this thread's unfinished line; in the main thread, which calls run in, those of all."""
        thread = get_ident()
        for owner in list(self.rests) if thread == _MAIN_THREAD else (thread,):
            if rest := self.rests.pop(owner, b""):
                self._emit(rest)

    def _emit(self, block: bytes) -> None:
        while len(block) > PIPE_BUF:
            cut = block.rfind(b"\n", 0, PIPE_BUF) + 1 or PIPE_BUF
            _write_all(self.fd, block[:cut])
            block = block[cut:]
        _write_all(self.fd, block)


def _write_all(fd: int, block: bytes) -> None:
    while block:
        try:
            block = block[os.write(fd, block) :]
        except BlockingIOError:  # the user made the terminal or pipe non-blocking
            select.select([], [fd], [])


def finish_lines() -> None:
    """Write out unfinished lines: the call that began them has ended."""
    for lines in list(unfinished):
        unfinished.discard(lines)  # first: a thread that writes meanwhile adds it again
        try:
            lines.flush()
        except OSError:
            continue  # the user's stdout is gone: print() has told the call, and the worker lives on


def take_over() -> None:
    """Make ``sys.stdout`` and ``sys.stderr`` write whole lines."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # the descriptor is closed
            continue
        raw = Lines(stream.fileno(), stream.name)
        buffer: Any = raw
        text = io.TextIOWrapper(buffer, encoding=stream.encoding, errors=stream.errors, write_through=True)
        setattr(sys, name, text)
        setattr(sys, f"__{name}__", text)
