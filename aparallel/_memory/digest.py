"""BLAKE3, with as many threads as the data is worth and the process can bear."""

from __future__ import annotations

import os
from typing import Any

from blake3 import blake3

# Below this, starting threads costs more than they save.
_MANY_THREADS_FROM = 1 << 20

# Hashed at a time, about half a millisecond's work for all cores: between two of them the loop gets one. The lag's p99
# is 1 ms then, and 3.5 with a hundred megabytes at once.
_SLICE = 2 << 20

_AUTO: int = blake3.AUTO

# blake3's threads do not survive a fork, and the pool that a child inherits waits for them for ever.
# So in a forked child, and only there, this is 1.
_most_threads = _AUTO


def _after_fork_in_child() -> None:
    global _most_threads
    _most_threads = 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def digest(data: Any) -> bytes:
    """Return the 32 bytes of BLAKE3 of anything with a contiguous buffer."""
    if len(data) < _MANY_THREADS_FROM:
        result: bytes = blake3(data).digest()
        return result
    hasher = Hasher()
    hasher.update(data)
    return hasher.digest()


def keyed_digest(key: bytes, *parts: Any) -> bytes:
    """Return the 32 bytes of BLAKE3's keyed mode (a MAC): *key* has 32 bytes."""
    hasher = blake3(key=key, max_threads=_most_threads)
    for part in parts:
        hasher.update(part)
    result: bytes = hasher.digest()
    return result


class Hasher:
    """BLAKE3 of data that comes in pieces."""

    __slots__ = ("_hasher",)

    def __init__(self) -> None:
        self._hasher = blake3(max_threads=_most_threads)

    def update(self, data: Any) -> None:
        """Hash more: anything with a contiguous buffer of bytes. It lets others have the cores."""
        if len(data) <= _SLICE:
            self._hasher.update(data)
            return
        view = memoryview(data)
        for start in range(0, len(view), _SLICE):
            self._hasher.update(view[start : start + _SLICE])

    def digest(self) -> bytes:
        result: bytes = self._hasher.digest()
        return result
