"""How much memory there is left to use: the machine's, or what a container's limit leaves of it."""

from __future__ import annotations

import time

from aparallel._ground.cgroups import Cgroups

TYPE_CHECKING = False  # loaded in workers
if TYPE_CHECKING:
    from collections.abc import Callable

# Of what is available, the part that one allocation may take: the rest is everybody else's.
_USABLE = 0.8


class Room:
    """Whether memory for large buffers is left. Beyond a container's limit lies not an error but the OOM killer.

    *root* and *clock* (seconds) are for tests. What cannot be read limits nothing.

    Invariant: an answer counts what was granted since the files were read, and they are read again
    after *max_age* seconds or when a quarter of what they told has been granted.
    """

    def __init__(self, root: str = "/", *, max_age: float = 0.5, clock: Callable[[], float] = time.monotonic) -> None:
        self._cgroups = Cgroups("memory", root)
        self._max_age = max_age
        self._clock = clock
        self._read_at = -1e9
        self._available: int | None = None
        self._granted = 0

    def grant(self, size: int) -> bool:
        """Whether *size* more bytes may be used; if so, they count as used from now on."""
        now = self._clock()
        if now - self._read_at > self._max_age or self._granted > (self._available or 0) / 4:
            self._available, self._granted, self._read_at = self.available(), 0, now
        if self._available is not None and size + self._granted > self._available * _USABLE:
            return False
        self._granted += size
        return True

    def look_again(self) -> None:
        """Read the files anew for the next question: memory was given back."""
        self._read_at = -1e9

    def available(self) -> int | None:
        """Return the bytes that can be used before anything is swapped or killed; None if nobody says."""
        left = [self._left_in(version, folder) for version, folder in self._cgroups.folders()]
        left.append(parse_available(self._cgroups.text("/proc/meminfo")))
        return min((size for size in left if size is not None), default=None)

    def _left_in(self, version: int, folder: str) -> int | None:
        limit_name, usage_name, cache_name = (
            ("memory.max", "memory.current", "inactive_file")
            if version == 2
            else ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        )
        text = self._cgroups.text
        limit, usage = text(f"{folder}/{limit_name}").strip(), text(f"{folder}/{usage_name}").strip()
        if not (limit.isdecimal() and usage.isdecimal()):  # "max", or not there
            return None
        # The page cache counts as used, and is given up first.
        cache = parse_field(text(f"{folder}/memory.stat"), cache_name) or 0
        return max(int(limit) - int(usage) + cache, 0)


def parse_available(meminfo: str) -> int | None:
    """Return ``MemAvailable`` of ``/proc/meminfo`` in bytes."""
    kilobytes = parse_field(meminfo, "MemAvailable:")
    return None if kilobytes is None else kilobytes * 1024


def parse_field(text: str, name: str) -> int | None:
    """Return the number that follows *name* at the start of a line."""
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == name and words[1].isdecimal():
            return int(words[1])
    return None
