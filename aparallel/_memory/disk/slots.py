"""The entries of a directory, slot by slot: each slot has a lock, and a count of what it holds.

The counts are in one small file that every process reads and writes. A slot's count is only changed by who holds the
slot's lock, with its files. A process that is killed in between leaves a count that is off by one; who next looks
through the slot's files puts it right.
"""

from __future__ import annotations

import contextlib
import os
import struct
from typing import TYPE_CHECKING, Final

from aparallel._ground.store import Listed, Place, Totals
from aparallel._memory.disk.directory import SLOTS
from aparallel._memory.disk.files import names_in, read_file, remove, size_of
from aparallel._memory.disk.locks import acquire_soon, open_locks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from aparallel._memory.disk.directory import Directory

_KEY_BYTES: Final = 32

# Numbers of locks. Keys use those below 2**62.
_SLOT_LOCKS = 1 << 62
_EVICTION_LOCK = _SLOT_LOCKS + SLOTS

_PATIENCE = 2.0  # seconds; beyond, the count stays as it is until someone looks through the slot
_TURN_PATIENCE = 10.0  # seconds; beyond, an entry is published without room for it

_COUNT = struct.Struct("<qq")  # entries, bytes
_COUNTS = struct.Struct(f"<{2 * SLOTS}q")


class Slots:
    """Changes what is in a directory's slots, and keeps the counts with it.

    Attributes:
        counts: how much each slot holds.
        locks: of keys, by :func:`lock_of_key`, and those of the slots.
    """

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self.counts = Counts(directory.path("counts"))
        self.locks = open_locks(directory.path("locks"))

    # Single entries

    def publish(self, place: Place, temporary: str, size: int) -> None:
        """Move a file of *size* bytes into its place, and count it."""
        path = self._directory.entry_path(place)
        slot = place.key[0]
        with self._lock_of(slot) as is_ours:
            before = size_of(path)
            self._directory.move(temporary, path)
            if is_ours:
                self.counts.add(slot, int(before is None), size - (before or 0))

    def remove(self, place: Place) -> bool:
        """Remove an entry, and return whether there was one."""
        with self._lock_of(place.key[0]) as is_ours:
            return bool(self._remove(place.key[0], [place], counted=is_ours))

    # Many

    def numbers(self) -> list[int]:
        """The slots that there are."""
        names = set(names_in(self._directory.path("entries")))  # others may have put something there, too
        return [slot for slot in range(SLOTS) if f"{slot:02x}" in names]

    def scan(self, slot: int, function: str | None = None) -> Iterator[Listed]:
        """Yield the entries of a slot, or those of one function."""
        folder = self._folder(slot)
        for name in [function] if function is not None else names_in(folder):
            yield from scan_folder(os.path.join(folder, name), name)

    def look_through(self, slot: int) -> list[Listed]:
        """Return the entries of a slot, and put its count right."""
        with self._lock_of(slot) as is_ours:
            return self._look_through(slot, counted=is_ours)

    def remove_all(self, slot: int, chosen: Iterable[Listed]) -> int:
        """Remove entries of a slot that were seen there. Return how many still were."""
        with self._lock_of(slot) as is_ours:
            return self._remove(slot, [one.place for one in chosen], counted=is_ours)

    def remove_if(self, slot: int, is_unwanted: Callable[[Listed], bool], *, with_folders: bool = False) -> int:
        """Remove the entries of a slot that are unwanted, and folders that this empties. Return how many there were."""
        with self._lock_of(slot) as is_ours:
            chosen = [one for one in self._look_through(slot, counted=is_ours) if is_unwanted(one)]
            self._remove(slot, [one.place for one in chosen], counted=is_ours)
            for name in {one.place.function for one in chosen} if with_folders else ():
                with contextlib.suppress(OSError):  # it is not empty
                    os.rmdir(os.path.join(self._folder(slot), name))
            return len(chosen)

    def _look_through(self, slot: int, *, counted: bool) -> list[Listed]:
        found = list(self.scan(slot))
        if counted:
            with contextlib.suppress(OSError):
                self.counts.set(slot, Totals(len(found), sum(one.size for one in found)))
        return found

    def _remove(self, slot: int, places: Iterable[Place], *, counted: bool) -> int:
        """Remove entries of a slot, as far as they are there, and return how many were. *counted*: its lock is held."""
        sizes: list[int] = []
        for path in map(self._directory.entry_path, places):
            size = size_of(path)
            if size is not None:
                remove(path)
                sizes.append(size)
        if sizes and counted:
            with contextlib.suppress(OSError):
                self.counts.add(slot, -len(sizes), -sum(sizes))
        return len(sizes)

    def _folder(self, slot: int) -> str:
        return self._directory.path("entries", f"{slot:02x}")

    # Locks

    def turn(self) -> contextlib.AbstractContextManager[bool]:
        """Hold the lock of those who make room; gives whether it is ours."""
        return self._locked(_EVICTION_LOCK, _TURN_PATIENCE)

    def _lock_of(self, slot: int) -> contextlib.AbstractContextManager[bool]:
        """Hold the lock of a slot; gives whether it is ours. Work that must be done is done without it too."""
        return self._locked(_SLOT_LOCKS + slot, _PATIENCE)

    @contextlib.contextmanager
    def _locked(self, number: int, patience: float) -> Iterator[bool]:
        """Hold a lock that is never held for long; gives whether it is ours. Where there are no locks, it is."""
        try:
            is_held = is_ours = acquire_soon(self.locks, number, patience)
        except OSError:
            is_held, is_ours = False, True
        try:
            yield is_ours
        finally:
            if is_held:
                with contextlib.suppress(OSError):
                    self.locks.release(number)


def lock_of_key(key: bytes) -> int:
    """The number of a key's lock."""
    return int.from_bytes(key[:8], "big") >> 2


def scan_folder(folder: str, function: str) -> list[Listed]:
    """Return the entries of one function in one slot. What else lies there is somebody else's."""
    found: list[Listed] = []
    try:
        with os.scandir(folder) as files:
            for file in files:
                with contextlib.suppress(ValueError, FileNotFoundError):
                    key = bytes.fromhex(file.name)
                    if len(key) == _KEY_BYTES:
                        status = file.stat(follow_symlinks=False)
                        found.append(Listed(Place(function, key), status.st_size, status.st_mtime, status.st_atime))
    except (FileNotFoundError, NotADirectoryError):  # nothing was stored there, or somebody removed it
        pass
    return found


class Counts:
    """The file of counts at *path*; made when first needed. Every method may raise OSError."""

    def __init__(self, path: str) -> None:
        self._path = path

    def entries(self) -> tuple[int, ...]:
        """Return how many entries each slot has."""
        return self._read()[::2]

    def total(self) -> Totals:
        numbers = self._read()
        return Totals(max(0, sum(numbers[::2])), max(0, sum(numbers[1::2])))

    def _read(self) -> tuple[int, ...]:
        data = read_file(self._path) or b""
        return _COUNTS.unpack(data[: _COUNTS.size].ljust(_COUNTS.size, b"\0"))

    def add(self, slot: int, entries: int, size: int) -> None:
        """Change the count of a slot whose lock is held."""
        self._change(slot, entries, size, anew=False)

    def set(self, slot: int, totals: Totals) -> None:
        """Put right the count of a slot whose lock is held."""
        self._change(slot, totals.entries, totals.bytes, anew=True)

    def _change(self, slot: int, entries: int, size: int, *, anew: bool) -> None:
        offset = slot * _COUNT.size
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o660)
        try:
            data = b"" if anew else os.pread(fd, _COUNT.size, offset)
            before = _COUNT.unpack(data) if len(data) == _COUNT.size else (0, 0)
            os.pwrite(fd, _COUNT.pack(before[0] + entries, before[1] + size), offset)
        finally:
            os.close(fd)
