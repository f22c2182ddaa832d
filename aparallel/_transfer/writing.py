"""What is written into shared memory, and how: cut into blocks, which two threads may share out between them."""

from __future__ import annotations

from collections import deque

from aparallel._ground.both_ends import from_both_ends, go_on

TYPE_CHECKING = False  # as in aparallel/__init__.py
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from typing import Any, Protocol

    from aparallel._transfer.shared_memory import Mapping, Parts

    class Source(Protocol):
        """What is written: bytes, in the order in which they are to lie."""

        nbytes: int

        def blocks(self) -> Iterator[Source]:
            """Give it as parts of BLOCK bytes, but for the last, which threads may write; itself, if it has none."""

        def pieces(self) -> Iterable[memoryview]:
            """Give it as contiguous pieces, each of which fits into a core's cache."""

        def copy_to(self, target: Any) -> None:
            """Copy it into an array of as many unsigned bytes."""

    class Feed(Protocol):
        def update(self, data: memoryview, /) -> None: ...

    class Hasher(Protocol):
        def block(self, number: int) -> Feed:
            """Return what is to be fed with that block. If it was asked for before, it begins anew."""

        def stream(self) -> Feed:
            """Return what is to be fed with everything, in order."""


# A thread hashes and writes so much in one go: some 2 ms for new memory. The hash depends on it.
BLOCK = 4 * 1024 * 1024

# What is hashed and then copied at a time: it stays in a core's cache in between, also if two share that.
_PIECE = 256 * 1024


class Raw:
    """A buffer in one piece, to be written."""

    def __init__(self, view: memoryview) -> None:
        self.view = view
        self.nbytes = view.nbytes

    def blocks(self) -> Iterator[Raw]:
        for start in range(0, self.nbytes, BLOCK):
            yield Raw(self.view[start : start + BLOCK])

    def pieces(self) -> Iterator[memoryview]:
        for start in range(0, self.nbytes, _PIECE):
            yield self.view[start : start + _PIECE]

    def copy_to(self, target: Any) -> None:
        import numpy as np

        np.copyto(target, np.frombuffer(self.view, np.uint8))  # without the GIL


class Write:
    """One source on its way to *offset*, and what is fed with it, if anything."""

    __slots__ = ("feed", "offset", "source")

    def __init__(self, offset: int, source: Source, feed: Feed | None) -> None:
        self.offset = offset
        self.source = source
        self.feed = feed

    def into(self, parts: Parts, give_way: Callable[[], object]) -> None:
        """Write it to memory that may not exist yet.

        Raises:
            OSError: there is no room.
        """
        offset = self.offset
        for piece in self.source.pieces():
            # Hashed before, so that a change in between makes the next comparison fail, not succeed.
            if self.feed is not None:
                self.feed.update(piece)
            parts.write(piece, offset)
            offset += len(piece)
            give_way()

    def onto(self, mapping: Mapping, give_way: Callable[[], object], *, is_new: bool) -> None:
        """Copy it to memory that exists. *is_new*: it was not written through *mapping* before."""
        if is_new:
            mapping.populate(self.offset, self.source.nbytes)
            give_way()
        self.source.copy_to(mapping.view(self.offset, self.source.nbytes, readonly=False))
        give_way()


def cut(offsets: Iterable[int], sources: Sequence[Source], hashers: Sequence[Hasher] | None) -> deque[Write]:
    """Return what is to be done to write *sources* at *offsets*: in this order, or in any other, by several threads."""
    writes: deque[Write] = deque()
    for position, (offset, source) in enumerate(zip(offsets, sources, strict=True)):
        hasher = None if hashers is None else hashers[position]
        for number, block in enumerate(source.blocks()):
            feed = None
            if hasher is not None:
                feed = hasher.stream() if block is source else hasher.block(number)
            writes.append(Write(offset + number * BLOCK, block, feed))
    return writes


def do_all(do: Callable[[Write, Callable[[], object]], object], writes: deque[Write], *, with_help: bool) -> None:
    """Do all of *writes*, which are emptied; *with_help* by two threads.

    Raises:
        OSError: there is no room. Any of them may have been done, and any in part.
    """
    if with_help and len(writes) > 1:
        from_both_ends(do, writes)
    else:
        while writes:
            do(writes.popleft(), go_on)
