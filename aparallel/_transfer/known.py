"""What is known of a buffer that was written into shared memory: where it lies, what it held. Not loaded in a child."""

from __future__ import annotations

import weakref
from time import monotonic
from typing import TYPE_CHECKING, Any

import numpy as np

from aparallel._transfer.arrays import Strided, owner_of
from aparallel._transfer.writing import Raw

if TYPE_CHECKING:
    from aparallel._transfer.contents import Content
    from aparallel._transfer.users import User


class Origin:
    """Where a buffer lies: what tells whether it is the same as before, and whether it can have changed."""

    __slots__ = ("key", "owner", "readonly")

    def __init__(self, source: Any) -> None:
        if isinstance(source, Strided):
            array: Any = source.array
            place = array.__array_interface__["data"][0]
            # The whole type: of a record, only the fields are copied.
            self.key: tuple[Any, ...] = place, array.shape, array.strides, array.dtype
            exporter: Any = array
        else:
            exporter = source.view.obj
            flat = np.frombuffer(source.view, np.uint8)
            self.key = flat.__array_interface__["data"][0], source.nbytes
        self.owner, self.readonly = _owner(exporter)


def place_of(source: Any) -> tuple[Any, ...]:
    """Return what tells where a buffer lies, of those that an ``OutOfBand`` takes."""
    return Origin(as_source(source)).key


def as_source(source: Any) -> Any:
    """Return what can be written and hashed, of what an ``OutOfBand`` took."""
    return Raw(source) if isinstance(source, memoryview) else source


def _owner(exporter: Any) -> tuple[Any, bool]:
    """Return what the memory belongs to, and whether nobody can write to it."""
    if not isinstance(exporter, np.ndarray):
        return exporter, isinstance(exporter, bytes)
    owner = owner_of(exporter)
    # A view that was made before its owner became read-only can still be written to.
    is_locked = not (exporter.flags.writeable or owner.flags.writeable)
    return owner, is_locked and (owner.base is None or isinstance(owner.base, bytes))


class Known:
    """A buffer that was written, and what it held."""

    __slots__ = ("_users", "content", "key", "owner", "pinned", "readonly", "recurs", "used_at")

    def __init__(
        self, key: tuple[Any, ...], content: Content, owner: weakref.ref[Any] | None, readonly: bool, recurs: bool
    ) -> None:
        self.key = key
        self.content = content
        self.owner = owner
        # Nobody could write to it when it was last compared, or written.
        self.readonly = readonly
        self.recurs = recurs
        self.used_at = 0.0
        # The gathers and streams that used it, and their latest moment when they did; those that are done are taken
        # out when another one comes.
        self._users: dict[weakref.ref[User], int] = {}
        # How many shares keep it.
        self.pinned = 0

    def use(self, user: User | None) -> None:
        self.used_at = monotonic()
        if user is None:
            return
        reference = weakref.ref(user)
        if reference not in self._users:
            # Each step is atomic: other threads may do the same.
            for gone in [seen for seen in self._users.copy() if seen() is None]:
                self._users.pop(gone, None)
        self._users[reference] = user.moment

    def is_used_in_moment_of(self, user: User) -> bool:
        return self._users.get(weakref.ref(user)) == user.moment

    def is_of(self, owner: object) -> bool:
        return self.owner is not None and self.owner() is owner

    @property
    def is_in_use(self) -> bool:
        return self.pinned > 0 or any(user() is not None for user in self._users.copy())

    def supersede(self) -> None:
        """Something else is known of the buffer now; calls drawn in the moment in which this was used go on with it."""
        for reference, moment in self._users.copy().items():
            user = reference()
            if user is not None:
                user.superseded[self.key] = moment, self


def superseded_for(origin: Origin, source: Any, user: User | None) -> Content | None:
    """Return what *user* goes on with though the buffer may have changed, if there is such a thing."""
    if user is None:
        return None
    moment, known = user.superseded.get(origin.key, (None, None))
    if known is None or moment != user.moment or not known.is_of(origin.owner):
        return None
    content: Content = known.content
    return content if content.nbytes == source.nbytes else None
