"""Where memoized results live: the seam between a Memory and a disk, or whatever else keeps bytes by name."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator
from typing import TYPE_CHECKING, ClassVar, NamedTuple

if TYPE_CHECKING:
    from io import FileIO

# An entry used "later" than this many seconds from now was used under a clock that was wrong.
_CLOCK_SLACK = 60.0


def age(then: float, now: float) -> float:
    """Return how many seconds ago *then* was; infinity if that lies in the future, so that nothing lives for ever."""
    return now - then if then <= now + _CLOCK_SLACK else math.inf


class Place(NamedTuple):
    """What an entry is kept under.

    Attributes:
        function: 24 hexadecimal digits that stand for the function's name; all versions of its code share them.
        key: 32 bytes, evenly distributed, that stand for the call; no two functions share one.
    """

    function: str
    key: bytes


class Record(NamedTuple):
    """An entry as a store gives it.

    Attributes:
        content: the bytes that were put; or, from a store that keeps files, a file open for reading that holds
            them, which whoever gets it closes.
        version: differs for whatever is put in the entry's place later.
    """

    content: bytes | FileIO
    version: Hashable


class Listed(NamedTuple):
    """An entry as a store lists it.

    Attributes:
        place: what it is kept under.
        size: in bytes, all that it takes.
        created, used: when it was put, and last used, in seconds since 1970.
    """

    place: Place
    size: int
    created: float
    used: float


class Totals(NamedTuple):
    """How many entries, and how many bytes they have."""

    entries: int
    bytes: int

    def __bool__(self) -> bool:
        return self.entries > 0 or self.bytes > 0


class Limits(NamedTuple):
    """What a store may hold; None for no limit."""

    entries: int | None = None
    bytes: int | None = None

    def less(self, entries: int, size: int) -> Limits:
        """Return what may be there before so much is added."""
        return Limits(
            None if self.entries is None else max(0, self.entries - entries),
            None if self.bytes is None else max(0, self.bytes - size),
        )

    def scaled(self, share: float) -> Limits:
        """Return that share of the limits."""
        return Limits(
            None if self.entries is None else int(share * self.entries),
            None if self.bytes is None else int(share * self.bytes),
        )

    def excess(self, totals: Totals) -> Totals:
        """Return by how much *totals* are over, 0 where they are not."""
        return Totals(
            0 if self.entries is None else max(0, totals.entries - self.entries),
            0 if self.bytes is None else max(0, totals.bytes - self.bytes),
        )


class Store(ABC):
    """Keeps entries, which are bytes, by place; and notes, which are bytes by name.

    ``Memory(MyStore())`` uses it instead of a directory. What is put is sealed with a checksum, or signed with the
    memory's ``signing_key``: a store may lose entries, but cannot make a memory believe what it was not given.

    All methods but :meth:`touch` are called in threads, several at a time, and may block. They tell by OSError
    that the store cannot be reached: then nothing is found or stored, with a warning, and the functions work on.
    Whatever else they raise, the caller of the function sees. To travel to a pool's workers a store must pickle.

    Attributes:
        keeps_files: entries can be files: :meth:`put_file` works, and :meth:`get` can give open files. Results
            can then be mapped, and large ones are never in memory as a whole.
        limits: what it holds itself to, if anything.
    """

    keeps_files: ClassVar[bool] = False
    limits: Limits = Limits()

    @abstractmethod
    def get(self, place: Place, *, as_file: bool = False) -> Record | None:
        """Return the entry at *place*, or None if there is none. *as_file*: as an open file, where files are kept."""

    @abstractmethod
    def put(self, place: Place, content: bytes, *, lifetime: float | None = None) -> Hashable:
        """Keep *content* at *place*, whole or not at all, instead of what was there. Return the record's version.

        *lifetime*: seconds after which it is of no use to anybody, and may be removed; None for never.

        Raises:
            ValueError: it is more than this store will ever hold.
        """

    def put_file(self, place: Place, write: Callable[[FileIO], None], *, lifetime: float | None = None) -> Hashable:
        """Do the same with what *write* writes to the file that it is given. Only called where files are kept."""
        raise NotImplementedError(f"{type(self).__name__} keeps no files.")

    @abstractmethod
    def remove(self, place: Place) -> bool:
        """Remove an entry, and return whether there was one."""

    @abstractmethod
    def entries(self, function: str | None = None) -> Iterator[Listed]:
        """Yield all entries, or those of one function, in no order. Others may come and go meanwhile.

        Its steps may be taken in different threads, one at a time.
        """

    @abstractmethod
    def read_note(self, name: str) -> bytes | None:
        """Return what was last written under *name*: letters, digits and dots, with one slash."""

    @abstractmethod
    def write_note(self, name: str, content: bytes) -> None:
        """Keep a few hundred bytes under *name*, for ever. There are few."""

    # What a store may know to do better, or need not do

    def version(self, place: Place) -> Hashable | None:
        """Return the version of the entry at *place*, None if there is none."""
        record = self.get(place)
        if record is None:
            return None
        if not isinstance(record.content, bytes):
            record.content.close()
        return record.version

    def touch(self, place: Place) -> None:  # noqa: B027
        """Take note that an entry was used. Called on event loops: it must return at once."""

    def try_lock(self, key: bytes) -> bool:
        """Take the lock of a key without waiting; return whether that could be done.

        It keeps other processes from computing the same, until :meth:`unlock` or the end of this process. By
        default everybody gets it: then one process computes once, and several may each compute.
        """
        return True

    def unlock(self, key: bytes) -> None:  # noqa: B027
        """Give back the lock of a key."""

    def clear(self, function: str | None = None) -> int:
        """Remove all entries, or all of one function, and return how many there were."""
        return sum([self.remove(listed.place) for listed in list(self.entries(function))])

    def totals(self) -> Totals:
        """Return how much is kept."""
        sizes = [listed.size for listed in self.entries()]
        return Totals(len(sizes), sum(sizes))

    def reduce(self, limits: Limits, *, unused_for: float | None = None) -> int:
        """Remove what was not used for so many seconds, and the least recently used over *limits*. Return how many."""
        now = time.time()
        listing = sorted(self.entries(), key=lambda listed: -age(listed.used, now))
        left = Totals(len(listing), sum(listed.size for listed in listing))
        removed = 0
        for listed in listing:
            is_old = unused_for is not None and age(listed.used, now) > unused_for
            if not is_old and not limits.excess(left):
                break
            removed += self.remove(listed.place)
            left = Totals(left.entries - 1, left.bytes - listed.size)
        return removed

    def note_removal(self, place: Place | None) -> None:
        """Have :meth:`removals` change: what is stored at *place*, or everywhere, is about to be removed by request."""
        import secrets  # 5 ms for a script's start, and few programs get here

        self.write_note(_note_of_removals(place), secrets.token_hex(8).encode())

    def removals(self, place: Place) -> Hashable:
        """Return what changes when results are removed by request, at *place* and at some others.

        It is read before a result is computed and when it has been: one that was asked for before a removal must not be
        found after it. A store that only one process uses may leave both methods empty.
        """
        return self.read_note(_note_of_removals(None)), self.read_note(_note_of_removals(place))

    def was_evicted(self, place: Place) -> bool:
        """Whether an entry was removed lately to make room, as far as this store remembers."""
        return False

    def was_expired(self, place: Place) -> bool:
        """Whether an entry was removed lately because it had outlived its ``ttl``, as far as this store remembers."""
        return False


def _note_of_removals(place: Place | None) -> str:
    # One for all places, and one for each 256th part of them: a note per key would be many.
    return "removals/all" if place is None else f"removals/{place.key[0]:02x}"
