"""Which entries were removed lately, so that a miss can be explained: beginnings of keys, in a file for each reason.

Not one for each, because to make a file where many were removed just now takes ext4 longer than to remove ten.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Literal

from aparallel._memory.disk.files import read_file

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aparallel._memory.disk.directory import Directory

_BYTES = 16  # of a key
_LIMIT = 1 << 22  # bytes of the file; then the older half is forgotten


class Removed:
    """Notes and tells which keys were removed for one *reason*, which is also the file's name."""

    def __init__(self, directory: Directory, reason: Literal["evicted", "expired"]) -> None:
        self._directory = directory
        self._path = directory.path(reason)

    def note(self, keys: Iterable[bytes]) -> None:
        """Note keys. What goes wrong costs an explanation and is not told."""
        with contextlib.suppress(OSError):
            with open(self._path, "ab") as file:
                file.write(b"".join(key[:_BYTES] for key in keys))
                size = file.tell()
            if size > _LIMIT:
                with open(self._path, "rb") as file:
                    file.seek(-_LIMIT // 2, os.SEEK_END)
                    newest = file.read()
                self._directory.write(self._path, newest[: len(newest) // _BYTES * _BYTES])

    def has(self, key: bytes) -> bool:
        """Whether *key* was removed lately."""
        with contextlib.suppress(OSError):
            noted = read_file(self._path) or b""
            at = noted.find(key[:_BYTES])
            while at >= 0 and at % _BYTES:  # parts of two others
                at = noted.find(key[:_BYTES], at + 1)
            return at >= 0
        return False
