"""How much a store holds, slot by slot, in one small file that every process reads and writes.

A slot's count is only changed by who holds the slot's lock, with its files. A process that is killed in between
leaves a count that is off by one; who next looks through the slot's files puts it right.
"""

from __future__ import annotations

import os
import struct
from typing import Final

from aparallel._ground.store import Totals

SLOTS: Final = 256

_SLOT = struct.Struct("<qq")
_ALL = struct.Struct(f"<{2 * SLOTS}q")
_FILE_SIZE = SLOTS * _SLOT.size


class Counts:
    """The file of counts at *path*; made when first needed. Every method may raise OSError."""

    def __init__(self, path: str) -> None:
        self._path = path

    def entries(self) -> tuple[int, ...]:
        """Return how many entries each slot has."""
        return _ALL.unpack(self._read())[::2]

    def total(self) -> Totals:
        numbers = _ALL.unpack(self._read())
        return Totals(max(0, sum(numbers[::2])), max(0, sum(numbers[1::2])))

    def _read(self) -> bytes:
        try:
            fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return bytes(_FILE_SIZE)
        try:
            data = os.pread(fd, _FILE_SIZE, 0)
        finally:
            os.close(fd)
        return data.ljust(_FILE_SIZE, b"\0")

    def add(self, slot: int, entries: int, size: int) -> None:
        """Change the count of a slot whose lock is held."""
        self._change(slot, entries, size, anew=False)

    def set(self, slot: int, totals: Totals) -> None:
        """Put right the count of a slot whose lock is held."""
        self._change(slot, totals.entries, totals.bytes, anew=True)

    def _change(self, slot: int, entries: int, size: int, *, anew: bool) -> None:
        offset = slot * _SLOT.size
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o660)
        try:
            data = b"" if anew else os.pread(fd, _SLOT.size, offset)
            before = _SLOT.unpack(data) if len(data) == _SLOT.size else (0, 0)
            os.pwrite(fd, _SLOT.pack(before[0] + entries, before[1] + size), offset)
        finally:
            os.close(fd)
