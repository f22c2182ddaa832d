"""Which entries go: pure decisions, without a disk or a clock."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from aparallel._ground.store import Limits, Listed, Place, Totals, age
from aparallel._memory.disk.eviction import choose

NOW = 1_000_000.0

samples = st.lists(
    st.builds(
        Listed,
        place=st.builds(Place, st.just("f"), st.binary(min_size=32, max_size=32)),
        size=st.integers(1, 1000),
        created=st.just(0.0),
        used=st.floats(0, NOW + 1000),
    ),
    max_size=80,
)


@given(samples, st.integers(0, 100), st.integers(0, 50_000))
def test_a_sample_that_is_everything_frees_what_is_asked_for(sample: list[Listed], entries: int, size: int) -> None:
    totals = Totals(len(sample), sum(entry.size for entry in sample))
    excess = Limits(entries, size).excess(totals)
    chosen = choose(sample, excess, totals, NOW)
    left = [entry for entry in sample if entry not in chosen]
    assert len(left) <= entries
    assert sum(entry.size for entry in left) <= size or not left
    if not excess:
        assert chosen == []


@given(samples, st.integers(1, 100))
def test_what_was_used_longest_ago_goes_first(sample: list[Listed], entries: int) -> None:
    totals = Totals(len(sample), 0)
    chosen = choose(sample, Limits(entries, None).excess(totals), totals, NOW)
    left = [entry for entry in sample if entry not in chosen]
    if chosen and left:
        assert min(age(entry.used, NOW) for entry in chosen) >= max(age(c.used, NOW) for c in left)


@given(samples, st.integers(1, 10_000), st.sampled_from([20_000, 100]))
def test_a_sample_frees_its_share_and_at_least_a_little(sample: list[Listed], excess: int, entries: int) -> None:
    chosen = choose(sample, Totals(excess, 0), Totals(entries, 0), NOW)
    least = 0.2 if entries > 4 * len(sample) else 0.05
    assert len(chosen) == math.ceil(min(1, max(least, excess / entries)) * len(sample))


def test_what_was_used_in_the_future_is_as_old_as_can_be() -> None:
    assert age(NOW - 5, NOW) == 5
    assert age(NOW + 5, NOW) == -5  # clocks of two machines differ a little
    assert age(NOW + 3600, NOW) == math.inf
