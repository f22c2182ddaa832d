"""The writing side of shared memory: which segment is written next, and what of those that are unused is given back.

New memory costs the kernel a page at a time, about 0.5 ms a megabyte, ten times what the copy takes, so a
segment that everyone has let go is written again. One that stays unused goes back to the system.
"""

from __future__ import annotations

import errno
import itertools
import math
from _thread import allocate_lock
from collections import deque
from time import monotonic

from aparallel._ground.room import Room
from aparallel._transfer.segments import Closing, Hold, Segment, capacity_for, close_all, fits
from aparallel._transfer.shared_memory import Parts, aligned, create_in_file, halves, in_background, wait_until_freed
from aparallel._transfer.writing import cut
from aparallel.errors import SharedMemoryError

TYPE_CHECKING = False  # as in aparallel/__init__.py
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from aparallel._transfer.writing import Hasher, Source

# From so many bytes on, a second thread saves more time than it takes to start.
_SHARED_BYTES = 16 * 1024 * 1024

# With so many segments here, further ones have one part: each costs a descriptor, here and in every worker.
_MANY_SEGMENTS = 64

# For want of descriptors, others are asked to give memory back once in so long a time.
_ASKING_SECONDS = 1.0


class NoDescriptorError(SharedMemoryError):
    """No file descriptor is left for a segment; the data can still travel through a socket."""


class Lender:
    """The segments of one worker, or of one pool. Threads may write at the same time.

    *on_unused* is called when one becomes free, in any thread, by finalisers. *has_spare_core* tells whether a second
    thread may take part in what is large: where all cores compute, it would only take one from them. *on_shortage* is
    called by a thread that finds no room for what it writes: to let go of what is kept for later, and to have others
    do so. What is free after that is given back.
    """

    def __init__(
        self,
        on_unused: Callable[[], object] | None = None,
        has_spare_core: Callable[[], bool] = lambda: False,
        on_shortage: Callable[[], object] = lambda: None,
    ) -> None:
        self.segments: dict[int, Segment] = {}
        # Segments that became free, and, sorted from there, those that may be taken, by size.
        # One may be there and be gone or taken since, or twice: who takes it looks.
        self._returned: deque[Segment] = deque()
        self._on_unused = on_unused
        self._has_spare_core = has_spare_core
        self._on_shortage = on_shortage
        self._asked_at = -_ASKING_SECONDS
        # Segments that were closed at once, of which others may have to be told. See take_closed().
        self._closed: deque[Segment] = deque()
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
                # Its frames refer to these errors, and to all that their callers have: call, arrays and all.
                errors.append(error.with_traceback(None))
            except BaseException:  # it is as it was, and is closed with the others
                self._finish(segment)
                raise
            else:
                self._finish(segment)
                return hold, offsets, fed
            self.segments.pop(segment.number, None)  # before it is let go: nobody takes it any more
            del hold
            self._being_written.discard(segment)
            self._close_at_once([segment])
        raise _no_room(size, errors)

    def _finish(self, segment: Segment) -> None:
        with self._lock:
            self._being_written.discard(segment)
            closed = self._is_closed
        if closed:  # while it was written: nobody wants it any more
            self.drop([segment])

    def _candidates(self, size: int, folder: str | None, errors: list[OSError], *, halved: bool) -> Iterable[Segment]:
        """Yield segments to try, each held: one that is free, then new ones, and these again with all given back."""
        segment = self._take_free(size)
        if segment is not None:
            yield segment
        yield from self._new(size, folder, errors, halved=halved)
        if self.give_back():
            yield from self._new(size, folder, errors, halved=halved)
        if not self._asks(errors):
            return
        self._on_shortage()
        self.give_back()
        yield from self._new(size, folder, errors, halved=halved)

    def _asks(self, errors: list[OSError]) -> bool:
        """Whether to ask others. If descriptors are short, data has another way, which would be slowed down."""
        now = monotonic()
        if _lacks_descriptors(errors) and now - self._asked_at < _ASKING_SECONDS:
            return False
        self._asked_at = now
        return True

    def _new(self, size: int, folder: str | None, errors: list[OSError], *, halved: bool) -> Iterable[Segment]:
        """Yield new memory, then a file."""
        try:
            if not self._room.grant(size):
                raise OSError(errno.ENOMEM, "it is more than what may be taken of the memory that is left")
            capacity = capacity_for(size)
            halved = halved and len(self.segments) < _MANY_SEGMENTS
            yield self._add(Parts.in_memory(halves(capacity, size) if halved else [capacity]))
        except OSError as error:
            errors.append(error.with_traceback(None))
        try:
            yield self._add(Parts([create_in_file(size, folder)], [size]))
        except OSError as error:
            errors.append(error.with_traceback(None))

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
        old = self._take_unused(unused_since)
        self.drop(old, unused=True)
        return old

    def give_back(self) -> bool:
        """Give all that is free back to the system, though others may have it mapped still; return whether any was."""
        free = self._take_unused(math.inf)
        self._close_at_once(free)
        wait_until_freed()
        self._room.look_again()
        return bool(free)

    def _take_unused(self, since: float) -> list[Segment]:
        """Take the segments that have been free since then, or are spoiled: nobody else gets them any more."""
        with self._lock:
            unused = [
                segment
                for segment in list(self.segments.values())
                if segment.is_free and (segment.spoiled or segment.free_since <= since)
            ]
            for segment in unused:
                segment.held = True
        return unused

    def take_closed(self) -> list[Segment]:
        """Return the segments that were closed at once since this was asked before."""
        return [self._closed.popleft() for _ in range(len(self._closed))]

    def _close_at_once(self, segments: Iterable[Segment]) -> None:
        for segment in segments:
            self.segments.pop(segment.number, None)
            close_all([Closing(segment, unused=True)])
            self._closed.append(segment)

    def drop(self, segments: Iterable[Segment], *, unused: bool = False) -> None:
        """Close *segments*. Whoever has one mapped keeps its memory; if they are *unused*, nobody does."""
        dropped, size = [], 0
        for segment in segments:
            self.segments.pop(segment.number, None)
            size += segment.written
            dropped.append(Closing(segment, unused))
        if dropped:
            in_background(size, close_all, dropped)

    def close(self) -> None:
        """Close all segments; one that a thread is writing to, when that is done."""
        with self._lock:
            self._is_closed = True
            idle = [segment for segment in self.segments.values() if segment not in self._being_written]
        self.drop(idle)


def _no_room(size: int, errors: list[OSError]) -> SharedMemoryError:
    reasons = "; ".join(dict.fromkeys(str(error) for error in errors))
    return (NoDescriptorError if _lacks_descriptors(errors) else SharedMemoryError)(
        f"{size:,} bytes found no room, neither in memory nor in a file: {reasons}. Send less at a time, free memory, "
        f"or name a folder with room (temp_folder=...); max_nbytes=None sends data through sockets instead.",
        nbytes=size,
    )


def _lacks_descriptors(errors: list[OSError]) -> bool:
    return errors[-1].errno in (errno.EMFILE, errno.ENFILE)
