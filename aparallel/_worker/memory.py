"""A worker's shared memory: arguments, which it borrows, and results, which it lends. Loaded when first needed."""

from __future__ import annotations

import math
from _pickle import loads

from aparallel._transfer.borrowing import Borrower
from aparallel._transfer.lending import Lender, NoDescriptorError
from aparallel._transfer.out_of_band import NEVER, OutOfBand
from aparallel._transfer.pickling import is_plain_array, pickle_in_pieces, pickle_plain
from aparallel._transfer.writing import Raw

TYPE_CHECKING = False  # as in aparallel/__init__.py
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from aparallel._transfer.borrowing import GivenBack, Loan, Mapped
    from aparallel._transfer.pickling import Pieces
    from aparallel._transfer.segments import Segment
    from aparallel._wire.frames import FreeWhen

# Segments that the parent has and that are kept for when it gives them back; of more, the oldest become its own.
# Each costs a descriptor here.
_MOST_LENT = 64


class WorkerMemory:
    """Both sides of a worker's shared memory.

    *introduce* tells the parent of a new segment. *ask_for_room* has it give back what it keeps for later.
    """

    def __init__(self, introduce: Callable[[Segment], object], ask_for_room: Callable[[], object]) -> None:
        self.borrower = Borrower()
        self._lender = Lender(on_shortage=ask_for_room)
        self._introduce = introduce
        self._introduced: set[int] = set()
        self._discarded: list[int] = []
        # How often unused memory was freed at once since that was told.
        self._freed = 0
        self._results: dict[int, OutOfBand] = {}

    def borrow(self, loans: list[tuple[int, int]]) -> dict[int, Loan]:
        return {number: self.borrower.borrow(number, count) for number, count in loans}

    def load(self, blob: bytes | memoryview, parts: list[tuple[int, int, int, Any]], loans: dict[int, Loan]) -> Any:
        """Unpickle a call whose large buffers are *parts*: (segment, offset, size, mode)."""
        # Of each segment, a call has one private copy: mappings are not free, and a system has not many.
        private: dict[int, Mapped] = {}
        buffers = []
        for number, offset, size, mode in parts:
            loan = loans[number]
            if mode == "c" and number not in private:
                private[number] = loan.mapping(mode)
            buffers.append(loan.view(offset, size, mode, private.get(number) if mode == "c" else None))
        return loads(blob, buffers=buffers)

    def encode(self, value: Any, largest: int, folder: str | None) -> tuple[Pieces, int, list[tuple[int, int]]]:
        """Pickle a result; buffers of more than *largest* bytes go to a segment.

        Returns the pickle in pieces, some of which may be of *value*, the segment's number, and (offset, size) of each
        buffer, if there are any.

        Raises:
            SharedMemoryError: there is no room for them.
        """
        if is_plain_array(value, largest):
            return pickle_plain(value, value.nbytes), 0, []
        buffers = self._results.get(largest)
        if buffers is None:
            buffers = self._results[largest] = OutOfBand(largest, None)
        pieces, taken = pickle_in_pieces(value, buffers)
        if not taken:
            return pieces, 0, []
        sources: list[Any] = [Raw(source) if isinstance(source, memoryview) else source for source in taken]
        try:
            hold, offsets, _ = self._lender.write(sources, folder)
        except NoDescriptorError:  # through the socket, then
            return pickle_in_pieces(value, OutOfBand(NEVER, None))[0], 0, []
        segment = hold.segment
        if segment.number not in self._introduced:
            self._introduced.add(segment.number)
            self._introduce(segment)
        segment.lend(1)
        spans = [(offset, source.nbytes) for offset, source in zip(offsets, sources, strict=True)]
        self._give_away_oldest()
        return pieces, segment.number, spans

    def _give_away_oldest(self) -> None:
        lent = [segment for segment in self._lender.segments.values() if segment.lent]
        oldest = lent[: max(len(lent) - _MOST_LENT, 0)]
        self._lender.drop(oldest)
        self._note_discarded(oldest)

    def _note_discarded(self, segments: list[Segment]) -> None:
        for segment in segments:
            self._introduced.discard(segment.number)
            self._discarded.append(segment.number)

    def update(self, discarded: list[int], given_back: list[GivenBack], free: FreeWhen | None) -> None:
        """Take in what the parent tells."""
        for number in discarded:
            self.borrower.discard(number)
        for number, count, spoiled, lost in given_back:
            segment = self._lender.segments.get(number)
            if segment is not None:
                segment.take_back(count, spoiled or lost)  # what is lost there is of no use again either
        if free == "now":
            self._lender.give_back()
            self._freed += 1
        self._note_discarded(self._lender.trim(math.inf if free else -math.inf))  # those that are spoiled, anyway

    def news(self) -> tuple[list[int], list[GivenBack], int] | None:
        """Return what the parent does not know yet: see MEMORY in ``_wire/frames.py``; None if there is nothing."""
        self._note_discarded(self._lender.take_closed())
        released = self.borrower.released
        if not released and not self._discarded and not self._freed:
            return None
        given_back = [released.popleft() for _ in range(len(released))]
        discarded, self._discarded = self._discarded, []
        freed, self._freed = self._freed, 0
        return discarded, given_back, freed
