"""The suite itself is tested here, at a scale at which nothing can be said about speed."""

from __future__ import annotations

import asyncio
import functools
import json
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import run
from suite.baseline import Baseline
from suite.cache_contender import CacheContender, Memoized
from suite.contender import A, Contender, NotOffered, R
from suite.contenders import CACHES, FILES, PARALLEL, Entry
from suite.file_contender import FileContender
from suite.lag import PERIOD, Lag, LagMeter, summarise
from suite.memory import PeakMemory
from suite.report import Report
from suite.rounds import Plan, run_rounds, take_in_process
from suite.targets import TARGETS, LagTarget, RatioTarget
from suite.turn import Turn
from suite.work import SCALES, Measurement, ParallelWork, Setting, WrongResult, affordable_calls
from suite.works import OTHER_WORKS, WORKS
from suite.works.object_files import FileWork

TINY = Setting(SCALES["tiny"], n_jobs=2)

# The cold start of a whole script takes long by nature; one contender tries it below, through run.py.
QUICK_WORKS = [name for name, work in WORKS.items() if isinstance(work, ParallelWork) and name != "cold_start"]
FILE_WORKS = [name for name, work in WORKS.items() if isinstance(work, FileWork)]
CACHE_WORKS = [name for name, work in WORKS.items() if work.contenders is CACHES]

# ray takes seconds to start, for each work.
QUICK_CONTENDERS = [entry for entry in PARALLEL if entry.name != "ray"]


def entries(roster: Sequence[Entry[Any]]) -> list[Any]:
    """Whoever is first, which is aparallel, for every run of the suite; the others take part in the soak tests."""
    return [
        pytest.param(entry, id=entry.name, marks=[pytest.mark.soak] if place > 0 else [])
        for place, entry in enumerate(roster)
    ]


class Inline(Contender):
    """The least that a contender must have. It runs calls on the spot."""

    async def start(self, n_jobs: int) -> None:
        await super().start(n_jobs)

    async def stop(self) -> None:
        pass

    async def run(self, fn: Callable[[A], R], arg: A) -> R:
        return fn(arg)


class Liar(Inline):
    """Every result of a function is the one of its first call."""

    async def start(self, n_jobs: int) -> None:
        await super().start(n_jobs)
        self.first: dict[Any, Any] = {}

    async def run(self, fn: Callable[[A], R], arg: A) -> R:
        return fn(self.first.setdefault(fn, arg))


class Unwilling(Inline):
    async def run(self, fn: Callable[[A], R], arg: A) -> R:
        raise NotOffered("not today")


@pytest.mark.parametrize("entry", entries(QUICK_CONTENDERS))
def test_contender_does_every_work_or_says_why_not(entry: Entry[Contender]) -> None:
    if not entry.is_installed:
        pytest.skip(f"{entry.package} is not installed")

    works = [name for name in QUICK_WORKS if entry in WORKS[name].contenders]
    turns = take_in_process(works, entry.name, TINY)

    assert [turn.work for turn in turns] == works
    for turn in turns:
        assert not turn.failed, turn.reason
        if turn.measurement is None:
            assert entry.name != "aparallel"
            assert turn.reason
        else:
            assert_is_sound(turn.work, turn.measurement)


def assert_is_sound(work: str, measurement: Measurement) -> None:
    assert list(measurement.figures) == [figure.name for figure in WORKS[work].figures]
    for name, value in measurement.figures.items():
        assert math.isfinite(value)
        assert value > 0 or name.startswith("peak memory")
    assert measurement.lag is not None
    assert 0 <= measurement.lag.p50 <= measurement.lag.p99 <= measurement.lag.max


@pytest.mark.parametrize("entry", entries(FILES))
@pytest.mark.parametrize(
    "works", [["array_file", "dicts_file", "small_arrays_file"], pytest.param(FILE_WORKS, marks=pytest.mark.soak)]
)
def test_contender_keeps_every_object_in_a_file_or_says_why_not(entry: Entry[FileContender], works: list[str]) -> None:
    if not entry.is_installed:
        pytest.skip(f"{entry.package} is not installed")

    turns = take_in_process(works, entry.name, TINY)

    assert [turn.work for turn in turns] == works
    for turn in turns:
        assert not turn.failed, turn.reason
        if turn.measurement is None:
            assert entry.name in ("np.save", "safetensors")
        else:
            assert_is_sound(turn.work, turn.measurement)


class Forgetful(FileContender):
    """Writes something else than it is given."""

    async def dump(self, obj: object, path: str) -> None:
        Path(path).write_text("something")

    async def load(self, path: str) -> object:
        return []


@pytest.mark.parametrize("work", ["array_file", "dicts_file", "small_arrays_file"])
def test_files_with_something_else_are_never_measured(work: str) -> None:
    with pytest.raises(WrongResult):
        asyncio.run(WORKS[work].measure(Forgetful(), TINY))


@pytest.mark.parametrize("entry", entries(CACHES))
def test_cache_does_every_work_or_says_why_not(entry: Entry[CacheContender]) -> None:
    if not entry.is_installed:
        pytest.skip(f"{entry.package} is not installed")

    turns = take_in_process(CACHE_WORKS, entry.name, TINY)

    assert [turn.work for turn in turns] == CACHE_WORKS
    for turn in turns:
        assert not turn.failed, turn.reason
        if turn.measurement is None:
            assert entry.name != "aparallel"
            assert turn.reason
        else:
            assert list(turn.measurement.figures) == [figure.name for figure in WORKS[turn.work].figures]
            assert all(math.isfinite(value) and value > 0 for value in turn.measurement.figures.values())


class ForgetfulCache(CacheContender):
    """A cache that remembers nothing, and one that remembers too much."""

    def __init__(self, answer: object = None) -> None:
        self.answer = answer

    async def open(self, directory: str) -> None:
        pass

    async def close(self) -> None:
        pass

    def memoize(self, fn: Callable[[Any], Any]) -> Memoized:
        async def memoized(arg: Any) -> Any:
            return fn(arg) if self.answer is None else self.answer

        return memoized

    memoize_mapped = memoize


@pytest.mark.parametrize("contender", [ForgetfulCache(), ForgetfulCache({"number": -5})], ids=["forgetful", "wrong"])
@pytest.mark.parametrize("work", ["cache_small", "cache_big_argument", "cache_big_result", "cache_mapped_result"])
def test_a_cache_that_computes_again_or_gives_something_else_is_never_measured(
    work: str, contender: CacheContender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SUITE_RUNS", raising=False)
    with pytest.raises((WrongResult, TypeError)):
        asyncio.run(WORKS[work].measure(contender, TINY))


@pytest.mark.soak
@pytest.mark.parametrize("work", QUICK_WORKS)
def test_the_required_verbs_are_enough_for_every_work(work: str) -> None:
    assert_is_sound(work, asyncio.run(WORKS[work].measure(Inline(), TINY)))


@pytest.mark.parametrize("work", QUICK_WORKS)
def test_wrong_results_are_never_measured(work: str) -> None:
    with pytest.raises(WrongResult):
        asyncio.run(WORKS[work].measure(Liar(), TINY))


@pytest.mark.soak
@pytest.mark.parametrize("work", QUICK_WORKS)
def test_what_a_contender_does_not_offer_is_not_measured(work: str) -> None:
    with pytest.raises(NotOffered):
        asyncio.run(WORKS[work].measure(Unwilling(), TINY))


def test_command_prints_a_table_and_writes_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Baseline, "measure", functools.partial(Baseline.measure, seconds=0.05))
    file = tmp_path / "figures.json"

    code = run.main(["cold_start", "--scale=tiny", "--contenders=aparallel,run_in_executor", f"--json={file}"])

    out = capsys.readouterr().out
    assert code == 0, out
    assert "python 3" in out
    assert "cold_start, first result: joblib / aparallel ≥ 4  –  not measured" in out
    assert "where aparallel loses" in out
    written = json.loads(file.read_text())
    assert [(row["figure"], row["contender"]) for row in written["rows"]] == [
        ("first result", "aparallel"),
        ("first result", "run_in_executor"),
        ("exit", "aparallel"),
        ("exit", "run_in_executor"),
    ]
    assert [Turn.from_json(turn).to_json() for turn in written["turns"]] == written["turns"]


def test_command_runs_at_full_scale_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    plans: list[Plan] = []

    def note(plan: Plan, say: object) -> list[Turn]:
        plans.append(plan)
        return []

    monkeypatch.setattr(run, "header", lambda plan, baseline: "")
    nothing = Lag(0.0, 0.0, 0.0)
    monkeypatch.setattr(Baseline, "measure", lambda n_jobs: Baseline(nothing, nothing, nothing, 0.0, 0.0))
    monkeypatch.setattr(run, "run_rounds", note)

    for arguments in ([], ["--quick"], ["--scale=tiny", "one_call", "--seconds=7"]):
        assert run.main(arguments) == 0

    assert [plan.setting.scale.name for plan in plans] == ["full", "quick", "tiny"]
    assert [[work.name for work in plan.works] for plan in plans] == [OTHER_WORKS, OTHER_WORKS, ["one_call"]]
    assert [plan.seconds for plan in plans] == [None, None, 7.0]


@pytest.mark.parametrize(
    ("argument", "complaint"),
    [("tiny_balls", "no such work: tiny_balls"), ("--contenders=loki", "no such contender: loki; there are ai")],
)
def test_command_refuses_names_that_it_does_not_know(
    argument: str, complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run.main([argument])
    assert complaint in capsys.readouterr().err


def test_a_peer_that_is_missing_and_one_that_comes_too_late_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = entry_of("absent", package="no_such_package")
    late = entry_of("late")
    monkeypatch.setattr(WORKS["one_call"], "contenders", (absent, late))

    turns = list(run_rounds(Plan([WORKS["one_call"]], TINY, seconds=-1.0)))

    assert [(turn.contender, turn.reason) for turn in turns] == [("absent", "not installed"), ("late", "no time left")]


def test_a_contender_that_breaks_costs_its_own_turn_only() -> None:
    (turn,) = take_in_process(["one_call"], "nobody", TINY)
    assert turn.failed
    assert turn.reason == "KeyError: 'nobody'"


def test_rounds_are_interleaved(monkeypatch: pytest.MonkeyPatch) -> None:
    for work in ("one_call", "tiny_calls"):
        monkeypatch.setattr(WORKS[work], "contenders", (entry_of("a"), entry_of("b")))
    monkeypatch.setattr("suite.rounds.take_in_process", lambda works, name, *_: [turn_of(works[0], name, 1.0)])

    turns = list(run_rounds(Plan([WORKS["one_call"], WORKS["tiny_calls"]], Setting(SCALES["quick"], n_jobs=2))))

    one_round = [("one_call", "a"), ("one_call", "b"), ("tiny_calls", "a"), ("tiny_calls", "b")]
    assert [(turn.work, turn.contender) for turn in turns] == 2 * one_round


class TestReport:
    def test_quotes_medians_and_ratios_to_aparallel(self) -> None:
        ours = [turn_of("tiny_calls", "aparallel", value) for value in (1.0, 9.0, 2.0)]
        theirs = [turn_of("tiny_calls", "joblib", value) for value in (8.0, 7.0, 99.0)]

        row = Report.of([*ours, *theirs]).row("tiny_calls", "per call", "joblib")

        assert row is not None
        assert (row.value, row.lowest, row.highest, row.rounds, row.ratio) == (8.0, 7.0, 99.0, 3, 4.0)

    def test_says_where_aparallel_loses_and_whether_that_is_certain(self) -> None:
        report = Report.of(
            [
                *(turn_of("one_call", "aparallel", value) for value in (50.0, 60.0, 70.0)),
                *(turn_of("one_call", "joblib", value) for value in (40.0, 41.0, 42.0)),
                *(turn_of("one_call", "loky", value) for value in (40.0, 41.0, 52.0)),
                *(turn_of("one_call", "ray", value) for value in (400.0, 410.0, 420.0)),
            ]
        )

        assert report.losses() == [
            "one_call, median: aparallel 60.0 µs/call; better: joblib 41.0, loky 41.0 (ranges overlap)"
        ]

    def test_a_longer_held_loop_is_a_loss(self) -> None:
        held, free = Lag(0.1, 5.0, 9.0), Lag(0.1, 3.0, 20.0)
        report = Report.of([turn_of("tiny_calls", "aparallel", 1.0, held), turn_of("tiny_calls", "joblib", 2.0, free)])
        assert report.losses() == ["tiny_calls, lag p99: aparallel 5.00 ms; better: joblib 3.00"]

    def test_memory_is_compared_for_equal_numbers_of_calls_only(self) -> None:
        report = Report.of(
            [
                turn_of("long_stream", "aparallel", 5.0, calls=100),
                turn_of("long_stream", "joblib", 2.0, calls=100),
                turn_of("long_stream", "loky", 2.0, calls=10),
            ]
        )
        assert report.losses() == [
            "long_stream, per call: aparallel 5.00 µs/call; better: joblib 2.00, loky 2.00",
            "long_stream, peak memory: aparallel 5.00 MB; better: joblib 2.00",
        ]

    def test_tells_how_many_times_the_floor_everybody_takes(self) -> None:
        figures = {"20 calls": 0.3, "peak memory": 1.0, "peak memory, shared": 1.0}
        report = Report.of(
            [
                Turn("shared_array", name, Measurement({**figures, "20 calls": value}, copied_mb={"20 calls": 200.0}))
                for name, value in (("aparallel", 0.3), ("ray", 0.4))
            ]
        )
        assert report.floors(0.001) == [["shared_array, 20 calls", "0.200 s", "aparallel 1.50, ray 2.00"]]
        assert "shared_array, 20 calls  0.200 s  aparallel 1.50, ray 2.00" in report.text(0.001)
        assert report.floors(0.0) == []

    def test_the_shared_part_of_memory_is_told_and_is_no_loss(self) -> None:
        turns = [
            Turn(
                "shared_array", name, Measurement({"20 calls": 1.0, "peak memory": 9.0, "peak memory, shared": shared})
            )
            for name, shared in (("aparallel", 8.0), ("ray", 2.0))
        ]
        report = Report.of(turns)
        row = report.row("shared_array", "peak memory, shared", "ray")
        assert row is not None
        assert (row.value, row.ratio) == (2.0, None)
        assert report.losses() == []

    def test_does_not_claim_to_win_unmeasured(self) -> None:
        text = Report.of([turn_of("one_call", "joblib", 1.0)]).text()
        assert text.endswith("where aparallel loses\n  (unknown: aparallel was not measured)")

    def test_computes_the_targets(self) -> None:
        report = Report.of(
            [
                turn_of("one_call", "aparallel", 100.0, Lag(0.1, 3.0, 9.0)),
                turn_of("one_call", "run_in_executor", 250.0),
                turn_of("one_call", "anyio.to_process", 90.0),
            ]
        )
        assert [(verdict.text, verdict.outcome, verdict.measured) for verdict in report.verdicts()] == [
            ("one_call, median: anyio.to_process / aparallel ≥ 1", "missed", 0.9),
            ("one_call, median: run_in_executor / aparallel ≥ 2", "reached", 2.5),
            ("one_call: lag p99 ≤ 2 ms", "missed", 3.0),
        ]

    @pytest.mark.parametrize(("failed", "outcome"), [(1.0, "reached"), (2.0, "missed")])
    def test_computes_targets_that_are_numbers(self, failed: float, outcome: str) -> None:
        report = Report.of([turn_of("web_crash", "aparallel", failed), turn_of("web_crash", "blocking", 75.0)])
        (verdict,) = report.verdicts()
        assert (verdict.text, verdict.outcome, verdict.measured) == ("web_crash, failed requests ≤ 1", outcome, failed)

    def test_gathers_the_reasons_for_what_is_missing(self) -> None:
        report = Report.of(
            [
                turn_of("one_call", "aparallel", 1.0),
                Turn("one_call", "ray", reason="not installed"),
                Turn("tiny_calls", "ray", reason="not installed"),
                Turn("tiny_calls", "mpire", reason="TypeError: no", failed=True),
            ]
        )
        assert "ray: not installed (one_call, tiny_calls)\n  mpire: failed: TypeError: no (tiny_calls)" in report.text()

    def test_columns_are_aligned(self) -> None:
        turns = [turn_of(work, name, 1e4 / len(name)) for work in QUICK_WORKS for name in ("aparallel", "joblib")]
        table, *_ = Report.of(turns).text().partition("\n\ntargets")
        assert len({len(line) for line in table.splitlines() if line}) == 1


def entry_of(name: str, package: str | None = None) -> Entry[Contender]:
    """Somebody who takes part but is never created."""
    return Entry(name, "nowhere", "Nobody", package)


def turn_of(work: str, contender: str, value: float, lag: Lag | None = None, calls: int = 1) -> Turn:
    figures = {figure.name: value for figure in WORKS[work].figures}
    return Turn(work, contender, Measurement(figures, lag, calls))


def test_every_target_names_what_is_measured() -> None:
    for target in TARGETS:
        work = WORKS[target.work]
        if not isinstance(target, LagTarget):
            assert target.figure in {figure.name for figure in work.figures}
        if isinstance(target, RatioTarget):
            assert target.contender in {entry.name for entry in work.contenders}


def test_lag_meter_sees_a_hold_at_the_very_end() -> None:
    async def hold() -> Lag:
        async with LagMeter() as meter:
            await asyncio.sleep(5 * PERIOD)
            time.sleep(0.05)  # noqa: ASYNC251  # this is the hold
        return meter.lag

    assert asyncio.run(hold()).max >= 45


def test_lag_counts_a_hold_for_every_tick_that_it_swallowed() -> None:
    on_time = [0.0] * 900
    lag = summarise([*on_time, 100 * PERIOD])
    assert lag.p50 == 0
    assert lag.p99 == pytest.approx(90, abs=1.5)
    assert lag.max == pytest.approx(100)


def test_peak_memory_counts_what_is_gone_again() -> None:
    memory = PeakMemory()
    block = bytearray(200_000_000)  # the kernel may take back some of what was there, which counts against it
    block[::4096] = b"x" * len(block[::4096])
    del block
    assert 150 <= memory.growth <= 230


@pytest.mark.parametrize(("seconds_per_call", "calls"), [(0.0, 1_000), (0.004, 100)])
def test_slow_contenders_get_fewer_calls(seconds_per_call: float, calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    async def timed(doing: Awaitable[int]) -> tuple[float, int]:
        return seconds_per_call * await doing, 0

    async def do(calls: int) -> int:
        return calls

    monkeypatch.setattr("suite.work.timed", timed)
    assert asyncio.run(affordable_calls(do, 1_000, SCALES["tiny"])) == calls
