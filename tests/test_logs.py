"""Log records and warnings of workers are this process's: its levels, handlers, filters; all of them, in order."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import errno
import logging
import marshal
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import logged
import numpy as np
import pytest
from conftest import child_processes, own_threads
from hypothesis import given
from hypothesis import strategies as st
from logged import request_id

from aparallel import Pool, delayed
from aparallel._backends import log_source, logs
from aparallel._backends.log_records import RecordHandler
from aparallel._backends.log_source import MOST_AHEAD
from aparallel._ground import forks
from aparallel._wire import records
from aparallel.errors import BrokenWorkerError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


PATIENCE = logs._PATIENCE_SECONDS


class Collector(logging.Handler):
    """Keeps records. It can be held up, as a handler that writes to a slow disk is."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []
        self.threads: set[str] = set()
        self.open = threading.Event()
        self.open.set()
        self.arrived = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.arrived.set()
        assert self.open.wait(60)
        self.threads.add(threading.current_thread().name)
        self.records.append(record)

    @property
    def messages(self) -> list[str]:
        return [record.getMessage() for record in self.records]


@pytest.fixture
def collector() -> Iterator[Collector]:
    logger, handler = logging.getLogger("logged"), Collector()
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    yield handler
    handler.open.set()
    logger.propagate = True
    logger.setLevel(logging.NOTSET)
    logger.removeHandler(handler)


@pytest.fixture(autouse=True)
def machine_may_be_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Results wait for records as long as it takes: most promises here are about order, not about 0.1 seconds."""
    monkeypatch.setattr("aparallel._backends.logs._PATIENCE_SECONDS", 30.0)


@pytest.fixture
def as_users_have_it(machine_may_be_slow: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aparallel._backends.logs._PATIENCE_SECONDS", PATIENCE)


async def until(condition: Callable[[], object]) -> None:
    with anyio.fail_after(20):
        while not condition():  # noqa: ASYNC110 (threads and processes tell no event)
            await anyio.sleep(0.005)


# What arrives


async def test_a_record_arrives_with_all_that_it_has(collector: Collector) -> None:
    before = time.time()
    async with Pool(1) as pool:
        pid = await pool.run(delayed(logged.say)("%s of %d", np.arange(3), 7, request_id="r-17", size=np.float64(2)))
    (record,) = collector.records
    assert record.getMessage() == "[0 1 2] of 7"
    assert (record.name, record.levelname, record.levelno) == ("logged.sub", "INFO", logging.INFO)
    assert (record.request_id, record.size, type(record.size)) == ("r-17", 2.0, np.float64)
    assert (record.process, record.processName, record.threadName) == (pid, "MainProcess", "MainThread")
    assert (record.filename, record.module, record.funcName) == ("logged.py", "logged", "say")
    assert Path(record.pathname) == Path(logged.__file__)
    assert "logging.getLogger(name).log(" in Path(record.pathname).read_text().splitlines()[record.lineno - 1]
    assert before <= record.created <= time.time()
    assert record.msecs == pytest.approx(record.created % 1 * 1000, abs=1)
    here = logging.makeLogRecord({})
    assert record.relativeCreated == pytest.approx(here.relativeCreated - (here.created - record.created) * 1000, abs=1)
    assert (record.args, record.exc_info, record.exc_text, record.stack_info) == (None, None, None, None)
    assert hasattr(record, "taskName") == (sys.version_info >= (3, 12))


async def test_an_exception_arrives_as_text_and_the_stack_too(collector: Collector) -> None:
    async with Pool(1) as pool:
        with pytest.raises(LookupError, match="after the record"):
            await pool.run(logged.fail)
        (record,) = collector.records
    text = logging.Formatter().format(record)
    assert text.startswith("it failed\nTraceback (most recent call last):\n")
    assert "ZeroDivisionError: by the test" in text
    assert "Stack (most recent call last):" in text
    assert "in fail" in text


async def test_what_cannot_be_pickled_arrives_as_text(collector: Collector) -> None:
    def say() -> None:
        lock = threading.Lock()
        logging.getLogger("logged").warning("%s", lock, extra={"lock": lock, "bad": logged.NoRepr(), "one": 1})

    async with Pool(1) as pool:
        await pool.run(say)
        await pool.run(logged.say_what_is_not_here)
    first, second = collector.records
    assert "unlocked _thread.lock" in first.getMessage()
    assert first.lock.startswith("<unlocked _thread.lock")
    assert first.bad == "<NoRepr, whose repr() raised ValueError>"
    assert first.one == 1
    assert second.gone == "<not rebuilt here: RuntimeError: not in the parent>"


async def test_a_message_that_cannot_be_formatted_is_reported_by_the_worker_and_costs_nothing_else(
    collector: Collector, capfd: pytest.CaptureFixture[str]
) -> None:
    async with Pool(1) as pool:
        await pool.run(delayed(logged.say)("%d", "no number"))
        await pool.run(logged.say)
    assert collector.messages == ["hello"]
    assert "--- Logging error ---" in capfd.readouterr().err


async def test_a_level_that_has_a_name_here_gets_it(collector: Collector) -> None:
    logging.addLevelName(27, "NOTICE")
    async with Pool(1) as pool:
        await pool.run(delayed(logged.say)(level=27))
    assert collector.records[0].levelname == "NOTICE"


async def test_the_programs_record_factory_makes_the_records(collector: Collector) -> None:
    usual = logging.getLogRecordFactory()

    def factory(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = usual(*args, **kwargs)
        record.service = "mine"
        return record

    logging.setLogRecordFactory(factory)
    try:
        async with Pool(1) as pool:
            await pool.run(logged.say)
    finally:
        logging.setLogRecordFactory(usual)
    assert collector.records[0].service == "mine"
    assert collector.messages == ["hello"]


async def test_a_record_of_many_megabytes_arrives_whole(collector: Collector) -> None:
    async with Pool(1) as pool:
        await pool.run(logged.say_all, 1, 20_000_000)
    assert [len(message) for message in collector.messages] == [20_000_001]


async def test_filters_of_this_process_apply(collector: Collector) -> None:
    logger = logging.getLogger("logged.sub")

    def unwanted(record: logging.LogRecord) -> bool:
        return "unwanted" not in record.getMessage()

    logger.addFilter(unwanted)
    try:
        async with Pool(1) as pool:
            await pool.run(logged.say, "unwanted")
            await pool.run(logged.say, "wanted")
    finally:
        logger.removeFilter(unwanted)
    assert collector.messages == ["wanted"]


@pytest.mark.parametrize("error", [ValueError, SystemExit])
async def test_a_handler_that_raises_is_reported_as_logging_does_and_costs_nothing_else(
    collector: Collector, capsys: pytest.CaptureFixture[str], error: type[BaseException]
) -> None:
    def refuse(record: logging.LogRecord) -> bool:
        if record.getMessage() == "0":
            raise error("in a filter")
        return True

    collector.addFilter(refuse)
    async with Pool(1) as pool:
        await pool.run(logged.say_all, 3)
    assert collector.messages == ["1", "2"]
    report = capsys.readouterr().err
    assert "--- Logging error ---" in report
    assert f"{error.__name__}: in a filter" in report


# When, and in which order


async def test_records_are_handled_when_a_call_has_returned(collector: Collector) -> None:
    async with Pool(2) as pool:
        for count in range(1, 6):
            await pool.run(logged.say)
            assert len(collector.records) == count
        await pool.gather(delayed(logged.say)(str(i)) for i in range(100))
        assert len(collector.records) == 105
        async with pool.stream((delayed(logged.say)(f"s{i}") for i in range(20)), ordered=False) as results:
            async for _ in results:
                assert f"s{results.index}" in collector.messages


async def test_records_of_an_initializer_are_handled_when_the_pool_is_warm(collector: Collector) -> None:
    async with Pool(2, initializer=logged.say) as pool:
        await pool.warm_up()
        assert len(collector.records) == 2


async def test_handlers_run_in_one_thread_which_starts_with_the_first_record(collector: Collector) -> None:
    async with Pool(2) as pool:
        await pool.gather(delayed(abs)(i) for i in range(10))
        assert own_threads() == []
        await pool.gather(delayed(logged.say)() for _ in range(10))
        assert sorted(thread.name for thread in own_threads()) == ["aparallel-logs", "aparallel-logs-reader"]
    assert collector.threads == {"aparallel-logs"}
    assert own_threads() == []


async def test_records_of_each_worker_arrive_in_order(collector: Collector) -> None:
    async with Pool(2) as pool:
        await pool.gather([delayed(logged.say_all)(2000, 3)] * 2)
    by_worker: dict[Any, list[str]] = {}
    for record in collector.records:
        by_worker.setdefault(record.process, []).append(record.getMessage().rstrip("."))
    expected = [str(number) for number in range(2000)]
    assert all(messages in (expected, expected * 2) for messages in by_worker.values())
    assert sum(map(len, by_worker.values())) == 4000


@pytest.mark.parametrize("short", ["descriptors", "threads"])
async def test_records_wait_in_the_pipe_while_nothing_can_be_had_to_read_them(
    collector: Collector, short: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Thread.start

    def refuse_a_pipe() -> tuple[int, int]:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    def refuse_a_thread(thread: threading.Thread) -> None:
        if thread.name == "aparallel-logs-reader":
            raise RuntimeError("can't start new thread")
        start(thread)

    async with asyncio.timeout(20), Pool(1) as pool:
        await pool.warm_up()
        with monkeypatch.context() as patch:
            if short == "descriptors":
                patch.setattr(os, "pipe", refuse_a_pipe)
            else:
                patch.setattr(threading.Thread, "start", refuse_a_thread)
            pids = {await pool.run(logged.say, "first"), await pool.run(logged.say, "second")}
        assert collector.messages == []
        pids.add(await pool.run(logged.say, "third"))
        assert collector.messages == ["first", "second", "third"]
        assert len(pids) == 1


async def test_records_of_threads_and_forked_children_are_whole_and_in_order(collector: Collector) -> None:
    async with Pool(1) as pool:
        await pool.run(logged.say_in_threads_and_forks, 50, 9000)
        assert len(collector.records) == 200
    for who in "abxy":
        mine = [message for message in collector.messages if message.startswith(who)]
        assert mine == [f"{who} {number} {who * 9000}" for number in range(50)]


@pytest.mark.parametrize("how", ["exit", "segfault", "kill"])
async def test_all_records_before_a_crash_are_handled_before_its_error(collector: Collector, how: str) -> None:
    async with Pool(1) as pool:
        for _ in range(3):
            collector.records.clear()
            with pytest.raises(BrokenWorkerError):
                await pool.run(logged.say_and_die, 200, how)
            assert collector.messages == [str(number) for number in range(200)]


async def kill_while_it_logs(collector: Collector, path: Path, seed: int) -> None:
    collector.records.clear()
    path.write_bytes(b"%12d" % 0)
    wait = random.Random(seed).randrange(1, 2000)
    async with Pool(1) as pool:
        await pool.warm_up()
        call = asyncio.ensure_future(pool.run(logged.say_and_note, str(path), 10**9, seed % 3 * 3000))
        await until(lambda: int(path.read_bytes()) >= wait)
        (worker,) = [pid for pid in child_processes() if is_busy(pid, path)]
        os.kill(worker, signal.SIGKILL)
        with pytest.raises(BrokenWorkerError):
            await call
    numbers = [int(message.rstrip(".")) for message in collector.messages]
    handed_over = int(path.read_bytes())
    assert numbers == list(range(len(numbers)))
    assert handed_over <= len(numbers) <= handed_over + 1
    assert handed_over >= wait


def is_busy(pid: int, path: Path) -> bool:
    """Whether a process has the file open."""
    with contextlib.suppress(FileNotFoundError):
        return any(os.path.realpath(f"/proc/{pid}/fd/{fd}") == str(path) for fd in os.listdir(f"/proc/{pid}/fd"))
    return False


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="looks for the worker in /proc")
@pytest.mark.parametrize("seed", range(4))
async def test_records_before_a_sigkill_at_any_moment_are_a_prefix_without_gaps(
    collector: Collector, tmp_path: Path, seed: int
) -> None:
    await kill_while_it_logs(collector, tmp_path / "noted", seed)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(4, 104))
async def test_records_before_a_sigkill_at_any_moment_are_a_prefix_without_gaps_many_times(
    collector: Collector, tmp_path: Path, seed: int
) -> None:
    await kill_while_it_logs(collector, tmp_path / "noted", seed)


# Slow handlers


@pytest.mark.usefixtures("as_users_have_it")
async def test_a_stuck_handler_holds_a_result_for_a_tenth_of_a_second_and_the_next_not_at_all(
    collector: Collector,
) -> None:
    async with Pool(1) as pool:
        await pool.run(logged.say)
        collector.open.clear()
        start = time.monotonic()
        await pool.run(logged.say, "held")
        first = time.monotonic() - start
        for _ in range(20):
            await pool.run(logged.say, "more")
        rest = time.monotonic() - start - first
        assert len(collector.records) == 1
        collector.open.set()
        await until(lambda: len(collector.records) == 22)
        # The handler keeps up again, so a result waits for its records again.
        await pool.run(logged.say, "last")
        assert collector.messages[-1] == "last"
    assert 0.09 < first < 2
    assert rest < 1.5
    assert len(collector.records) == 23


async def test_a_result_that_waits_for_a_handler_can_be_cancelled(collector: Collector) -> None:
    async with Pool(1) as pool:
        await pool.run(logged.say)
        collector.open.clear()
        collector.arrived.clear()
        call = asyncio.ensure_future(pool.run(logged.say, "held"))
        await until(lambda: pool.statistics().completed == 2)
        assert not call.done()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert not collector.open.is_set()
        assert (pool.statistics().idle, pool.statistics().running) == (1, 0)
        collector.open.set()
    assert collector.messages == ["hello", "held"]


@pytest.mark.usefixtures("as_users_have_it")
async def test_closing_a_pool_waits_for_a_slow_handler(collector: Collector) -> None:
    collector.addFilter(lambda record: time.sleep(0.002) or True)
    async with Pool(1) as pool:
        await pool.run(logged.say_all, 300)
        assert len(collector.records) < 300
    assert len(collector.records) == 300


@pytest.mark.usefixtures("as_users_have_it")
async def test_closing_a_pool_gives_a_stuck_handler_up_and_says_so(
    collector: Collector, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aparallel._backends.logs._STUCK_SECONDS", 0.1)
    collector.open.clear()
    async with Pool(1) as pool:
        await pool.run(logged.say)
    assert "a logging handler has not returned" in capsys.readouterr().err
    collector.open.set()
    await until(lambda: own_threads() == [])
    assert collector.messages == ["hello"]


@pytest.mark.usefixtures("as_users_have_it")
async def test_a_worker_is_not_held_up_until_it_is_8_mb_ahead_and_the_loop_never(
    collector: Collector, tmp_path: Path
) -> None:
    noted, size = tmp_path / "noted", 4000
    noted.write_bytes(b"%12d" % 0)
    collector.open.clear()
    async with Pool(1) as pool:
        await pool.warm_up()
        with anyio.fail_after(30):
            await pool.run(logged.say_and_note, str(noted), 7_500_000 // size, size)  # returns: not 8 MB ahead
        call = asyncio.ensure_future(pool.run(logged.say_and_note, str(noted), 10_000_000 // size, size))
        ahead, before, lags = 0, -1, []
        while ahead != before:  # it still moves
            before = ahead
            for _ in range(20):
                start = time.monotonic()
                await asyncio.sleep(0.01)
                lags.append(time.monotonic() - start - 0.01)
            ahead = int(noted.read_bytes())
        assert not call.done()
        written = (7_500_000 // size + ahead) * size
        assert MOST_AHEAD * 0.95 < written < MOST_AHEAD + 512 * 1024
        assert sorted(lags)[len(lags) // 2] < 0.02
        collector.open.set()
        await call
    assert len(collector.records) == 7_500_000 // size + 10_000_000 // size


@pytest.mark.usefixtures("as_users_have_it")
async def test_a_worker_that_waits_to_write_a_record_can_be_cancelled(collector: Collector, tmp_path: Path) -> None:
    noted, least = tmp_path / "noted", MOST_AHEAD * 0.95 / 4000
    noted.write_bytes(b"%12d" % 0)
    collector.open.clear()
    async with Pool(1) as pool:
        await pool.warm_up()
        call = asyncio.ensure_future(pool.run(logged.say_and_note, str(noted), 10_000, 4000))
        await until(lambda: int(noted.read_bytes()) > least)
        await asyncio.sleep(0.1)  # for what is left until it waits
        call.cancel()
        with anyio.fail_after(2), pytest.raises(asyncio.CancelledError):
            await call
        assert await pool.run(abs, -3) == 3
        collector.open.set()
    assert len(collector.records) * 4000 > MOST_AHEAD * 0.95


async def lag_while_records_arrive(collector: Collector, count: int) -> float:
    lags = []
    async with Pool(1) as pool:
        await pool.run(logged.say_all, 1)
        call = asyncio.ensure_future(pool.run(logged.say_all, count))
        while not call.done():
            start = time.monotonic()
            await asyncio.sleep(0.001)
            lags.append(time.monotonic() - start - 0.001)
    assert len(collector.records) == count + 1
    return sorted(lags)[int(len(lags) * 0.9)]


async def test_the_loop_runs_on_while_records_arrive(collector: Collector) -> None:
    for _ in range(10):  # the machine has other work to do: one time must be good, and most often it is the first
        if (lag := await lag_while_records_arrive(collector, 5000)) < 0.02:
            return
        collector.records.clear()
    pytest.fail(f"the loop ran {lag:.3f} s late, ten times")


@pytest.mark.soak
async def test_the_loop_runs_on_while_100_000_records_arrive(collector: Collector) -> None:
    assert await lag_while_records_arrive(collector, 100_000) < 0.02


# Levels


async def test_levels_are_this_processs_and_followed(collector: Collector) -> None:
    logger, parent = logging.getLogger("logged.sub"), logging.getLogger("logged")
    async with Pool(1) as pool:
        assert await pool.run(logged.say_levels) == [False, True, True]
        parent.setLevel(logging.WARNING)
        assert await pool.run(logged.say_levels) == [False, False, True]
        logger.setLevel(logging.DEBUG)
        assert await pool.run(logged.say_levels) == [True, True, True]
        logger.setLevel(logging.NOTSET)
        assert await pool.run(logged.say_levels) == [False, False, True]
        parent.setLevel(logging.DEBUG)
        logging.disable(logging.INFO)
        try:
            assert await pool.run(logged.say_levels) == [False, False, True]
        finally:
            logging.disable(logging.NOTSET)
        assert await pool.run(logged.say_levels) == [True, True, True]
        logger.disabled = True
        parent.setLevel(logging.INFO)
        try:
            assert await pool.run(logged.say_levels) == [False, False, False]
        finally:
            logger.disabled = False
            parent.setLevel(logging.WARNING)
        assert await pool.run(logged.say_levels) == [False, False, True]
    assert "".join(message[0] for message in collector.messages) == "IWWDIWWWDIWW"


async def test_a_level_that_a_worker_sets_itself_stays(collector: Collector) -> None:
    def make_verbose() -> None:
        logging.getLogger("logged.sub").setLevel(logging.DEBUG)

    async with Pool(1, initializer=make_verbose) as pool:
        assert await pool.run(logged.say_levels) == [True, True, True]
        logging.getLogger("logged.other").setLevel(logging.INFO)  # sends all levels again
        assert await pool.run(logged.say_levels) == [True, True, True]
    assert collector.messages == ["DEBUG", "INFO", "WARNING"] * 2


async def test_basic_config_in_a_worker_leaves_records_to_this_process(collector: Collector) -> None:
    async with Pool(1, initializer=logged.configure, initargs=(False,)) as pool:
        assert await pool.run(logged.handlers_of_root) == ["aparallel"]
        await pool.run(logged.say)
    assert collector.messages == ["hello"]


async def test_basic_config_by_force_keeps_records_in_the_worker(collector: Collector) -> None:
    async with Pool(1, initializer=logged.configure, initargs=(True,)) as pool:
        assert await pool.run(logged.handlers_of_root) == [None]
        await pool.run(logged.say)
    assert collector.messages == []


# Context


class AddRequestId(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        record.rid = request_id.get("none")
        return True


async def test_filters_see_the_context_variables_of_the_call(collector: Collector) -> None:
    collector.addFilter(AddRequestId())

    async def request(number: int) -> None:
        request_id.set(f"r-{number}")
        await pool.run(logged.say, str(number))

    async with Pool(2, context_vars=(request_id,)) as pool:
        await asyncio.gather(*(request(number) for number in range(40)))
        await pool.run(logged.set_and_say, "set by the call")
        await asyncio.create_task(pool.run(logged.say, "unset"))
    assert {record.getMessage(): record.rid for record in collector.records} == {
        **{str(number): f"r-{number}" for number in range(40)},
        "hello": "set by the call",
        "unset": "none",
    }


@pytest.mark.parametrize("backend", ["thread", "inline"])
async def test_threads_and_inline_calls_log_here_with_extras_and_context(collector: Collector, backend: Any) -> None:
    collector.addFilter(AddRequestId())
    request_id.set("r-1")
    async with Pool(1, backend) as pool:
        await pool.run(delayed(logged.say)("%d", 1, size=2))
    (record,) = collector.records
    assert (record.getMessage(), record.size, record.rid, record.process) == ("1", 2, "r-1", os.getpid())


async def test_a_pool_in_a_worker_passes_records_on(collector: Collector) -> None:
    async with Pool(1) as pool:
        await pool.run(logged.say_in_nested_pool)
        assert collector.messages == ["from the inner one"]


# Warnings


async def test_a_warning_arrives_with_all_that_it_has() -> None:
    async with Pool(1) as pool:
        with pytest.warns(UserWarning, match="^look$") as caught:
            await pool.run(logged.warn)
        (warning,) = caught
        assert (warning.category, str(warning.message)) == (UserWarning, "look")
        assert Path(warning.filename) == Path(logged.__file__)
        assert "warnings.warn(text" in Path(warning.filename).read_text().splitlines()[warning.lineno - 1]
        with pytest.warns(logged.Odd) as caught:
            await pool.run(logged.warn_odd)
        assert "1 and 2" in str(caught[0].message)


async def test_an_error_filter_raises_in_the_call() -> None:
    async with Pool(1) as pool:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(DeprecationWarning, match="old"):
                await pool.run(logged.warn, "old", DeprecationWarning)
            warnings.simplefilter("ignore")
            await pool.run(logged.warn)


async def test_a_location_is_shown_once_over_all_workers() -> None:
    async with Pool(2) as pool:
        for _ in range(2):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("default")
                await pool.gather(delayed(logged.warn)(f"number {i % 2}") for i in range(40))
            assert sorted(str(warning.message) for warning in caught) == ["number 0", "number 1"]


async def test_always_means_always() -> None:
    async with Pool(2) as pool:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            await pool.gather(delayed(logged.warn)() for _ in range(40))
        assert len(caught) == 40


async def test_filters_by_message_module_and_category_hold_in_workers() -> None:
    async with Pool(1) as pool:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            warnings.filterwarnings("ignore", message="not th.s")
            warnings.filterwarnings("ignore", category=logged.Odd)
            await pool.run(logged.warn, "not this")
            await pool.run(logged.warn_odd)
            await pool.run(logged.warn, "but this")
            warnings.filterwarnings("ignore", module="logg.d$")
            await pool.run(logged.warn, "nor this")
        assert [str(warning.message) for warning in caught] == ["but this"]


class Level(enum.IntEnum):
    LOW = 15


async def test_levels_may_be_members_of_an_enum_that_workers_do_not_have(collector: Collector) -> None:
    def say_so() -> None:
        for level in (Level.LOW, Level.LOW - 1):
            logging.getLogger("logged.ours").log(level, "told")

    logging.getLogger("logged.ours").setLevel(Level.LOW)
    collector.setLevel(Level.LOW)
    Level.__module__ = say_so.__module__ = "__main__"
    async with asyncio.timeout(20), Pool(1) as pool:
        await pool.run(say_so)
    logging.getLogger("logged.ours").setLevel(logging.NOTSET)
    assert [(record.levelno, record.getMessage()) for record in collector.records] == [(15, "told")]


class Own:
    """A pattern as far as warnings asks: it has nothing else of a regular expression."""

    def match(self, text: str) -> bool:
        return text == "this one"


async def test_filters_of_several_categories_and_with_patterns_of_ones_own_hold() -> None:
    kinds: Any = (DeprecationWarning, (logged.Odd, ImportWarning))
    async with asyncio.timeout(20), Pool(1) as pool:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            warnings.simplefilter("ignore", kinds)
            warnings.filters.insert(0, ("ignore", Own(), Warning, None, 0))  # type: ignore[attr-defined]
            await pool.run(logged.warn_odd)
            await pool.run(logged.warn, "old", DeprecationWarning)
            await pool.run(logged.warn, "this one")
            await pool.run(logged.warn, "but this")
        assert [str(warning.message) for warning in caught] == ["but this"]
        with warnings.catch_warnings():
            warnings.simplefilter("error", kinds)
            with pytest.raises(logged.Odd):
                await pool.run(logged.warn_odd)


async def test_warnings_caught_or_ignored_in_a_worker_stay_there() -> None:
    async with Pool(1) as pool:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert await pool.run(logged.warn_here) == 1
            await pool.run(logged.warn)
            await pool.run(logged.ignore_warnings)
            await pool.run(logged.warn)
            warnings.simplefilter("default")  # sends all filters again
            await pool.run(logged.warn, "again")
        assert len(caught) == 1


async def test_captured_warnings_become_records() -> None:
    logger, handler = logging.getLogger("py.warnings"), Collector()
    logger.addHandler(handler)
    handler.addFilter(AddRequestId())
    request_id.set("r-5")
    try:
        async with Pool(1, context_vars=(request_id,)) as pool:
            with warnings.catch_warnings():
                warnings.simplefilter("always")
                logging.captureWarnings(True)
                await pool.run(logged.warn)
    finally:
        logging.captureWarnings(False)
        logger.removeHandler(handler)
    (record,) = handler.records
    assert "UserWarning: look" in record.getMessage()
    assert record.rid == "r-5"


# The option


async def test_logs_can_be_left_to_the_workers(collector: Collector, capfd: pytest.CaptureFixture[str]) -> None:
    async with Pool(1, logs=False) as pool:
        await pool.run(delayed(logged.say)(level=logging.ERROR))
        await pool.run(logged.warn)
    assert collector.records == []
    printed = capfd.readouterr().err
    assert "hello" in printed
    assert "UserWarning: look" in printed


def test_logs_cannot_be_left_to_threads() -> None:
    with pytest.raises(ValueError, match="logs=False is for process workers"):
        Pool(1, "thread", logs=False)


def record_pipes() -> list[int]:
    return [each.fd for each in list(forks._all) if isinstance(each, log_source.Source) and each.is_open]


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
async def test_a_forked_copy_of_the_program_holds_no_end_of_the_pipes(collector: Collector) -> None:
    async with Pool(2) as pool:
        await pool.warm_up()
        await pool.run(logged.say)
        pipes = record_pipes()
        assert len(pipes) >= 2  # the spare's is not taken over yet
        if not (child := os.fork()):
            closed = 0
            for fd in pipes:
                try:
                    os.fstat(fd)
                except OSError:
                    closed += 1
            os._exit(closed)
        _, status = await anyio.to_thread.run_sync(os.waitpid, child, 0)
        assert os.waitstatus_to_exitcode(status) == len(pipes)
        await pool.run(logged.say)
    assert len(collector.records) == 2


# Programs

HEAD = """
import asyncio, logging, os, signal, sys, time, warnings
from aparallel import Pool, delayed, gather_parallel
"""


def run_script(tmp_path: Path, body: str, *flags: str) -> subprocess.CompletedProcess[str]:
    script = tmp_path / "script.py"
    script.write_text(HEAD + textwrap.dedent(body))
    return subprocess.run(
        [sys.executable, *flags, str(script)], timeout=60, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )


def test_a_program_that_configures_nothing_sees_what_it_would_see_of_itself(tmp_path: Path) -> None:
    body = """
    class Size:
        def __repr__(self): return "a size"

    def f():
        logging.getLogger("a").warning("of %s", "f", extra={"size": Size()})
        logging.getLogger("a").info("not seen")
        warnings.warn("look here")

    asyncio.run(gather_parallel(delayed(f)()))
    """
    run = run_script(tmp_path, body)
    assert run.returncode == 0
    message, where, line = run.stderr.splitlines()
    assert message == "of f"
    assert where.endswith("UserWarning: look here")
    assert line == '  warnings.warn("look here")'


def test_a_worker_imports_logging_only_if_its_calls_do(tmp_path: Path) -> None:
    body = """
    def f(log):
        before = "logging" in sys.modules
        if log:
            import logging
            logging.warning("imported in the call, level %d", logging.getLogger().level)
        return before

    async def main():
        logging.getLogger().setLevel(15)
        async with Pool(1) as pool:
            print(await pool.run(f, False), await pool.run(f, True), await pool.run(f, True))

    asyncio.run(main())
    """
    run = run_script(tmp_path, body)
    assert run.stdout == "False False True\n"
    assert run.stderr == "imported in the call, level 15\n" * 2


END_OF_LOOP = """
def f():
    for number in range(200):
        logging.warning("%d", number)

class Slow(logging.StreamHandler):
    def emit(self, record):
        time.sleep(0.001)
        super().emit(record)

async def main():
    logging.getLogger().addHandler(Slow())
    pool = Pool(1)
    await pool.run(f)

loop = asyncio.new_event_loop()
loop.run_until_complete(main())
"""


@pytest.mark.parametrize("end", ["loop.close()", "", "loop.run_until_complete(loop.shutdown_asyncgens())"])
def test_records_are_handled_however_the_loop_ends(tmp_path: Path, end: str) -> None:
    run = run_script(tmp_path, END_OF_LOOP + end, "-W", "ignore")
    assert run.stderr.splitlines() == [str(number) for number in range(200)]


def test_a_killed_program_takes_a_worker_along_that_waits_to_write(tmp_path: Path) -> None:
    body = """
    def f():
        print(os.getpid(), flush=True)
        while True:
            logging.warning("x" * 4000)

    class Stuck(logging.Handler):
        def emit(self, record):
            time.sleep(1000)

    async def main():
        logging.getLogger().addHandler(Stuck())
        async with Pool(1) as pool:
            call = asyncio.ensure_future(pool.run(f))
            while True:
                await asyncio.sleep(0.05)
                relay = pool._engine.backend._relay
                if any(records.source.waits for records in relay._records):
                    os.kill(os.getpid(), signal.SIGKILL)

    asyncio.run(main())
    """
    run = run_script(tmp_path, body)
    assert run.returncode == -signal.SIGKILL
    worker = int(run.stdout)
    deadline = time.monotonic() + 5
    while is_alive(worker) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_alive(worker)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with contextlib.suppress(OSError):
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    return True


# The wire


@given(st.data())
def test_records_come_out_whole_however_writers_take_turns_and_reads_cut(data: st.DataObject) -> None:
    sizes = st.integers(0, 3 * select_piece())
    written = {
        process: [bytes([process]) * size for size in data.draw(st.lists(sizes, max_size=4))] for process in (1, 2, 3)
    }
    queues = {
        process: [piece for number, record in enumerate(mine) for piece in records.pieces_of(record, process, number)]
        for process, mine in written.items()
    }
    assert all(len(piece) <= 4096 for pieces in queues.values() for piece in pieces)
    stream = b""
    while waiting := [process for process, pieces in queues.items() if pieces]:
        stream += queues[data.draw(st.sampled_from(waiting))].pop(0)
    assembler, found, start = records.Assembler(), [], 0
    while start < len(stream):
        end = start + data.draw(st.integers(1, 70_000))
        found += list(assembler.feed(stream[start:end]))
        start = end
    for process, mine in written.items():
        assert [record for record in found if record[:1] == bytes([process])] == [record for record in mine if record]
    assert len(found) == sum(map(len, written.values()))


def select_piece() -> int:
    return len(records.pieces_of(b"x" * 100_000, 1, 1)[0])


def test_what_a_dead_writer_left_of_a_record_harms_no_other() -> None:
    assembler = records.Assembler()
    dead = records.pieces_of(b"d" * 10_000, 1, 0)[:-1]
    whole = records.pieces_of(b"w" * 10_000, 2, 0)
    same_number = records.pieces_of(b"n", 1, 1)
    assert list(assembler.feed(b"".join([*dead, *whole, *same_number]))) == [b"w" * 10_000, b"n"]


@pytest.mark.parametrize(
    "content",
    [7, (), (0, []), (0, 1, []), (0, [], 2), (1, "NoSuchWarning", "text", None, "file.py", 1, None, None, [])],
    ids=repr,
)
def test_what_is_no_record_is_told_and_harms_nothing(content: Any, capsys: pytest.CaptureFixture[str]) -> None:
    RecordHandler({}).handle(marshal.dumps(content))
    assert "no log record" in capsys.readouterr().err
