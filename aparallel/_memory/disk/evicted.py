"""Which entries were evicted lately, so that a miss can be explained: the beginnings of their keys, slot by slot."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from aparallel._memory.disk.files import read_file

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aparallel._memory.disk.directory import Directory

_BYTES = 16  # of a key
_LIMIT = 1 << 16  # bytes of a slot's file; then the older half is forgotten


class Evicted:
    """Notes and tells which keys were evicted."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory

    def note(self, slot: int, keys: Iterable[bytes]) -> None:
        """Note keys of one slot. What goes wrong costs an explanation and is not told."""
        path = self._path(slot)
        with contextlib.suppress(OSError):
            self._directory.make(os.path.dirname(path))
            with open(path, "ab") as file:
                file.write(b"".join(key[:_BYTES] for key in keys))
                size = file.tell()
            if size > _LIMIT:
                with open(path, "rb") as file:
                    file.seek(-_LIMIT // 2, os.SEEK_END)
                    newest = file.read()
                self._directory.write(path, newest[: len(newest) // _BYTES * _BYTES])

    def has(self, key: bytes) -> bool:
        """Whether *key* was evicted lately."""
        with contextlib.suppress(OSError):
            noted = read_file(self._path(key[0])) or b""
            return any(noted[at : at + _BYTES] == key[:_BYTES] for at in range(0, len(noted), _BYTES))
        return False

    def _path(self, slot: int) -> str:
        return self._directory.path("evicted", f"{slot:02x}")
