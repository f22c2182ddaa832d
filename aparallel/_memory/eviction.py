"""Which entries go when there are too many. Nothing here touches a disk.

Entries are spread over slots by their keys, which are hashes: each slot is a fair sample of all. So the least
recently used ones of a few slots are about the least recently used ones of all, and what an eviction costs depends on
how much it frees and not on how much there is.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

SAMPLE: Final = 64
"""Entries to choose among, at least: slots are added to the sample until it has so many."""

# Of a sample, that much goes at least: more of a small sample of many, so that few are looked at for each one that
# goes; less of a large part of everything, so that a small store stays full.
_SHARE = 0.05
_SHARE_OF_MANY = 0.2
_MANY = 4
# An entry used "later" than this many seconds from now was used under a clock that was wrong.
_CLOCK_SLACK = 60.0


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


class Totals(NamedTuple):
    """How many entries, and how many bytes they have."""

    entries: int
    bytes: int

    def __bool__(self) -> bool:
        return self.entries > 0 or self.bytes > 0


class Candidate(NamedTuple):
    """An entry that may be evicted.

    Attributes:
        function: the identifier of its function.
        name: of its file, which is its key in hexadecimal digits.
        size: in bytes, with what lies beside it.
        created, used: seconds since 1970.
        beside: whether it has a file beside.
    """

    function: str
    name: str
    size: int
    created: float
    used: float
    beside: bool


def age(then: float, now: float) -> float:
    """Return how many seconds ago *then* was; infinity if that lies in the future, so that nothing lives for ever."""
    return now - then if then <= now + _CLOCK_SLACK else math.inf


def choose(candidates: Iterable[Candidate], excess: Totals, left: Totals, now: float) -> list[Candidate]:
    """Choose what of a sample is evicted, least recently used first.

    *left* is everything that has not been looked at yet, this sample included. From it the share
    is taken that must go to free *excess*, and at least 5 %, or 20 % of a small sample, so that the next eviction is a
    while off.
    """
    by_age = sorted(candidates, key=lambda candidate: -age(candidate.used, now))
    least = _SHARE_OF_MANY if left.entries > _MANY * len(by_age) else _SHARE
    entries = math.ceil(_share(excess.entries, left.entries, least) * len(by_age))
    size = _share(excess.bytes, left.bytes, least) * sum(candidate.size for candidate in by_age)
    chosen: list[Candidate] = []
    freed = 0
    for candidate in by_age:
        if len(chosen) >= entries and freed >= size:
            break
        chosen.append(candidate)
        freed += candidate.size
    return chosen


def _share(excess: int, left: int, least: float) -> float:
    if excess <= 0:
        return 0.0
    return min(1.0, max(least, excess / left)) if left > 0 else 1.0
