"""Which entries go when there are too many. Nothing here touches a disk.

Entries are spread over slots by their keys, which are hashes: each slot is a fair sample of all. So the least
recently used ones of a few slots are about the least recently used ones of all, and what an eviction costs depends on
how much it frees and not on how much there is.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from aparallel._ground.store import age

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aparallel._ground.store import Listed, Totals

SAMPLE: Final = 64
"""Entries to choose among, at least: slots are added to the sample until it has so many."""

# Of a sample, that much goes at least: more of a small sample of many, so that few are looked at for each one that
# goes; less of a large part of everything, so that a small store stays full.
_SHARE = 0.05
_SHARE_OF_MANY = 0.2
_MANY = 4


def choose(sample: Iterable[Listed], excess: Totals, left: Totals, now: float) -> list[Listed]:
    """Choose what of a sample is evicted, least recently used first.

    *left* is everything that has not been looked at yet, this sample included. From it the share
    is taken that must go to free *excess*, and at least 5 %, or 20 % of a small sample, so that the next eviction is a
    while off.
    """
    by_age = sorted(sample, key=lambda entry: -age(entry.used, now))
    least = _SHARE_OF_MANY if left.entries > _MANY * len(by_age) else _SHARE
    entries = math.ceil(_share(excess.entries, left.entries, least) * len(by_age))
    size = _share(excess.bytes, left.bytes, least) * sum(entry.size for entry in by_age)
    chosen: list[Listed] = []
    freed = 0
    for entry in by_age:
        if len(chosen) >= entries and freed >= size:
            break
        chosen.append(entry)
        freed += entry.size
    return chosen


def _share(excess: int, left: int, least: float) -> float:
    if excess <= 0:
        return 0.0
    return min(1.0, max(least, excess / left)) if left > 0 else 1.0
