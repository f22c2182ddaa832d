"""Calls that are drawn in the moment of a large one, and wait until that has been written. Not loaded in a child.

A large call is encoded in a thread, and what comes after it may carry the same arrays: each look at whether these are
still as they were costs their hash. So calls that surely were made in the same moment are drawn and pickled with the
large one, but for its buffers, and refer to these as they were then.
"""

from __future__ import annotations

import time
from collections import deque
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

from aparallel._ground.call import Call
from aparallel._transfer.out_of_band import Awaited
from aparallel._transfer.shipment import with_references

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from aparallel._transfer.out_of_band import Reference, Source
    from aparallel._transfer.pickling import Pieces
    from aparallel.abc import Drawn, Function

# Calls are drawn together with a large one for this long, at about 20 µs each.
_HOLD_SECONDS = 0.001

# The clock is read after so many calls.
_CLOCK_EVERY = 64


class Held(NamedTuple):
    """A call that is pickled, though some of the buffers that it needs may not be written yet.

    Attributes:
        sources: what the pickle needs, in its order: references to what is written, and Awaited.
        places: where the awaited lie.
    """

    call: Call[Any]
    function: Function
    pieces: Pieces
    sources: list[Source]
    places: frozenset[Any]


class Holding:
    """Holds calls back until the large one before them has been written.

    Args:
        pickled: pickles a call as it is now, without its large buffers; None if it has none, or is one for a thread.
        refer: returns a reference to what was awaited, as it was when it was held; None if it was not written.
    """

    def __init__(
        self, pickled: Callable[[Call[Any]], Held | None], refer: Callable[[Awaited], Reference | None]
    ) -> None:
        self._pickled = pickled
        self._refer = refer
        self._held: deque[Held] = deque()
        # Calls that count as not drawn yet, though the iterator has given them already.
        self._returned: deque[Call[Any]] = deque()

    def is_empty(self) -> bool:
        """Whether nothing was taken from the iterator too early."""
        return not self._held and not self._returned

    def not_drawn(self, calls: Iterator[Any]) -> Iterator[Any]:
        """Return what comes next of *calls*, with what was taken from it too early."""
        return chain(_popped(self._returned), calls) if self._returned else calls

    def hold(self, large: Call[Any], calls: Iterator[Any]) -> None:
        """Draw those of *calls* that carry nothing large but what *large* does: nothing can have changed it since."""
        about = self._pickled(large)
        if about is None:
            return
        deadline = time.monotonic() + _HOLD_SECONDS
        for call in calls:
            held = self._pickled(call) if type(call) is Call else None
            if held is None or not held.places <= about.places:
                self._returned.appendleft(call)
                break
            self._held.append(held)
            if time.monotonic() > deadline:
                break

    def draw(self, limit: int, deadline: float, drawn: Drawn) -> bool:
        """Draw calls that were held, up to *limit* and the *deadline*; return whether none is held any more."""
        while self._held and drawn.count < limit and time.monotonic() < deadline:
            self._draw(min(limit - drawn.count, _CLOCK_EVERY), drawn)
        return not self._held

    def _draw(self, limit: int, drawn: Drawn) -> None:
        for _ in range(min(limit, len(self._held))):
            held = self._held[0]
            parts = [self._refer(source) if isinstance(source, Awaited) else source for source in held.sources]
            if any(part is None for part in parts):  # it was not written: there was no room
                self._returned.extendleft(waiting.call for waiting in reversed(self._held))
                self._held.clear()
                break
            self._held.popleft()
            drawn.group_for(held.function).append(with_references(held.pieces, parts))
            drawn.count += 1


def _popped(calls: deque[Call[Any]]) -> Iterator[Call[Any]]:
    while calls:
        yield calls.popleft()
