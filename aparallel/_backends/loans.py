"""The shared memory between the pool and one worker: what it was lent, and what it lends."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from aparallel._transfer.borrowing import Borrower
from aparallel._wire import frames

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Mapping, Sequence

    from aparallel._backends.channel import Channel
    from aparallel._transfer.borrowing import GivenBack, Loan
    from aparallel._transfer.segments import Segment
    from aparallel._wire.frames import FreeWhen


class Loans:
    """Who has what. Every reference that is sent to the worker counts, until the worker says that it is gone.

    Attributes:
        has_unused: the worker may keep memory that could be freed.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, channel: Channel, on_unused: Callable[[], object]) -> None:
        self._loop = loop
        self._channel = channel
        self._on_unused = on_unused
        self.has_unused = False
        # How often it was asked to free that at once, and has not said that it did.
        self._asked = 0
        # Whether it ever had such memory.
        self._has_lent = False
        # Segments that the worker knows, by number, with the references to them that are out.
        self._lent: dict[int, tuple[Segment, int]] = {}
        # Of these, those of whose descriptors one found no room there.
        self._lost: set[int] = set()
        self._borrower = Borrower(self._on_given_back)
        # Whether the loop is about to tell the worker what is given back.
        self._telling = False

    # What the worker is lent

    def lend(self, references: Mapping[Segment, int]) -> list[tuple[int, int]]:
        """Count references that are about to be sent, and introduce what is new to the worker.

        Returns what the frame says of them.
        """
        for segment, count in references.items():
            number = segment.number
            if number not in self._lent or number in self._lost:
                self._channel.write(frames.SEGMENT, (number, segment.parts.sizes), fds=segment.parts.fds)
                self._lost.discard(number)
            out = self._lent[number][1] if number in self._lent else 0
            self._lent[number] = segment, out + count
            segment.lend(count)
        return [(segment.number, count) for segment, count in references.items()]

    def discard(self, segments: Sequence[Segment]) -> None:
        """Have the worker unmap segments that are used no more."""
        self._lost.difference_update(segment.number for segment in segments)
        numbers = [segment.number for segment in segments if self._lent.pop(segment.number, None) is not None]
        if numbers:
            self._tell(numbers)

    # What it lends

    def introduce(self, number: int, sizes: Sequence[int]) -> None:
        """Take in a segment of the worker's, whose descriptors have come with the frame."""
        self._has_lent = True
        self._borrower.introduce(number, sizes, self._channel.descriptors.popleft(), keep=False)

    def borrow(self, number: int) -> Loan:
        """Take in a reference to one.

        Raises:
            SharedMemoryError: it could not be mapped.
        """
        return self._borrower.borrow(number)

    def update(self, discarded: list[int], given_back: list[GivenBack], answers: int) -> None:
        """Take in what the worker tells: segments of its own that are gone, and references to ours that are.

        *answers*: how often it freed at once what is unused, as it was asked to.
        """
        self._asked -= answers
        for number in discarded:
            self._borrower.discard(number)
        for number, count, spoiled, lost in given_back:
            segment, out = self._lent[number]
            self._lent[number] = segment, out - count
            segment.take_back(count, spoiled)
            if lost:
                self._lost.add(number)

    def free_unused(self) -> None:
        """Have the worker free memory that it keeps for its next results, in the background."""
        if self.has_unused:
            self._tell(free="soon")
            self.has_unused = False

    def free_unused_now(self) -> None:
        """Have the worker free it at once, and what it frees in the background already."""
        if self._has_lent:
            self._asked += 1
            self._tell(free="now")
            self.has_unused = False

    @property
    def is_freeing(self) -> bool:
        """Whether the worker has not yet done what :meth:`free_unused_now` asked for. To be looked at in any thread."""
        return self._asked > 0

    def tell_relieved(self) -> None:
        """Answer the worker, which waits for room, after what it can have back."""
        self._tell()
        self._channel.write(frames.RELIEVED, None)

    def _on_given_back(self) -> None:
        """Nothing here refers to a result's memory any more. Called in any thread, by finalisers."""
        if not self._telling:
            self._telling = True
            with contextlib.suppress(RuntimeError):  # the loop has closed
                self._loop.call_soon_threadsafe(self._tell)

    def _tell(self, discarded: Sequence[int] = (), free: FreeWhen | None = None) -> None:
        self._telling = False
        released = self._borrower.released
        given_back: list[Any] = [released.popleft() for _ in range(len(released))]
        if given_back or discarded or free:
            self._channel.write(frames.MEMORY, (list(discarded), given_back, free))
        if given_back:
            self.has_unused = True
            self._on_unused()

    def close(self) -> None:
        """The worker is dead: it has let go of all it had. What results refer to stays mapped here."""
        for segment, out in self._lent.values():
            # What it had in use, a process that it forked may have still.
            segment.take_back(out, spoiled=out > 0)
        self._lent.clear()
        self._borrower.close()
