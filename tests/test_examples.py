"""Every example runs as a user would run it, and says what its reader is told to expect."""

import asyncio
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
TIME_LIMIT = 120  # seconds; the slowest takes about ten on a busy machine

# What each example must print, as patterns in this order; and what it may write to stderr, each line in full.
STDOUT = {
    "quickstart": [
        r"^\d{2,} modules of .+, \d+\.\d MB$",
        r"^one after the other +\d+\.\d\d s$",
        r"^gather_parallel +\d+\.\d\d s, start-up included$",
        r"^ratio +\d+\.\d\d   on \d+ cores$",
        r"^complexity  function +where$",
        r"(?:^ +\d{2,}  [\w.]+ +[\w.]+:\d+\n){10}\Z",
    ],
    "sum_of_squares": [
        r"\A(?:worker \d+ sums +[\d,]+ to +[\d,]+\n){8}",
        r"^8 chunks: 21,333,325,333,334,000,000$",
    ],
    "reused_pool": [
        r"^round 1: 3\.\d{4} \+- 0\.00\d\d$",
        r"^round 2: 3\.\d{4} \+- 0\.00\d\d$",
        r"^<Pool process n_jobs=2: \d idle, 0 busy, 0 queued>$",
        r"^\d+ rounds, \d+ calls, no more than 2 workers$",
    ],
    "multiprocessing_backend": [
        r"^ *multiprocessing: 9,592 primes below 100,000, counted in other processes$",
        r"^ +threading: 9,592 primes below 100,000, counted in this process$",
    ],
    "shared_memory_threads": [
        r"^12 row means, written by two threads into one array: 499,999\.5 \.\.\. 11,499,999\.5$",
        r"^ValueError: .*sharedmem",
    ],
    "shared_memory_processes": [
        r"^12 row means, written by two processes into one array: 499,999\.5 \.\.\.$",
        r"^ValueError: assignment destination is read-only$",
    ],
    "stream_with_progress": [
        r"^10 of unknown$",
        r"^40 of (?:40|unknown)$",
        r"^40 keys, indexes 0 to 39$",
    ],
    "save_and_load": [
        r"^16 MB written and synced, the loop lives: True$",
        r"^mapped: memmap, \[2000\. 2001\. 2002\.\]$",
        r"^with zlib: \d+% of it$",
        r"^inspected: \(2000, 2000\) <f4, asks for nothing else: True$",
        r"^streamed: \['cat', 'dog'\]$",
        r"^refused: builtins\.print$",
        r"^ChecksumError: one bit of 16 MB was wrong\n\Z",
    ],
    "memoize": [
        r"^100,000: (?:hit|miss: .+)$",
        r"^first time: \d+\.\d ms$",
        r"^second time: \d+\.\d ms$",
        r"^below 100,000 the longest way to 1 has 350 steps, from 77,031$",
        r"^below 200,000 the longest way to 1 has 382 steps, from 156,159$",
        r"^[02] computed, \d+ remembered, \d+ shared$",
        r"^100,000: hit$",
    ],
    "results_in_sqlite": [
        r"^first run: \[2262, 3245, 2262\] primes, 2 computed$",
        r"^second run: \[2262, 3245, 2262\] primes, 0 computed$",
        r"^2 results in results\.db\n\Z",
    ],
    "cancel_and_timeout": [
        r"^timeout=0\.2: .*spin.*0\.2",
        r"^asyncio\.timeout: the gather of 100 calls is over$",
        r"^task\.cancel\(\): CancelledError after 0\.\d s$",
        r"^afterwards: finished after 0\.\d s$",
        r"^<Pool process n_jobs=2: \d idle, 0 busy, 0 queued>$",
    ],
}
VERBOSE_LINE = r"\[gather_parallel\(n_jobs=2\)\]: Done +\d (?:tasks|out of +8) +\| elapsed: +\d+\.\ds(?: finished)?"
STDERR = {"sum_of_squares": VERBOSE_LINE}


def run_example(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONWARNINGS": "error"}
    return subprocess.run(
        [sys.executable, str(EXAMPLES / f"{name}.py"), *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT,
        env=environment,
    )


def assert_in_order(patterns: list[str], text: str) -> None:
    position = 0
    for pattern in patterns:
        match = re.compile(pattern, re.MULTILINE).search(text, position)
        assert match, f"{pattern!r} is missing after character {position} of:\n{text}"
        position = match.end()


def test_every_example_is_expected_here() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(STDOUT)


# A small part of what they do by themselves; all of it takes long.
SMALLER = {"quickstart": [os.path.dirname(asyncio.__file__)]}


@pytest.mark.soak
def test_the_quickstart_parses_the_whole_standard_library() -> None:
    run = run_example("quickstart")
    assert run.returncode == 0, run.stderr
    assert re.match(r"\d{3,} modules of the standard library", run.stdout)
    assert_in_order(STDOUT["quickstart"], run.stdout)


def test_the_quickstart_says_that_a_folder_has_no_modules(tmp_path: Path) -> None:
    run = run_example("quickstart", str(tmp_path))
    assert run.returncode == 1
    assert run.stderr == f"There are no Python modules in {tmp_path}. Name a folder that has some, or none at all.\n"


@pytest.fixture(scope="module")
def runs(request: pytest.FixtureRequest) -> dict[str, subprocess.CompletedProcess[str]]:
    """What each example that is asked for did: they run two at a time."""
    names = [
        item.callspec.params["name"]
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.function is test_example_runs_and_tells
    ]
    with ThreadPoolExecutor(2) as threads:
        return dict(zip(names, threads.map(lambda name: run_example(name, *SMALLER.get(name, [])), names), strict=True))


@pytest.mark.parametrize("name", sorted(STDOUT))
def test_example_runs_and_tells(name: str, runs: dict[str, subprocess.CompletedProcess[str]]) -> None:
    run = runs[name]

    assert run.returncode == 0, run.stderr
    assert_in_order(STDOUT[name], run.stdout)
    if name not in STDERR:
        assert run.stderr == ""
    else:
        lines = run.stderr.splitlines()
        assert lines
        assert all(re.fullmatch(STDERR[name], line) for line in lines), run.stderr
