"""The newest results in memory, in a form that no caller can have changed."""

from __future__ import annotations

import pickle
import sys
import threading
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final

from aparallel._ground.forks import renew_after_fork
from aparallel._memory.constants import is_frozen

if TYPE_CHECKING:
    from collections.abc import Hashable

    from aparallel._ground.store import Place

TRUSTED_FOR: Final = 0.5
"""Seconds for which an entry is used without a look at the store: another process may have removed it."""

LOOP_SIZE: Final = 64 << 10
"""Bytes that may be unpickled or copied on the loop."""

_OVERHEAD = 500  # bytes of an entry besides its value
_MOST_MAPS = 64  # Python's keep a descriptor each, and many processes may have 1,024 of them


class Kept:
    """A result in memory.

    Attributes:
        created: when it was computed, in seconds since 1970.
        checked: when its record was last seen to be the same, on time.monotonic's clock.
        size: bytes that it takes.
        is_map: it is an array that is mapped from its file.
    """

    __slots__ = ("_body", "_value", "checked", "created", "is_error", "is_map", "place", "size", "tags", "version")

    def __init__(
        self,
        place: Place,
        version: Hashable,
        created: float,
        *,
        value: Any = None,
        body: bytes | None = None,
        size: int = 0,
        is_error: bool = False,
        tags: dict[str, str] | None = None,
    ) -> None:
        self.place = place
        self.version = version
        self.created = created
        self.is_error = is_error
        self.is_map = hasattr(value, "filename")
        self.tags = tags
        self.checked = time.monotonic()
        self._value = value
        self._body = body
        self.size = _OVERHEAD + (len(body) if body is not None else size)

    def value(self) -> Any:
        """Return the result: itself if it cannot be changed, else a new copy."""
        if self._body is not None:
            return pickle.loads(self._body)
        return copy_of(self._value)


def copy_of(value: Any) -> Any:
    """Return what :func:`keepable` found keepable, so that who has it cannot change *value*.

    Of an array that is a copy; of a read-only map a view, on the pages that all share; all else cannot be changed.
    """
    if not hasattr(value, "__array_interface__"):
        return value
    return value.view() if hasattr(value, "filename") else value.copy(order="K")


def size_of(value: Any) -> int:
    """Return how many bytes of memory it takes to keep *value*; the pages of a map are not counted."""
    if not hasattr(value, "__array_interface__"):
        return sys.getsizeof(value)
    return 0 if hasattr(value, "filename") else int(value.nbytes)


def keepable(value: Any) -> bool:
    """Whether *value* itself can be kept, because it cannot be changed or can be copied well."""
    if is_frozen(value):
        return True
    import numpy as np

    if type(value) is np.memmap:
        return value.mode == "r"
    return type(value) is np.ndarray and not value.dtype.hasobject


class Tier:
    """Keeps results up to *max_bytes*, and not too many maps, least recently used ones leaving first.

    Safe in any thread.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._mutex = threading.Lock()
        # Oldest first. `_bytes` is the sum of their sizes, `_maps` has the keys of those that are maps. All are guarded
        # by the mutex, but single reads are not.
        self._kept: OrderedDict[bytes, Kept] = OrderedDict()
        self._maps: OrderedDict[bytes, None] = OrderedDict()
        self._bytes = 0
        renew_after_fork(self)

    def after_fork(self) -> None:
        """Start empty: a thread of the parent may have been half-way through a change."""
        self._mutex = threading.Lock()
        self._kept = OrderedDict()
        self._maps = OrderedDict()
        self._bytes = 0

    def get(self, key: bytes) -> Kept | None:
        return self._kept.get(key)

    def takes(self, size: int) -> bool:
        """Whether a value of *size* bytes may be kept."""
        return _OVERHEAD + size <= self._max_bytes

    def put(self, kept: Kept) -> None:
        key = kept.place.key
        with self._mutex:
            self._remove(key)
            if kept.size > self._max_bytes:
                return
            if kept.is_map:
                self._maps[key] = None
                if len(self._maps) > _MOST_MAPS:
                    self._remove(next(iter(self._maps)))
            self._kept[key] = kept
            self._bytes += kept.size
            while self._bytes > self._max_bytes:
                self._remove(next(iter(self._kept)))

    def used(self, key: bytes) -> None:
        with self._mutex:
            if key in self._kept:
                self._kept.move_to_end(key)
            if key in self._maps:
                self._maps.move_to_end(key)

    def drop(self, key: bytes) -> None:
        with self._mutex:
            self._remove(key)

    def clear(self) -> None:
        with self._mutex:
            self._kept.clear()
            self._maps.clear()
            self._bytes = 0

    def _remove(self, key: bytes) -> None:
        kept = self._kept.pop(key, None)
        if kept is not None:
            self._bytes -= kept.size
            self._maps.pop(key, None)

    @property
    def totals(self) -> tuple[int, int]:
        """How many results, and how many bytes."""
        return len(self._kept), self._bytes
