"""The writing side of shared memory: segments, written, lent to other processes, and used again once they are back.

New memory costs the kernel a page at a time, about 0.5 ms a megabyte, ten times what the copy takes, so a
segment that everyone has let go is written again. One that stays unused goes back to the system.
"""

from __future__ import annotations

import errno
import itertools
import os
from _thread import allocate_lock
from collections import deque
from contextlib import suppress
from time import monotonic

from aparallel._ground.room import Room
from aparallel._transfer.shared_memory import Mapping, Parts, aligned, create_in_file, halves, in_background
from aparallel._transfer.writing import cut, do_all
from aparallel.errors import SharedMemoryError

TYPE_CHECKING = False  # as in aparallel/__init__.py
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from aparallel._transfer.writing import Hasher, Source, Write


# A segment is not used for something much smaller: the rest of it would lie idle.
_WASTE = 2

# From so many bytes on, a second thread saves more time than it takes to start.
_SHARED_BYTES = 16 * 1024 * 1024

# With so many segments here, further ones have one part: each costs a descriptor, here and in every worker.
_MANY_SEGMENTS = 64


class Segment:
    """A piece of shared memory.

    It is free when nobody in this process holds it and nobody else has it, and is then written again or closed.

    Attributes:
        written: bytes, from the start, that have been written once and therefore exist.
        held: a :class:`Hold` on it exists.
        lent: how many references to it were sent to other processes and have not been reported gone.
        spoiled: a process that nobody hears of, a fork of one that had it, may still read it.
    """

    __slots__ = (
        "_note_free",
        "_populated",
        "free_since",
        "held",
        "lent",
        "mapping",
        "number",
        "parts",
        "spoiled",
        "written",
    )

    def __init__(self, number: int, parts: Parts, note_free: Callable[[Segment], object]) -> None:
        self.number = number
        self.parts = parts
        self._note_free = note_free
        self.written = 0
        self.mapping: Mapping | None = None
        # Bytes, from the start, that were written through the mapping.
        self._populated = 0
        self.held = True
        self.lent = 0
        self.spoiled = False
        self.free_since = 0.0

    @property
    def size(self) -> int:
        return self.parts.size

    @property
    def is_free(self) -> bool:
        return not self.held and self.lent == 0

    def let_go(self) -> None:
        """Nobody holds it any more. Called by a finaliser, in any thread."""
        self.held = False
        self._note_if_free()

    def lend(self, references: int) -> None:
        self.lent += references

    def take_back(self, references: int, spoiled: bool) -> None:
        """So many references to it are gone elsewhere."""
        self.lent -= references
        self.spoiled |= spoiled
        self._note_if_free()

    def _note_if_free(self) -> None:
        if self.is_free:
            self.free_since = monotonic()
            self._note_free(self)

    def write(self, writes: deque[Write], end: int, *, with_help: bool) -> bool:
        """Do *writes*, the last of which ends at *end*; return whether their hashers were fed.

        Raises:
            OSError: there is no room. Any bytes may have been written, and none count as such.
        """
        mapping = self._mapped() if end <= self.written else None
        if mapping is None:
            do_all(lambda write, give_way: write.into(self.parts, give_way), writes, with_help=with_help)
            self.written = max(self.written, end)
            return True
        is_new = end > self._populated
        do_all(lambda write, give_way: write.onto(mapping, give_way, is_new=is_new), writes, with_help=with_help)
        self._populated = max(self._populated, end)
        return False

    def _mapped(self) -> Mapping | None:
        if self.mapping is None:
            with suppress(OSError):  # pwrite will do
                self.mapping = Mapping(self.parts, "r+")
        return self.mapping

    def take_apart(self) -> tuple[tuple[int, ...], Mapping | None]:
        """Give up its descriptors, which are to be closed, and its mapping, which is to be dropped."""
        mapping, self.mapping = self.mapping, None
        return self.parts.give_up(), mapping


class Hold:
    """Keeps a segment, with what is written in it, from being used again. Let go of when it is dropped."""

    __slots__ = ("__weakref__", "segment")

    def __init__(self, segment: Segment) -> None:
        self.segment = segment

    def __del__(self) -> None:
        self.segment.let_go()


class NoDescriptorError(SharedMemoryError):
    """No file descriptor is left for a segment; the data can still travel through a socket."""


class Lender:
    """The segments of one worker, or of one pool. Threads may write at the same time.

    *on_unused* is called when one becomes free, in any thread, by finalisers. *has_spare_core* tells whether a second
    thread may take part in what is large: where all cores compute, it would only take one from them.
    """

    def __init__(
        self,
        on_unused: Callable[[], object] | None = None,
        has_spare_core: Callable[[], bool] = lambda: False,
    ) -> None:
        self.segments: dict[int, Segment] = {}
        # Segments that became free, and, sorted from there, those that may be taken, by size.
        # One may be there and be gone or taken since, or twice: who takes it looks.
        self._returned: deque[Segment] = deque()
        self._on_unused = on_unused
        self._has_spare_core = has_spare_core
        self._free: dict[int, list[Segment]] = {}
        self._numbers = itertools.count()
        self._room = Room()
        # Segments that threads write just now. Nobody else closes them: the descriptor might be another file's by then.
        self._being_written: set[Segment] = set()
        self._is_closed = False
        # Held while a segment is chosen, never while one is dropped: a finaliser must not wait for it.
        self._lock = allocate_lock()

    def write(
        self, sources: Sequence[Source], folder: str | None = None, hashers: Sequence[Hasher] | None = None
    ) -> tuple[Hold, list[int], bool]:
        """Write *sources* into one segment.

        Returns a hold on it, the offset of each, and whether *hashers* were fed.

        Raises:
            SharedMemoryError: there is no room for them, neither in memory nor in *folder*.
        """
        offsets = list(itertools.accumulate((aligned(source.nbytes) for source in sources), initial=0))
        size = offsets.pop()
        errors: list[OSError] = []
        with_help = size >= _SHARED_BYTES and self._has_spare_core()
        for segment in self._candidates(size, folder, errors, halved=with_help):
            hold = Hold(segment)
            try:
                fed = segment.write(cut(offsets, sources, hashers), size, with_help=with_help)
            except OSError as error:
                errors.append(error)
            else:
                self._finish(segment)
                return hold, offsets, fed
            del hold
            self._being_written.discard(segment)
            self.drop([segment])
        raise _no_room(size, errors)

    def _finish(self, segment: Segment) -> None:
        with self._lock:
            self._being_written.discard(segment)
            closed = self._is_closed
        if closed:  # while it was written: nobody wants it any more
            self.drop([segment])

    def _candidates(self, size: int, folder: str | None, errors: list[OSError], *, halved: bool) -> Iterable[Segment]:
        """Yield segments to try, each held: one that is free, then new memory, then a file."""
        segment = self._take_free(size)
        if segment is not None:
            yield segment
        try:
            if not self._room.grant(size):
                raise OSError(errno.ENOMEM, "it is more than what may be taken of the memory that is left")
            capacity = _capacity(size)
            halved = halved and len(self.segments) < _MANY_SEGMENTS
            yield self._add(Parts.in_memory(halves(capacity, size) if halved else [capacity]))
        except OSError as error:
            errors.append(error)
        try:
            yield self._add(Parts([create_in_file(size, folder)], [size]))
        except OSError as error:
            errors.append(error)

    def has_free(self, size: int) -> bool:
        """Whether a segment is free that fits. It may be taken by another thread at once."""
        return any(
            segment.is_free and not segment.spoiled and fits(segment.size, size)
            for segment in list(self.segments.values())
        )

    def _note_free(self, segment: Segment) -> None:
        self._returned.append(segment)
        if self._on_unused is not None:
            self._on_unused()

    def _take_free(self, size: int) -> Segment | None:
        with self._lock:
            while self._returned:
                segment = self._returned.popleft()
                self._free.setdefault(segment.size, []).append(segment)
            for fitting in sorted(found for found in self._free if fits(found, size)):
                segments = self._free[fitting]
                while segments:
                    segment = segments.pop()  # the one used last: it is mapped, and in the caches
                    if segment.is_free and not segment.spoiled and segment.number in self.segments:
                        segment.held = True
                        self._being_written.add(segment)
                        return segment
                del self._free[fitting]
        return None

    def _add(self, parts: Parts) -> Segment:
        number = next(self._numbers)
        segment = self.segments[number] = Segment(number, parts, self._note_free)
        self._being_written.add(segment)
        return segment

    def trim(self, unused_since: float) -> list[Segment]:
        """Close the segments that have been free since then (``time.monotonic``), or are spoiled; return them."""
        with self._lock:
            old = [
                segment
                for segment in list(self.segments.values())
                if segment.is_free and (segment.spoiled or segment.free_since <= unused_since)
            ]
            for segment in old:
                segment.held = True  # nobody takes it any more
        self.drop(old)
        return old

    def drop(self, segments: Iterable[Segment]) -> None:
        """Close *segments*. Whoever has one mapped keeps its memory."""
        taken_apart, size = [], 0
        for segment in segments:
            self.segments.pop(segment.number, None)
            size += segment.written
            taken_apart.append(segment.take_apart())
        if taken_apart:
            in_background(size, _close, taken_apart)

    def close(self) -> None:
        """Close all segments; one that a thread is writing to, when that is done."""
        with self._lock:
            self._is_closed = True
            idle = [segment for segment in self.segments.values() if segment not in self._being_written]
        self.drop(idle)


def _close(taken_apart: list[tuple[tuple[int, ...], Mapping | None]]) -> None:
    """Free memory, some 0.2 ms a megabyte."""
    while taken_apart:
        fds, mapping = taken_apart.pop()
        del mapping
        for fd in fds:
            os.close(fd)


def _no_room(size: int, errors: list[OSError]) -> SharedMemoryError:
    reasons = "; ".join(dict.fromkeys(str(error) for error in errors))
    lacks_descriptors = errors[-1].errno in (errno.EMFILE, errno.ENFILE)
    return (NoDescriptorError if lacks_descriptors else SharedMemoryError)(
        f"{size:,} bytes found no room, neither in memory nor in a file: {reasons}. Send less at a time, free memory, "
        f"or name a folder with room (temp_folder=...); max_nbytes=None sends data through sockets instead.",
        nbytes=size,
    )


def fits(found: int, size: int) -> bool:
    """Whether a segment of *found* bytes is large enough for *size*, and not much larger."""
    return size <= found <= _capacity(size) * _WASTE


def _capacity(size: int) -> int:
    """Round up to one of eight sizes per power of two, so that a segment fits what is a little larger, too."""
    step = max(1 << max(size.bit_length() - 4, 0), 4096)
    return -(-size // step) * step
