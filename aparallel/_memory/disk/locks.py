"""Locks between processes, one per key, that die with whoever holds them.

On Linux each is one byte of one file, locked with an open file description lock: nothing remains of it, and the
kernel drops it when its process ends, however it ends. Where there are none (macOS) each is a file of its own under
flock, removed by its holder. Nobody waits inside the kernel: a lock is tried, and tried again later.

Within a process the locks exclude each other too, because each is held once only.
"""

from __future__ import annotations

import contextlib
import os
import struct
import threading
import time
from typing import Final, Protocol

from aparallel._ground.forks import renew_after_fork

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

HAS_BYTE_LOCKS: Final = hasattr(fcntl, "F_OFD_SETLK")

_FLOCK = struct.Struct("hhqqi0q")  # struct flock: type, whence, start, length, pid


class Locks(Protocol):
    """Non-blocking locks by number. Numbers are from 0 to 2**63 - 1."""

    def try_acquire(self, number: int) -> bool:
        """Take the lock, and return whether that could be done. Raises OSError where locks do not work."""

    def release(self, number: int) -> None:
        """Give it back. It must be held."""


def open_locks(path: str) -> Locks:
    """Return the locks of the file, or folder, at *path*. It is made when the first one is taken."""
    return ByteLocks(path) if HAS_BYTE_LOCKS else FileLocks(f"{path}.d")


def acquire_soon(locks: Locks, number: int, seconds: float) -> bool:
    """Take a lock that is never held for long, waiting in this thread at most *seconds*."""
    deadline = time.monotonic() + seconds
    pause = 0.0001
    while not locks.try_acquire(number):
        if time.monotonic() > deadline:
            return False
        time.sleep(pause)
        pause = min(2 * pause, 0.005)
    return True


class ByteLocks:
    """Each lock is the byte of that number in one file, which is open while any is held."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._mutex = threading.Lock()
        self._fd = -1
        self._held: set[int] = set()
        renew_after_fork(self)

    def try_acquire(self, number: int) -> bool:
        with self._mutex:
            if number in self._held:
                return False
            if self._fd < 0:
                self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o660)
            try:
                fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, number, 1, 0))
                self._held.add(number)
                return True
            except (BlockingIOError, PermissionError):
                return False
            finally:
                self._close_if_unused()

    def release(self, number: int) -> None:
        with self._mutex:
            if number not in self._held:  # taken by the parent, before a fork
                return
            self._held.discard(number)
            if self._held:
                fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, number, 1, 0))
            self._close_if_unused()

    def after_fork(self) -> None:
        """Let go of the parent's locks, which the child's descriptors would keep alive beyond its end."""
        self._mutex = threading.Lock()
        self._held.clear()
        self._close_if_unused()

    def _close_if_unused(self) -> None:
        if not self._held and self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)


class FileLocks:
    """Each lock is a file of that number in one folder. Its holder removes it."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._mutex = threading.Lock()
        self._held: dict[int, int] = {}
        renew_after_fork(self)

    def try_acquire(self, number: int) -> bool:
        path = self._path_of(number)
        with self._mutex:
            if number in self._held:
                return False
            while True:
                os.makedirs(self._folder, 0o700, exist_ok=True)
                fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o660)
                try:
                    with contextlib.suppress(PermissionError):  # another member's of the group that shares the folder
                        os.fchmod(fd, 0o660)  # whatever the umask says
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if _is_at(fd, path):
                        self._held[number] = fd
                        return True
                except BlockingIOError:
                    return False
                finally:
                    if number not in self._held:  # perhaps its holder removed the file between our two steps
                        os.close(fd)

    def release(self, number: int) -> None:
        with self._mutex:
            fd = self._held.pop(number, None)
            if fd is not None:
                with contextlib.suppress(OSError):
                    os.unlink(self._path_of(number))
                os.close(fd)

    def after_fork(self) -> None:
        """Let go of the parent's locks, which the child's descriptors would keep alive beyond its end."""
        self._mutex = threading.Lock()
        held, self._held = self._held, {}
        for fd in held.values():
            os.close(fd)

    def _path_of(self, number: int) -> str:
        return os.path.join(self._folder, f"{number:x}")


def _is_at(fd: int, path: str) -> bool:
    try:
        there = os.stat(path)
    except FileNotFoundError:
        return False
    return os.path.samestat(there, os.fstat(fd))
