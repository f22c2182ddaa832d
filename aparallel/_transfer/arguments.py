"""What the calls of a pool carry in shared memory: written once while it does not change. Not loaded in a child.

A call sees its arrays as they were when it was drawn. An array that was written before is therefore compared with what
was written, by a hash (xxh3, 128 bits; the time that reading it takes), unless nobody can have changed it.
"""

from __future__ import annotations

import functools
import weakref
from pickle import loads
from typing import TYPE_CHECKING, Any

import numpy as np

from aparallel._ground.hop import pause
from aparallel._ground.room import Room
from aparallel._ground.sharing import Shared
from aparallel._transfer.arrays import memmap_in, owner_of
from aparallel._transfer.contents import Content, Digest, SharedContent
from aparallel._transfer.known import Buffer, Known, superseded_for
from aparallel._transfer.lending import Lender
from aparallel._transfer.out_of_band import OutOfBand, Reference
from aparallel._transfer.pickling import pickle_in_slices
from aparallel._transfer.segments import Segment, fits
from aparallel._transfer.shared_memory import Window, aligned
from aparallel.errors import SharingError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from aparallel._transfer.out_of_band import Source
    from aparallel._transfer.shared_memory import Mode
    from aparallel._transfer.users import User

# Contents are kept for when their arrays come again: those of the last few arrays, whatever these are, and those of
# arrays that have come again before, up to so large a part of the memory that is there. Each may cost a descriptor.
_LATEST_COUNT = 16
_LATEST_BYTES = 256 * 1024 * 1024
_RECURRING_COUNT = 256
_RECURRING_BYTES = 256 * 1024 * 1024
_RECURRING_PART = 8

# On the loop the kernel is asked of so many bytes at most whether they were written: half a millisecond's worth.
_ON_LOOP_BYTES = 1 << 30

# Arrays that were forgotten and are recognised as recurring if they come again.
_FORGOTTEN_COUNT = 4096


def _check_is_array(value: Any) -> None:
    backing = memmap_in(value) if isinstance(value, np.ndarray) else None
    is_in_file = backing is not None and backing.mode != "c"
    if type(value) is not np.ndarray or value.dtype.hasobject or is_in_file:
        hint = "Pass it to calls itself, with mmap_mode='r+'." if is_in_file else "Share its arrays one by one."
        what = "one that lies in a file" if is_in_file else type(value).__name__
        raise TypeError(
            f"share(mode='r+') takes a NumPy array of numbers in memory, got {what}: "
            f"nothing else can be written from both sides. {hint}"
        )
    if not value.flags.writeable and isinstance(owner_of(value).base, Window):
        raise SharingError("share(mode='r+') got the array of what was shared read-only. Share a copy of it.")


class _Pins:
    """Buffers that count as unchanged until this is released or dropped."""

    __slots__ = ("_pinned",)

    def __init__(self) -> None:
        self._pinned: list[tuple[ArgumentMemory, Known]] = []

    def add(self, memory: ArgumentMemory, known: Known) -> None:
        known.pinned += 1
        self._pinned.append((memory, known))

    def release(self) -> None:
        while self._pinned:
            memory, known = self._pinned.pop()
            memory.unpin(known)

    __del__ = release


class ArgumentMemory:
    """The shared memory of a pool's arguments. Its methods are called in threads, several at a time."""

    def __init__(
        self,
        on_unused: Callable[[], object],
        has_spare_core: Callable[[], bool] = lambda: False,
        on_shortage: Callable[[], object] = lambda: None,
    ) -> None:
        self.lender = Lender(on_unused, has_spare_core, self._relieve)
        self._on_unused = on_unused
        self._on_shortage = on_shortage
        # Least recently used first. Each step on it is atomic; at worst something is written twice.
        self._known: dict[tuple[Any, ...], Known] = {}
        self._forgotten: dict[tuple[Any, ...], None] = {}

    def place(
        self, sources: Sequence[Source], folder: str | None, mode: Mode, user: User | None
    ) -> tuple[list[tuple[Content, Mode]], int]:
        """Return for each of *sources* where it lies, and how to map it.

        *user* lives as long as a gather or stream, for which buffers are kept; None for a single call.

        Also returns how many bytes had to be written.

        Raises:
            SharedMemoryError: there is no room for them.
        """
        parts = [source if isinstance(source, Reference) else Buffer(source) for source in sources]
        buffers = {part.key: part for part in parts if isinstance(part, Buffer)}
        contents: dict[tuple[Any, ...], Content] = {}
        fresh = []
        for buffer in buffers.values():
            found = self._find(buffer, user)
            if found is None:
                fresh.append(buffer)
            else:
                contents[buffer.key] = found
        if fresh:
            for buffer, content in zip(fresh, self._write([buffer.source for buffer in fresh], folder), strict=True):
                self._remember(content, buffer, user)
                contents[buffer.key] = content
            self._forget_oldest()
        placed = [
            (part.content, part.mode) if isinstance(part, Reference) else (contents[part.key], mode) for part in parts
        ]
        return placed, sum(buffer.nbytes for buffer in fresh)

    def reference_to(
        self, source: Source, mode: Mode, user: User | None, may_ask: Callable[[], bool] | None
    ) -> Reference | None:
        """Return a reference to what was written of *source* if it surely is the same now. Quick; for the loop.

        *may_ask*: whether it is by now as the call is to see it, so that the kernel may be asked; None if it is not.
        """
        buffer = Buffer(source)
        superseded = superseded_for(buffer, user)
        if superseded is not None:
            return Reference(superseded, mode)
        known = self._known.get(buffer.key)
        if known is None or known.content.nbytes != buffer.nbytes:
            return None
        if not self._is_surely_the_same(known, buffer, user):
            if may_ask is None or buffer.nbytes > _ON_LOOP_BYTES or not known.is_of(buffer.owner):
                return None
            if not (known.is_watched and may_ask() and known.is_untouched()):
                return None
        return Reference(self._use(known, buffer, user), mode)

    def _write(self, sources: list[Any], folder: str | None) -> list[Content]:
        self._reclaim(sum(aligned(source.nbytes) for source in sources))
        hashers = [Digest() for _ in sources]
        hold, offsets, fed = self.lender.write(sources, folder, hashers)
        return [
            Content(hold, offset, source.nbytes, hasher.digest() if fed else None)
            for source, offset, hasher in zip(sources, offsets, hashers, strict=True)
        ]

    def _reclaim(self, size: int) -> None:
        """Give up what is remembered for no gather that still runs, if its memory is what *size* bytes need.

        To write it again costs little more than to compare it, and new memory five times as much.
        """
        if self.lender.has_free(size):
            return
        for known in self._known.copy().values():
            segment = known.content.segment
            if not known.is_in_use and segment.lent == 0 and fits(segment.size, size):
                self._forget(known)
                del known
                if self.lender.has_free(size):  # nobody else held it
                    return

    def give_back(self) -> None:
        """Memory is short, here or elsewhere: keep nothing for later."""
        self._relieve()
        self.lender.give_back()

    def _relieve(self) -> None:
        for known in self._known.copy().values():
            if not known.is_needed:
                self._forget(known)
        self._on_shortage()
        self._on_unused()  # workers are to be told of what will be closed

    # What is known

    def _find(self, buffer: Buffer, user: User | None) -> Content | None:
        superseded = superseded_for(buffer, user)
        if superseded is not None:
            return superseded
        known = self._known.get(buffer.key)
        if known is None or known.content.nbytes != buffer.nbytes:
            return None
        if not (self._is_surely_the_same(known, buffer, user) or known.is_the_same(buffer)):
            known.supersede()
            self._forget(known)
            return None
        return self._use(known, buffer, user)

    def _is_surely_the_same(self, known: Known, buffer: Buffer, user: User | None) -> bool:
        if not known.is_of(buffer.owner):
            return False
        still = buffer.readonly and known.readonly
        return still or known.pinned > 0 or (user is not None and known.is_used_in_moment_of(user))

    def _use(self, known: Known, buffer: Buffer, user: User | None) -> Content:
        known.use(user)
        known.readonly = buffer.readonly
        known.recurs = True
        # To the end; another thread may have forgotten it meanwhile.
        self._known.pop(known.key, None)
        self._known[known.key] = known
        return known.content

    def _remember(self, content: Content, buffer: Buffer, user: User | None) -> Known:
        key = buffer.key
        memory = weakref.ref(self)

        def gone(owner: object) -> None:
            me = memory()
            known = None if me is None else me._known.get(key)
            if me is not None and known is not None and known.owner is owner and not known.pinned:
                me._forget(known)

        try:
            owner = weakref.ref(buffer.owner, gone)
        except TypeError:
            owner = None
        self._on_unused()
        known = Known(buffer, content, owner, recurs=key in self._forgotten)
        known.use(user)
        before = self._known.get(key)
        if before is not None:  # another thread wrote it at the same time, or it is shared
            before.supersede()
        self._known[key] = known
        return known

    def _forget(self, known: Known) -> None:
        known.unwatch()
        if self._known.get(known.key) is known:
            self._known.pop(known.key, None)

    def unpin(self, known: Known) -> None:
        known.pinned -= 1
        self._forget(known)

    def _forget_oldest(self) -> None:
        """Forget what was used least recently, of what is beyond the limits."""
        counts, sizes = {True: 0, False: 0}, {True: 0, False: 0}
        # From the newest on. Another thread, or a finaliser in this one, may change the dict: only its copy is atomic.
        for key, known in reversed(self._known.copy().items()):
            counts[known.recurs] += 1
            sizes[known.recurs] += known.content.nbytes
            allowed = self._recurring_bytes if known.recurs else _LATEST_BYTES
            is_latest = counts[known.recurs] <= (1 if known.recurs else _LATEST_COUNT)
            is_within = sizes[known.recurs] <= allowed and counts[known.recurs] <= _RECURRING_COUNT
            if not (is_latest or is_within or known.pinned):
                self._forget(known)
                self._forgotten[key] = None
        if len(self._forgotten) > _FORGOTTEN_COUNT:
            for key in list(self._forgotten)[:-_FORGOTTEN_COUNT]:
                self._forgotten.pop(key, None)

    @functools.cached_property
    def _recurring_bytes(self) -> int:
        return max(_RECURRING_BYTES, (Room().available() or 0) // _RECURRING_PART)

    # Shares

    def share(self, value: Any, mode: Mode, folder: str | None) -> Shared[Any]:
        """Write *value* into shared memory, for any number of calls until it is closed.

        Raises:
            TypeError: ``mode="r+"``, and it is no array.
            SharedMemoryError: there is no room for it.
        """
        if mode == "r+":
            _check_is_array(value)
        pieces, buffers = pickle_in_slices(value, pause, OutOfBand(0, "c" if mode == "r+" else "r"))
        data = b"".join(pieces)
        parts = [part if isinstance(part, Reference) else Buffer(part) for part in (memoryview(data), *buffers)]
        written = iter(self._write([part.source for part in parts if isinstance(part, Buffer)], folder))
        contents = [next(written) if isinstance(part, Buffer) else part.content for part in parts]
        array, visible = None, None
        if isinstance(value, np.ndarray):
            array = value
            if len(contents) == 2 and not contents[1].is_shared:
                contents[1] = visible = SharedContent(contents[1], mode)
                array = loads(data, buffers=[memoryview(visible.map())])
        # The object itself counts as unchanged from now on, wherever it is passed.
        pins = _Pins()
        if mode != "r+":
            for part, content in zip(parts[1:], contents[1:], strict=True):
                if isinstance(part, Buffer):
                    pins.add(self, self._remember(content, part, None))

        def release() -> None:
            pins.release()
            if visible is not None:
                visible.closed = True

        return Shared(value, mode, array=array, travel=contents, release=release)

    # Time goes by

    def trim(self, unused_since: float) -> tuple[list[Segment], bool]:
        """Forget and close what nobody has used since then.

        Returns the segments closed, and whether there is more that may be so later.
        """
        remains = False
        for known in self._known.copy().values():
            if known.used_at <= unused_since and not known.is_in_use:
                self._forget(known)
            remains = remains or not known.pinned
        closed = self.lender.trim(unused_since) + self.lender.take_closed()
        return closed, remains or any(segment.is_free for segment in list(self.lender.segments.values()))

    def close(self) -> None:
        self._known.clear()
        self.lender.close()
