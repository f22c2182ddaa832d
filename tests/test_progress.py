"""Lines, bar and counts of a running gather, on a clock of the test's own."""

from __future__ import annotations

import builtins
import io
import subprocess
import sys
import timeit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aparallel._parallel.progress import Reporter, format_span, next_line_at


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class TestLines:
    def test_with_a_known_total_lines_tell_the_time_that_remains(self) -> None:
        stream, clock = io.StringIO(), Clock()
        reporter = Reporter(2, 10, False, 4, stream, clock=clock)
        clock.now += 0.5
        reporter.advance(1)
        clock.now += 0.5
        reporter.advance(3)
        clock.now += 0.5
        reporter.advance(4)
        reporter.close(failed=False)
        assert stream.getvalue().splitlines() == [
            "[gather_parallel(n_jobs=2)]: Done   1 out of   4 | elapsed:    0.5s remaining:    1.5s",
            "[gather_parallel(n_jobs=2)]: Done   3 out of   4 | elapsed:    1.0s remaining:    0.3s",
            "[gather_parallel(n_jobs=2)]: Done   4 out of   4 | elapsed:    1.5s finished",
        ]

    def test_without_a_total_lines_count_and_the_last_knows_it(self) -> None:
        stream, clock = io.StringIO(), Clock()
        reporter = Reporter(3, 11, False, None, stream, name="stream_parallel", clock=clock)
        reporter.advance(10)
        clock.now += 90
        reporter.advance(1200)
        reporter.close(failed=False)
        assert stream.getvalue().splitlines() == [
            "[stream_parallel(n_jobs=3)]: Done  10 tasks      | elapsed:    0.0s",
            "[stream_parallel(n_jobs=3)]: Done 1200 tasks      | elapsed:  1.5min",
            "[stream_parallel(n_jobs=3)]: Done 1200 out of 1200 | elapsed:  1.5min finished",
        ]

    def test_a_total_that_becomes_known_is_used_from_then_on(self) -> None:
        stream = io.StringIO()
        reporter = Reporter(1, 11, False, None, stream)
        reporter.advance(1)
        reporter.total_known(3)
        reporter.advance(2)
        first, second = stream.getvalue().splitlines()
        assert "Done   1 tasks " in first
        assert "Done   2 out of   3 " in second

    @pytest.mark.parametrize(("total", "shown"), [(None, "Done   1 tasks     "), (9, "Done   1 out of   9")])
    def test_a_run_that_fails_never_says_finished(self, total: int | None, shown: str) -> None:
        stream = io.StringIO()
        reporter = Reporter(1, 1, False, total, stream)
        reporter.advance(1)
        reporter.close(failed=True)
        last = stream.getvalue().splitlines()[-1]
        assert last == f"[gather_parallel(n_jobs=1)]: {shown} | elapsed:    0.0s stopped"

    def test_an_empty_run_says_so(self) -> None:
        stream = io.StringIO()
        Reporter(1, 1, False, 0, stream).close(failed=False)
        assert stream.getvalue() == "[gather_parallel(n_jobs=1)]: Done   0 out of   0 | elapsed:    0.0s finished\n"

    @pytest.mark.parametrize(("verbose", "where"), [(1, "err"), (50, "err"), (51, "out")])
    def test_lines_go_to_stderr_and_above_50_to_stdout(
        self, capsys: pytest.CaptureFixture[str], verbose: int, where: str
    ) -> None:
        reporter = Reporter(1, verbose, False, 2)
        reporter.advance(1)
        reporter.close(failed=False)
        printed = capsys.readouterr()
        assert printed.out.count("\n") == (2 if where == "out" else 0)
        assert printed.err.count("\n") == (2 if where == "err" else 0)

    @pytest.mark.parametrize("progress", [False, True])
    def test_a_program_without_a_console_runs_on(self, monkeypatch: pytest.MonkeyPatch, progress: bool) -> None:
        monkeypatch.setattr(sys, "stderr", None)
        reporter = Reporter(1, 1, progress, 2)
        reporter.advance(1)
        reporter.close(failed=False)

    def test_slices_told_late_or_twice_change_nothing(self) -> None:
        stream = io.StringIO()
        reporter = Reporter(1, 11, False, 100, stream)
        for done in (5, 5, 3, 6):
            reporter.advance(done)
        assert stream.getvalue().count("\n") == 2

    @pytest.mark.parametrize("verbose", [0, False, -3])
    def test_verbose_0_or_less_prints_nothing(self, capfd: pytest.CaptureFixture[str], verbose: int) -> None:
        reporter = Reporter(1, verbose, False, 2)
        reporter.advance(2)
        reporter.close(failed=False)
        assert capfd.readouterr() == ("", "")


class TestCadence:
    @staticmethod
    def lines(calls: int, total: int | None, verbose: int, slice_size: int = 1) -> int:
        stream = io.StringIO()
        reporter = Reporter(2, verbose, False, total, stream)
        for done in range(slice_size, calls + 1, slice_size):
            reporter.advance(done)
        reporter.close(failed=False)
        return stream.getvalue().count("\n")

    def test_the_higher_verbose_the_more_lines(self) -> None:
        counts = [self.lines(10_000, None, verbose) for verbose in range(12)]
        assert counts == sorted(counts)
        assert len(set(counts)) == len(counts)

    def test_with_a_known_total_about_verbose_lines_are_printed_however_long_the_run(self) -> None:
        for total in (1_000, 100_000):
            for verbose in range(1, 11):
                assert verbose <= self.lines(total, total, verbose) <= verbose + 3

    def test_above_10_every_slice_has_its_line(self) -> None:
        assert self.lines(1_000, None, 11, slice_size=100) == 11
        assert self.lines(1_000, 1_000, 11, slice_size=100) == 10  # the last is the line that says finished

    def test_a_slice_that_passes_many_marks_is_one_line(self) -> None:
        assert self.lines(100_000, None, 10, slice_size=50_000) == 3

    def test_a_long_run_of_unknown_length_prints_few_lines(self) -> None:
        assert self.lines(100_000, None, 1, slice_size=200) < 60
        assert self.lines(100_000, None, 10, slice_size=200) <= 501

    @given(st.integers(0, 10**9), st.none() | st.integers(0, 10**9), st.integers(1, 60))
    def test_the_next_line_is_always_ahead(self, done: int, total: int | None, verbose: int) -> None:
        assert next_line_at(done, total, verbose) > done


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "   0.0s"), (59.94, "  59.9s"), (60, " 1.0min"), (3540, "59.0min"), (7200, "   2.0h"), (360_000, " 100.0h")],
)
def test_time_spans_are_equally_wide(seconds: float, text: str) -> None:
    assert format_span(seconds) == text


class TestFunction:
    def test_it_gets_the_counts_after_each_slice_and_the_final_ones_once(self) -> None:
        seen: list[tuple[int, int | None]] = []
        reporter = Reporter(1, 0, lambda done, total: seen.append((done, total)), None)
        reporter.advance(200)
        reporter.total_known(500)
        reporter.advance(450)
        reporter.advance(500)
        reporter.close(failed=False)
        assert seen == [(200, None), (450, 500), (500, 500)]

    @pytest.mark.parametrize("total", [0, None])
    def test_of_an_empty_run_it_gets_the_final_counts_too(self, total: int | None) -> None:
        seen: list[tuple[int, int | None]] = []
        Reporter(1, 0, lambda *counts: seen.append(counts), total).close(failed=False)
        assert seen == [(0, 0)]

    def test_a_total_that_never_became_known_is_given_at_the_end(self) -> None:
        seen: list[tuple[int, int | None]] = []
        reporter = Reporter(1, 0, lambda *counts: seen.append(counts), None)
        reporter.advance(3)
        reporter.close(failed=False)
        assert seen == [(3, None), (3, 3)]

    def test_of_a_run_that_fails_it_gets_no_final_counts(self) -> None:
        seen: list[tuple[int, int | None]] = []
        reporter = Reporter(1, 0, lambda *counts: seen.append(counts), 9)
        reporter.advance(3)
        reporter.close(failed=True)
        assert seen == [(3, 9)]

    def test_what_it_raises_reaches_the_caller_of_advance_and_closing_after_it_is_quiet(self) -> None:
        def stop(done: int, total: int | None) -> None:
            raise LookupError("no such widget")

        reporter = Reporter(1, 0, stop, 9)
        with pytest.raises(LookupError, match="no such widget"):
            reporter.advance(1)
        reporter.close(failed=True)


@pytest.mark.usefixtures("tqdm_is_loaded")
class TestBar:
    def test_it_shows_counts_total_and_name(self) -> None:
        stream = io.StringIO()
        reporter = Reporter(1, 0, True, None, stream, name="stream_parallel")
        reporter.advance(2)
        reporter.total_known(4)
        reporter.advance(4)
        reporter.close(failed=False)
        last = stream.getvalue().rstrip("\n").rpartition("\r")[2]
        assert last.startswith("stream_parallel: 100%")
        assert "4/4" in last

    def test_it_makes_no_lock_where_it_is_shown(self) -> None:
        script = """
from aparallel._ground.bars import load_tqdm
bar = load_tqdm()
import tqdm.std
tqdm.std.TqdmDefaultWriteLock = None
bar(total=1).close()
"""
        subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)

    def test_of_a_run_that_fails_it_stays_where_it_was(self) -> None:
        stream = io.StringIO()
        reporter = Reporter(1, 0, True, 4, stream)
        reporter.advance(1)
        reporter.close(failed=True)
        assert "1/4" in stream.getvalue().rpartition("\r")[2]

    def test_without_tqdm_the_error_says_what_to_install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        real_import = builtins.__import__

        def without_tqdm(name: str, *args: object) -> object:
            if name.partition(".")[0] == "tqdm":
                raise ModuleNotFoundError(f"No module named {name!r}", name="tqdm")
            return real_import(name, *args)  # type: ignore[arg-type]

        monkeypatch.setattr(builtins, "__import__", without_tqdm)
        with pytest.raises(ModuleNotFoundError, match=r"pip install 'aparallel\[progress\]'") as caught:
            Reporter(1, 0, True, 4)
        assert caught.value.name == "tqdm"


def test_an_unwatched_run_pays_next_to_nothing_for_it() -> None:
    reporter = Reporter(2, 0, False, None)
    best = min(timeit.repeat(lambda: reporter.advance(1), number=10_000, repeat=5)) / 10_000
    assert best < 1e-6
