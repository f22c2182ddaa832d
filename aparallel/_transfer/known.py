"""What is known of a buffer that was written into shared memory: where it lies, what it held. Not loaded in a child."""

from __future__ import annotations

import weakref
from time import monotonic
from typing import TYPE_CHECKING, Any

import numpy as np

from aparallel._transfer.arrays import Strided, owner_of
from aparallel._transfer.contents import digest_of
from aparallel._transfer.pages import watch as begin_to_watch
from aparallel._transfer.writing import Raw

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aparallel._transfer.contents import Content
    from aparallel._transfer.pages import Watch
    from aparallel._transfer.users import User

# How often a buffer has to be found unchanged before it is watched: more than once, so that what is used twice and then
# refilled never is. To begin takes a millisecond in a program of some size, longer than to hash what is small.
_UNCHANGED_LARGE = 2
_SMALL_BYTES = 16 * 1024 * 1024
_UNCHANGED_SMALL = 8

# To be spared so many hashes pays for a buffer's being written whole while it is watched.
_PAID_AFTER = 6


def _pieces_of(source: Any, watch: Watch | None) -> Iterable[bytes | memoryview]:
    """Return a buffer as it is now, as pieces to be hashed.

    Of one that is watched, with those of its bytes that *watch* compares: what it found is then what was hashed.
    """
    if watch is not None:
        return watch.first, source.view[len(watch.first) : source.nbytes - len(watch.last)], watch.last
    return [source.view] if isinstance(source, Raw) else source.pieces()


class Buffer:
    """A buffer of a call, of those that an ``OutOfBand`` takes.

    Attributes:
        source: what can be written and hashed.
        key: where it lies: what tells whether it is the same as before.
        place: its address and size, if it lies in one piece.
        owner: what the memory belongs to.
        readonly: nobody can write to it.
        habit: how what was known of it has fared.
    """

    __slots__ = ("habit", "key", "nbytes", "owner", "place", "readonly", "source")

    def __init__(self, source: Any) -> None:
        if isinstance(source, memoryview):
            source = Raw(source)
        self.source = source
        self.nbytes: int = source.nbytes
        self.habit: Habit | None = None
        self.place: tuple[int, int] | None = None
        if isinstance(source, Strided):
            array: Any = source.array
            place = array.__array_interface__["data"][0]
            # The whole type: of a record, only the fields are copied.
            self.key: tuple[Any, ...] = place, array.shape, array.strides, array.dtype
            exporter: Any = array
        else:
            exporter = source.view.obj
            flat = np.frombuffer(source.view, np.uint8)
            self.key = self.place = flat.__array_interface__["data"][0], self.nbytes
        self.owner, self.readonly = _owner(exporter)


def _owner(exporter: Any) -> tuple[Any, bool]:
    """Return what the memory belongs to, and whether nobody can write to it."""
    if not isinstance(exporter, np.ndarray):
        return exporter, isinstance(exporter, bytes)
    owner = owner_of(exporter)
    # A view that was made before its owner became read-only can still be written to.
    is_locked = not (exporter.flags.writeable or owner.flags.writeable)
    return owner, is_locked and (owner.base is None or isinstance(owner.base, bytes))


class Habit:
    """Whether it pays to have the kernel tell when a buffer is written, going by what was done to it so far.

    It costs nothing while the buffer stays as it is, and when all of it is written, as much time as to hash it five
    times. So it has to be found unchanged first, more often each time that it has turned out not to have paid, and a
    buffer that is refilled between draws is left alone.
    """

    __slots__ = ("_needed", "_spared", "_unchanged")

    def __init__(self, nbytes: int) -> None:
        # How often it has to be found unchanged in a row, and was; how often it was not hashed for being watched.
        self._needed = _UNCHANGED_LARGE if nbytes >= _SMALL_BYTES else _UNCHANGED_SMALL
        self._unchanged = 0
        self._spared = 0

    @property
    def is_worth_watching(self) -> bool:
        """Whether to watch it from now on if it is now found unchanged."""
        return self._unchanged + 1 >= self._needed

    def note_found(self, same: bool, in_vain: bool) -> None:
        """*in_vain*: it was to be watched from now on."""
        self._unchanged = self._unchanged + 1 if same else 0
        if in_vain:
            self._needed *= 2

    def note_untouched(self) -> None:
        self._spared += 1

    def note_touched(self) -> None:
        self._needed = self._needed * 8 if self._spared < _PAID_AFTER else max(self._needed // 8, 1)
        self._spared = 0
        self._unchanged = -1  # most likely it is found changed now: to be watched from then on would be in vain


class Known:
    """A buffer that was written, and what it held."""

    __slots__ = ("_habit", "_users", "_watch", "content", "key", "owner", "pinned", "readonly", "recurs", "used_at")

    def __init__(self, buffer: Buffer, content: Content, owner: weakref.ref[Any] | None, recurs: bool) -> None:
        self.key = buffer.key
        self.content = content
        self.owner = owner
        self._habit = buffer.habit or Habit(content.nbytes)
        # Began before it was last compared, and found what it holds to be the content.
        self._watch: Watch | None = None
        # Nobody could write to it when it was last compared, or written.
        self.readonly = buffer.readonly
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
    def is_watched(self) -> bool:
        return self._watch is not None

    def is_the_same(self, buffer: Buffer) -> bool:
        """Whether it holds what it held. Takes the time to read it, if the kernel cannot tell.

        Raises:
            SharedMemoryError: what was written has to be mapped for that, and cannot be.
        """
        return (self.is_of(buffer.owner) and self.is_untouched()) or self._is_found_the_same(buffer)

    def is_untouched(self) -> bool:
        """Whether it is watched, and surely is as it was. Quick. The caller has its owner."""
        watch = self._watch
        if watch is None:
            return False
        if watch.is_untouched():
            self._habit.note_untouched()
            return True
        self._habit.note_touched()
        self.unwatch()
        return False

    def _is_found_the_same(self, buffer: Buffer) -> bool:
        """Compare it. If it is the same and that pays, it is watched from now on."""
        watch = None
        is_worth_it = self.is_of(buffer.owner) and self._habit.is_worth_watching
        if is_worth_it and buffer.place is not None:
            watch = begin_to_watch(*buffer.place)
        is_same = self.content.digest() == digest_of(_pieces_of(buffer.source, watch))
        # To ask a kernel that refuses takes time, too.
        self._habit.note_found(is_same, in_vain=is_worth_it and (watch is None or not is_same))
        if is_same and watch is not None:
            self._watch = watch
        elif not is_same and self.is_of(buffer.owner):
            buffer.habit = self._habit
        return is_same

    def unwatch(self) -> None:
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.stop()

    @property
    def is_in_use(self) -> bool:
        return self.pinned > 0 or any(user() is not None for user in self._users.copy())

    @property
    def is_needed(self) -> bool:
        """Whether a call may be drawn that is to see it as it was: it is kept, however short memory is."""
        users = ((user(), moment) for user, moment in self._users.copy().items())
        return self.pinned > 0 or any(user is not None and user.moment == moment for user, moment in users)

    def supersede(self) -> None:
        """Something else is known of the buffer now; calls drawn in the moment in which this was used go on with it."""
        self.unwatch()
        for reference, moment in self._users.copy().items():
            user = reference()
            if user is not None:
                user.superseded[self.key] = moment, self


def superseded_for(buffer: Buffer, user: User | None) -> Content | None:
    """Return what *user* goes on with though *buffer* may have changed, if there is such a thing."""
    if user is None:
        return None
    moment, known = user.superseded.get(buffer.key, (None, None))
    if known is None or moment != user.moment or not known.is_of(buffer.owner):
        return None
    content: Content = known.content
    return content if content.nbytes == buffer.nbytes else None
