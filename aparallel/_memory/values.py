"""Small values as pickles inside their entries: one read gives them. ``large.py`` has the others."""

from __future__ import annotations

import io
import pickle
from typing import TYPE_CHECKING, Any, Final

import cloudpickle

from aparallel._ground.exceptions import ReducesExceptions
from aparallel._memory.encoding import ATOMS

if TYPE_CHECKING:
    from pickle import PickleBuffer

SMALL: Final = 256 << 10  # bytes of a pickle that stands inside its entry
_SMALL_BUFFER = 64 << 10
_SMALL_COMPRESSED = 4 << 10


class _Large(Exception):
    pass


class _Bounded(io.BytesIO):
    def __init__(self, limit: int) -> None:
        super().__init__()
        self._limit = limit

    def write(self, data: Any) -> int:
        if self.tell() + len(data) > self._limit:
            raise _Large
        return super().write(data)


def pickle_small(value: object, *, compressed: bool, mapped: bool) -> bytes | None:
    """Return the pickle of *value*, or None if it belongs in a container.

    That is so if it is large, if arrays in it are to be *mapped*, and if the standard pickle cannot take it.
    """
    limit = _SMALL_COMPRESSED if compressed else SMALL
    buffer_limit = 0 if mapped else min(limit, _SMALL_BUFFER)

    def keep_inside(buffer: PickleBuffer) -> bool:
        with buffer.raw() as raw:
            if raw.nbytes > buffer_limit:
                raise _Large
        return True

    file = _Bounded(limit)
    try:
        pickle.Pickler(file, 5, buffer_callback=keep_inside).dump(value)
    except Exception:  # too large, or cloudpickle may know better; whoever writes the file finds out
        return None
    return file.getvalue()


def pickle_error(error: BaseException) -> bytes:
    """Return the pickle of an exception, with its attributes and without its traceback."""
    file = io.BytesIO()
    _ErrorPickler(file, 5).dump(error)
    return file.getvalue()


class _ErrorPickler(ReducesExceptions, cloudpickle.Pickler):  # type: ignore[misc]
    pass


def unpickle(body: bytes) -> Any:
    return pickle.loads(body)


def is_frozen(value: object) -> bool:
    """Whether nobody can change *value*: it may be given to everyone who asks."""
    left: list[Any] = [value]
    seen: set[int] = set()  # what many share is looked at once
    while left:
        part = left.pop()
        kind = type(part)
        if kind in ATOMS or id(part) in seen:
            continue
        if kind is not tuple and kind is not frozenset:
            return False
        seen.add(id(part))
        left += part
    return True
