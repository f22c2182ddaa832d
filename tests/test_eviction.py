"""Which entries go: pure decisions, without a disk or a clock."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from aparallel._ground.store import Limits, Totals, age
from aparallel._memory.disk.eviction import Candidate, choose

NOW = 1_000_000.0

candidates = st.lists(
    st.builds(
        Candidate,
        function=st.just("f"),
        name=st.uuids().map(str),
        size=st.integers(1, 1000),
        created=st.just(0.0),
        used=st.floats(0, NOW + 1000),
    ),
    max_size=80,
)


@given(candidates, st.integers(0, 100), st.integers(0, 50_000))
def test_a_sample_that_is_everything_frees_what_is_asked_for(sample: list[Candidate], entries: int, size: int) -> None:
    totals = Totals(len(sample), sum(candidate.size for candidate in sample))
    excess = Limits(entries, size).excess(totals)
    chosen = choose(sample, excess, totals, NOW)
    left = [candidate for candidate in sample if candidate not in chosen]
    assert len(left) <= entries
    assert sum(candidate.size for candidate in left) <= size or not left
    if not excess:
        assert chosen == []


@given(candidates, st.integers(1, 100))
def test_what_was_used_longest_ago_goes_first(sample: list[Candidate], entries: int) -> None:
    totals = Totals(len(sample), 0)
    chosen = choose(sample, Limits(entries, None).excess(totals), totals, NOW)
    left = [candidate for candidate in sample if candidate not in chosen]
    if chosen and left:
        assert min(age(candidate.used, NOW) for candidate in chosen) >= max(age(c.used, NOW) for c in left)


@given(candidates, st.integers(1, 10_000), st.sampled_from([20_000, 100]))
def test_a_sample_frees_its_share_and_at_least_a_little(sample: list[Candidate], excess: int, entries: int) -> None:
    chosen = choose(sample, Totals(excess, 0), Totals(entries, 0), NOW)
    least = 0.2 if entries > 4 * len(sample) else 0.05
    assert len(chosen) == math.ceil(min(1, max(least, excess / entries)) * len(sample))


def test_what_was_used_in_the_future_is_as_old_as_can_be() -> None:
    assert age(NOW - 5, NOW) == 5
    assert age(NOW + 5, NOW) == -5  # clocks of two machines differ a little
    assert age(NOW + 3600, NOW) == math.inf
