"""What is done to single files. What is not there is nothing: empty, None, or removed already."""

from __future__ import annotations

import contextlib
import os
import stat
import struct
import sys
from typing import Final

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

# Linux's ioctls for the flags of a file, and the flag that says that a folder's subfolders are not related.
_GET_FLAGS: Final = 0x80086601 if struct.calcsize("l") == 8 else 0x80046601
_SET_FLAGS: Final = 0x40086602 if struct.calcsize("l") == 8 else 0x40046602
_TOP_OF_HIERARCHY: Final = 0x00020000
_FLAGS = struct.Struct("i4x")  # an int, whatever the ioctls' numbers say


def read_all(fd: int, size: int) -> bytes:
    """Return the content of an open file that had *size* bytes a moment ago."""
    data = os.read(fd, size + 1)
    if len(data) == size:
        return data
    parts = [data]
    while part := os.read(fd, 1 << 20):
        parts.append(part)
    return b"".join(parts)


def write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def size_of(path: str) -> int | None:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return None


def open_to_read(path: str, flags: int = 0) -> int:
    """Open a file, but not wait for the other end of a pipe that somebody has put there."""
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | flags)


def read_file(path: str) -> bytes | None:
    try:
        fd = open_to_read(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):  # which may have no end
            return None
        return read_all(fd, 1 << 12)  # more than most have
    finally:
        os.close(fd)


def remove(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def names_in(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []


def spread_over_disk(folder: str) -> None:
    """Have the file system put the subfolders of *folder* far from each other, if it is one that can: ext4.

    It does not give out again for minutes what was a file just now, and where thousands were removed, as evictions
    do, each new one close by is looked for past all of them: 400 µs instead of 11.
    """
    if not sys.platform.startswith("linux"):
        return
    with contextlib.suppress(OSError):
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            flags = bytearray(_FLAGS.size)
            fcntl.ioctl(fd, _GET_FLAGS, flags)
            fcntl.ioctl(fd, _SET_FLAGS, _FLAGS.pack(_FLAGS.unpack(flags)[0] | _TOP_OF_HIERARCHY))
        finally:
            os.close(fd)
