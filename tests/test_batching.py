"""The pure decisions: how many calls travel together and how far ahead they are drawn."""

from __future__ import annotations

import sys
import threading
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aparallel._ground.timings import Timing
from aparallel._parallel.batching import (
    COPIED_AHEAD_BYTES,
    MESSAGE_CALLS,
    MESSAGE_SECONDS,
    UNREAD_BYTES,
    calls_ahead,
    calls_per_message,
    calls_within,
    fair_share,
    rough_bytes,
)
from aparallel._parallel.parsing import parse_batch_size, parse_pre_dispatch
from aparallel.abc import Batch, Function


@given(st.floats(1e-9, 10), st.integers(1, 10_000))
def test_a_message_lasts_no_longer_than_it_may_unless_one_call_does(seconds: float, share: int) -> None:
    count = calls_per_message(seconds, MESSAGE_SECONDS, share, None)
    assert 1 <= count <= MESSAGE_CALLS
    assert count == 1 or count * seconds <= MESSAGE_SECONDS * 1.001


def test_a_call_of_unknown_length_travels_alone() -> None:
    assert calls_per_message(None, MESSAGE_SECONDS, 100, None) == 1
    assert calls_per_message(None, MESSAGE_SECONDS / 2, 100, None) == 0


@given(st.integers(1, 10**6), st.integers(1, 64))
def test_shares_shrink_so_that_every_worker_has_some_to_the_end(waiting: int, workers: int) -> None:
    share = fair_share(waiting, workers)
    assert share >= 1
    assert share == 1 or share * workers <= waiting + workers


sizes = st.one_of(st.just(0.0), st.floats(1, 1e9))


@given(st.one_of(st.none(), st.floats(0, 100)), sizes, sizes, st.integers(1, 64))
def test_drawing_ahead_keeps_every_worker_fed_and_memory_bounded(
    seconds: float | None, call_bytes: float, result_bytes: float, workers: int
) -> None:
    ahead = calls_ahead(None, seconds, call_bytes, workers, result_bytes=result_bytes)
    assert ahead >= workers
    assert ahead == workers or ahead * call_bytes <= COPIED_AHEAD_BYTES * 1.001
    assert ahead == workers or ahead * result_bytes <= UNREAD_BYTES * 1.001


@pytest.mark.parametrize(
    ("value", "limit"),
    [
        ("auto", None),
        (1, 1),
        (7, 7),
        ("2*n_jobs", 8),
        ("n_jobs", 4),
        ("n_jobs * 3", 12),
        (" 1.5 * n_jobs ", 6),
        ("n_jobs + 1", 5),
        ("2 * (n_jobs - 1) // 4", 1),
        ("10 % n_jobs + n_jobs / 3", 3),
        ("--n_jobs", 4),
        ("12", 12),
    ],
)
def test_pre_dispatch_is_read_as_in_joblib(value: Any, limit: int | None) -> None:
    assert parse_pre_dispatch(value).of(4) == limit


def test_pre_dispatch_all_is_no_limit() -> None:
    limit = parse_pre_dispatch("all").of(4)
    assert limit is not None
    assert limit > 10**15


BAD: list[Any] = [
    0, -1, True, 1.5, "0*n_jobs", "__import__('os')", "2*m_jobs", None, "", "2*n_jobs)", "9**9**9", "n_jobs.real",
    "1 if n_jobs else 2", "'a'*n_jobs", "1j*n_jobs", "1/(n_jobs-4)", "1e400*n_jobs", "(" * 500, "1+" * 20_000 + "1",
    "\0",
]  # fmt: skip


@pytest.mark.parametrize("value", BAD)
def test_a_bad_pre_dispatch_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="pre_dispatch="):
        parse_pre_dispatch(value).of(4)


@pytest.mark.parametrize("value", [0, -3, True, 1.5, "many", None])
def test_a_bad_batch_size_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="batch_size="):
        parse_batch_size(value)


@pytest.mark.parametrize(
    ("value", "least", "most"),
    [
        (b"x" * 1000, 1000, 1000),
        (memoryview(np.zeros(100)), 800, 800),
        (np.zeros(1000), 8000, 8000),
        ({"data": [b"x" * 1000] * 50, "more": []}, 50_000, 110_000),
        ([], 0, 0),
        (5, 0, 0),
    ],
)
def test_what_is_in_a_result_is_told_roughly(value: Any, least: int, most: int) -> None:
    assert least <= rough_bytes(value) <= most


def test_a_result_in_itself_is_told_roughly_too() -> None:
    circle: list[Any] = []
    circle.append(circle)
    assert rough_bytes(circle) < 1000


def test_a_result_that_a_thread_changes_meanwhile_has_some_size() -> None:
    live: dict[int, bytes] = {}
    full = dict.fromkeys(range(3), b"x")
    ended = threading.Event()

    def change() -> None:
        while not ended.is_set():
            live.clear()
            live.update(full)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    thread = threading.Thread(target=change)
    thread.start()
    try:
        assert all(rough_bytes(live) < 1000 for _ in range(50_000))
    finally:
        sys.setswitchinterval(interval)
        ended.set()
        thread.join()


def test_a_result_that_comes_while_numpy_is_being_imported_has_some_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numpy", ModuleType("numpy"))
    assert rough_bytes(object()) == 0


def test_no_code_of_a_result_runs_to_tell_its_size() -> None:
    class Frame:
        @property
        def nbytes(self) -> int:
            raise AssertionError

        def __sizeof__(self) -> int:
            raise AssertionError

        __len__ = __sizeof__

    assert rough_bytes([Frame()]) < 100


@given(st.integers(0, 10**9), st.integers(1, 50), st.lists(st.integers(0, 60), max_size=20))
def test_parts_of_a_batch_have_its_size_together(size: int, calls: int, cuts: list[int]) -> None:
    rest = Batch(object(), Function("f", "f", Timing()), 7, list(range(calls)), size)
    parts = []
    for cut in cuts:
        if cut < len(rest):
            part, rest = rest.split(cut)
            parts.append(part)
    parts.append(rest)
    assert sum(part.size for part in parts) == size
    assert [payload for part in parts for payload in part.payloads] == list(range(calls))
    assert all(part.payloads == list(range(part.first - 7, part.last - 6)) for part in parts)


def test_a_message_has_room_for_so_many_calls_of_a_size() -> None:
    assert calls_within(1000, 0) == MESSAGE_CALLS
    assert [calls_within(1000, size) for size in (1, 300, 1000, 1001)] == [1000, 3, 1, 0]
