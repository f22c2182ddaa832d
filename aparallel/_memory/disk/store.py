"""The store on disk, for all processes that use the same directory. What is where: see the package's docstring."""

from __future__ import annotations

import contextlib
import io
import os
import stat
import sys
from typing import TYPE_CHECKING, ClassVar, Final

from aparallel._ground.store import Limits, Listed, Place, Record, Store, Totals
from aparallel._memory.disk.bounds import Bounds
from aparallel._memory.disk.directory import Directory
from aparallel._memory.disk.files import names_in, open_to_read, read_all, read_file, write_all
from aparallel._memory.disk.recency import Recency
from aparallel._memory.disk.slots import Slots, lock_of_key
from aparallel.errors import UnsupportedPlatformError

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator

# Reading is no use of an entry: who lists a cache would make everything in it recently used.
_UNNOTICED: Final = getattr(os, "O_NOATIME", 0)

_READ_WHOLE: Final = 1 << 20
"""Bytes up to which an entry is read at once; larger ones are given as open files."""


class DiskStore(Store):
    """Keeps entries in the directory *location*.

    Args:
        is_signed: entries are signed, so it does not matter who may write to the directory.
        trust_group: the directory's group may write to it.
        limits: what it may hold.

    Beyond what every store does, its methods raise UntrustedDirectoryError if the directory is not to be believed.

    Raises:
        UnsupportedPlatformError: this system has no file locks.
    """

    keeps_files: ClassVar[bool] = True

    def __init__(
        self, location: str, *, is_signed: bool = False, trust_group: bool = False, limits: Limits | None = None
    ) -> None:
        if sys.platform == "win32":
            raise UnsupportedPlatformError(
                "Memory needs the file locks of Linux or macOS, and this is Windows. "
                "Use Memory(None), which caches nothing, or a store of your own."
            )
        self.location = location
        self.limits = limits or Limits()
        self.directory = Directory(location, is_signed=is_signed, trust_group=trust_group)
        self.slots = Slots(self.directory)
        self._recency = Recency(self.directory)
        self._bounds = Bounds(self.directory, self.slots, self._recency, self.limits)

    # Entries

    def get(self, place: Place, *, as_file: bool = False) -> Record | None:
        if not self.directory.is_there():
            return None
        path = self.directory.entry_path(place)
        try:
            fd = _open_unnoticed(path)
        except FileNotFoundError:
            return None
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):  # somebody's, where only the seal says what is ours
                return None
            self.directory.check_again(status)
            if not as_file and status.st_size <= _READ_WHOLE:
                return Record(read_all(fd, status.st_size), _version_of(status))
            file = io.FileIO(path, opener=lambda *_: fd)  # by its path, which maps of it remember
            fd = -1
            return Record(file, _version_of(status))
        finally:
            if fd >= 0:
                os.close(fd)

    def version(self, place: Place) -> Hashable | None:
        try:
            return _version_of(os.stat(self.directory.entry_path(place)))
        except FileNotFoundError:
            return None

    def touch(self, place: Place) -> None:
        self._recency.touch(place)

    def put(self, place: Place, content: bytes, *, lifetime: float | None = None) -> Hashable:
        return self._put(place, lambda fd: write_all(fd, content), lifetime)

    def put_file(self, place: Place, write: Callable[[io.FileIO], None], *, lifetime: float | None = None) -> Hashable:
        def write_to(fd: int) -> None:
            with io.FileIO(fd, "r+b", closefd=False) as file:
                write(file)

        return self._put(place, write_to, lifetime)

    def _put(self, place: Place, write: Callable[[int], None], lifetime: float | None) -> Hashable:
        with self.directory.aside() as (temporary, fd):
            write(fd)
            status = os.fstat(fd)
            self._bounds.check(status.st_size)
            with self._bounds.room_for(status.st_size):
                self.slots.publish(place, temporary, status.st_size)
        if lifetime is not None:
            self._bounds.sweep_soon()
        return _version_of(status)

    def remove(self, place: Place) -> bool:
        return self.directory.is_there() and self.slots.remove(place)

    def clear(self, function: str | None = None) -> int:
        self.directory.is_there()  # which raises if it is not to be believed; of one that is missing there are no slots

        def is_unwanted(one: Listed) -> bool:
            return function is None or one.place.function == function

        return sum([self.slots.remove_if(slot, is_unwanted, with_folders=True) for slot in self.slots.numbers()])

    def entries(self, function: str | None = None) -> Iterator[Listed]:
        if not self.directory.is_there():
            return
        for slot in self.slots.numbers():
            yield from self.slots.scan(slot, function)

    def totals(self) -> Totals:
        self.directory.is_there()  # as in clear()
        return self.slots.counts.total()

    # Bounds

    def reduce(self, limits: Limits, *, unused_for: float | None = None) -> int:
        return self._bounds.reduce(limits, unused_for) if self.directory.is_there() else 0

    def was_evicted(self, place: Place) -> bool:
        return self._bounds.evicted.has(place.key)

    def was_expired(self, place: Place) -> bool:
        return self._bounds.expired.has(place.key)

    # Notes

    def read_note(self, name: str) -> bytes | None:
        return read_file(self.directory.path(name)) if self.directory.is_there() else None

    def write_note(self, name: str, content: bytes) -> None:
        self.directory.write(self.directory.path(name), content)

    def notes(self, folder: str) -> list[str]:
        """The names of the notes that begin with *folder* and a slash."""
        return [f"{folder}/{name}" for name in names_in(self.directory.path(folder))]

    def note_removal(self, place: Place | None) -> None:
        if self.directory.is_there():  # else nobody computes anything for it
            super().note_removal(place)

    # Locks

    def try_lock(self, key: bytes) -> bool:
        try:
            if self.directory.is_there():
                return self.slots.locks.try_acquire(lock_of_key(key))
        except FileNotFoundError:  # somebody removed it
            pass
        self.directory.prepare()
        return self.slots.locks.try_acquire(lock_of_key(key))

    def unlock(self, key: bytes) -> None:
        with contextlib.suppress(OSError):
            self.slots.locks.release(lock_of_key(key))


def _version_of(status: os.stat_result) -> Hashable:
    """What is different of a file that was replaced."""
    return status.st_ino, status.st_mtime_ns, status.st_size


def _open_unnoticed(path: str) -> int:
    """Open a file for reading, without a change of its access time if it is ours."""
    try:
        return open_to_read(path, _UNNOTICED)
    except PermissionError:
        return open_to_read(path)
