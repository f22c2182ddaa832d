"""What gather_parallel promises, over every backend."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import linecache
import os
import re
import sys
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from failures import (
    Custom,
    HostileText,
    KnowsItsThread,
    Missing,
    Needed,
    Needy,
    OfData,
    OfFrozenData,
    OwnReduce,
    Plain,
    Slotted,
    Stop,
    deep,
    deep_later,
    raise_custom,
    raise_from,
    raise_from_module_only_there,
    raise_group_of_customs,
    raise_hostile,
    raise_in_a_circle,
    raise_made,
    raise_needy,
    raise_not_an_error,
    raise_noted,
    raise_unbuildable,
    raise_with_lock,
)
from traveling import by_value
from waiting import without_collection
from work import Broken, double, fail, fail_later, same, thread_of, touch_and_wait, wait_for_file

from aparallel import Pool, cpu_count, delayed, errors, gather_parallel, parallel_config, stream_parallel
from aparallel._ground.shield import outlast

BACKENDS: list[Any] = ["process", "thread", "inline"]
each_backend = pytest.mark.parametrize("backend", BACKENDS)


async def see_file(path: Path) -> None:
    async with asyncio.timeout(20):
        while not path.exists():  # noqa: ASYNC110  a file has no event
            await asyncio.sleep(0.002)


def chain_of(error: BaseException) -> list[BaseException]:
    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    return chain


# Sources and results


@each_backend
async def test_results_come_in_the_order_of_the_calls(backend: Any) -> None:
    results = await gather_parallel((delayed(double)(x) for x in range(500)), backend=backend)
    assert results == [2 * x for x in range(500)]


@each_backend
async def test_no_calls_give_an_empty_list(backend: Any) -> None:
    async def nothing() -> AsyncIterator[Any]:
        for call in ():
            yield call

    assert await gather_parallel([], backend=backend) == []
    assert await gather_parallel(iter(()), backend=backend) == []
    assert await gather_parallel(nothing(), backend=backend) == []
    assert await gather_parallel(backend=backend) == []


PLAIN: list[Any] = [
    0,
    -1,
    10**400,
    1.5,
    float("inf"),
    True,
    None,
    "",
    "é\ud800",
    "x" * 5000,
    b"",
    b"\x80\x05N.",
    (1, 2),
    (),
]


@pytest.mark.parametrize("fn", [same, by_value(lambda *values: values[0] if len(values) == 1 else values)])
async def test_plain_arguments_arrive_as_they_are_alone_and_together(fn: Any) -> None:
    async with Pool(1) as pool:
        together = [(value, value) for value in PLAIN] if fn is not same else []
        for _ in range(2):  # the worker does not know the function at first
            assert repr(await pool.gather(delayed(fn)(value) for value in PLAIN)) == repr(PLAIN)
            assert repr([await pool.run(fn, value) for value in PLAIN]) == repr(PLAIN)
            assert await pool.gather(delayed(fn)(*values) for values in together) == together


async def test_small_calls_give_the_garbage_collector_nothing_to_do() -> None:
    async with Pool(2) as pool:
        assert await pool.gather(delayed(same)(number) for number in range(2_000)) == list(range(2_000))
        gc.collect()
        collections: list[int] = []
        gc.callbacks.append(note := lambda phase, info: collections.append(info["generation"]))
        try:
            await pool.gather(delayed(same)(number) for number in range(20_000))
        finally:
            gc.callbacks.remove(note)
        assert len(collections) <= 4  # a tuple for each call would be 28 and more, twice each


@each_backend
async def test_calls_can_be_given_one_by_one(backend: Any) -> None:
    assert await gather_parallel(delayed(double)(1), backend=backend) == [2]
    a, b = await gather_parallel(delayed(double)(1), delayed(str)(2), backend=backend)
    assert (a, b) == (2, "2")


@each_backend
async def test_calls_can_come_from_an_async_iterable(backend: Any) -> None:
    async def calls() -> AsyncIterator[Any]:
        for x in range(20):
            if x % 5 == 0:
                await asyncio.sleep(0)
            yield delayed(double)(x)

    assert await gather_parallel(calls(), backend=backend) == [2 * x for x in range(20)]


async def test_functions_may_differ_from_call_to_call() -> None:
    calls = [delayed([double, str, float][x % 3])(x) for x in range(60)]
    assert await gather_parallel(calls) == [[double, str, float][x % 3](x) for x in range(60)]


@each_backend
async def test_a_failure_surfaces_while_the_async_source_has_nothing_to_give(backend: Any) -> None:
    finalized = asyncio.Event()

    async def calls() -> AsyncIterator[Any]:
        try:
            yield delayed(fail)(ValueError("early"))
            await asyncio.Event().wait()
        finally:
            finalized.set()

    async with asyncio.timeout(10):
        with pytest.raises(ValueError, match="early"):
            await gather_parallel(calls(), backend=backend)
    assert finalized.is_set()


@each_backend
@pytest.mark.parametrize("kind", [LookupError, asyncio.CancelledError, SystemExit])
async def test_what_the_source_raises_is_raised(backend: Any, kind: type[BaseException]) -> None:
    def calls() -> Iterator[Any]:
        yield delayed(double)(1)
        raise kind("no more input")

    async def calls_later() -> AsyncIterator[Any]:
        yield delayed(double)(1)
        raise kind("no more input")

    async with Pool(1, backend) as pool, asyncio.timeout(10):
        for source in (calls(), calls_later()):
            with pytest.raises(kind, match="no more input"):
                await pool.gather(source)
        assert await pool.gather([delayed(double)(4)]) == [8]


# Failures


@each_backend
async def test_the_first_failure_itself_is_raised_with_all_that_it_carries(backend: Any) -> None:
    with pytest.raises(Plain) as caught:
        await gather_parallel([delayed(raise_noted)()], backend=backend)
    error: Any = caught.value
    assert type(error) is Plain
    assert error.args == ("text", 3)
    assert error.extra == {"key": [1, 2]}
    assert error.__notes__ == ["first note", "second note"]


@each_backend
async def test_an_error_keeps_its_message_whatever_its_init_takes(backend: Any) -> None:
    calls = [delayed(raise_custom)(), delayed(raise_needy)(), delayed(fail)(OwnReduce(5))]
    custom, needy, own = await gather_parallel(calls, backend=backend, return_exceptions=True)
    assert (type(custom), str(custom), custom.code, custom.detail) == (Custom, "code 7: broken", 7, "broken")
    assert (type(needy), str(needy)) == (Needy, "1 and 2")
    assert (type(own), own.code) == (OwnReduce, 5)


@each_backend
async def test_an_error_of_the_system_or_an_import_keeps_its_message_whatever_its_init_takes(backend: Any) -> None:
    calls = [delayed(raise_made)(Missing, "there.txt"), delayed(raise_made)(Needed, "numpy", why="sums")]
    missing, needed = await gather_parallel(calls, backend=backend, return_exceptions=True)
    assert (type(missing), missing.args, missing.path) == (Missing, (2, "no settings"), "there.txt")
    assert (missing.errno, missing.filename) == (2, "there.txt")
    assert (type(needed), str(needed)) == (Needed, "numpy is needed: sums")
    assert (needed.name, needed.why) == ("numpy", "sums")


@each_backend
async def test_an_error_keeps_what_its_slots_hold_and_what_may_not_be_set(backend: Any) -> None:
    calls = [delayed(raise_made)(Slotted, 7), delayed(raise_made)(OfData, 1, "broken")]
    calls.append(delayed(raise_made)(OfFrozenData, 3))
    slotted, data, frozen = await gather_parallel(calls, backend=backend, return_exceptions=True)
    assert (type(slotted), str(slotted), slotted.code, slotted.hidden()) == (Slotted, "message", 7, 8)
    assert (type(data), data.code, data.detail) == (OfData, 1, "broken")
    assert (type(frozen), frozen.code) == (OfFrozenData, 3)


BUILTIN_ERRORS = [
    FileNotFoundError(2, "No such file", "there.txt"),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    KeyError("key"),
    ImportError("cannot", name="mod", path="/p"),
    SyntaxError("bad", ("file.py", 3, 4, "text", 3, 9)),
    AttributeError("no", name="attr"),
    TimeoutError(),
]


async def test_builtin_errors_keep_what_c_code_knows_of_them() -> None:
    results = await gather_parallel([delayed(fail)(error) for error in BUILTIN_ERRORS], return_exceptions=True)
    for sent, got in zip(BUILTIN_ERRORS, results, strict=True):
        assert (type(got), got.args, str(got)) == (type(sent), sent.args, str(sent))
    found, decode, _, _, syntax, *_ = results
    assert (found.errno, found.filename) == (2, "there.txt")
    assert (decode.object, decode.start) == (b"\xff", 0)
    assert (syntax.lineno, syntax.offset) == (3, 4)


async def test_the_remote_traceback_shows_code_of_which_only_the_caller_knows_the_source(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Notebooks keep the source of their cells where tracebacks look for it."""
    source = "def fail(depth):\n    if depth:\n        fail(depth - 1)\n    raise LookupError('not here')  # told\n"
    monkeypatch.setitem(linecache.cache, "<cell 1>", (len(source), None, source.splitlines(keepends=True), "<cell 1>"))
    cell: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(source, "<cell 1>", "exec"), cell)
    (error,) = await gather_parallel([delayed(cell["fail"])(9)], return_exceptions=True)
    told = str(chain_of(error)[-1])
    assert "in fail\n    fail(depth - 1)\n" in told
    assert "line 4, in fail\n    raise LookupError('not here')  # told\nLookupError: not here" in told
    assert told.count("# told") == 1


async def test_the_remote_traceback_ends_the_cause_chain() -> None:
    with pytest.raises(Needy) as caught:
        await gather_parallel([delayed(deep)()])
    *_, last = chain_of(caught.value)
    assert type(last) is errors.RemoteTraceback
    assert "in deep" in str(last)
    assert "in raise_needy" in str(last)
    assert "Needy: 1 and 2" in str(last)


@pytest.mark.parametrize("function", [deep, deep_later])
async def test_the_remote_traceback_begins_with_the_function(function: Any) -> None:
    with pytest.raises(Needy) as caught:
        await gather_parallel([delayed(function)()])
    *_, last = chain_of(caught.value)
    lines = str(last).splitlines()
    first = lines[lines.index("Traceback (most recent call last):") + 1]
    assert first.endswith(f"in {function.__name__}")


async def test_a_function_that_travels_by_value_is_shown_with_its_file_and_line() -> None:
    word = "closed over"

    def fail() -> None:
        raise LookupError(word)

    with pytest.raises(LookupError) as caught:
        await gather_parallel([delayed(fail)()])
    text = str(chain_of(caught.value)[-1])
    assert f'File "{__file__}", line {fail.__code__.co_firstlineno + 1}, in fail' in text
    assert "raise LookupError(word)" in text


@each_backend
async def test_explicit_causes_arrive_in_their_order(backend: Any) -> None:
    with pytest.raises(Plain) as caught:
        await gather_parallel([delayed(raise_from)()], backend=backend)
    chain = chain_of(caught.value)
    assert [type(link) for link in chain[:3]] == [Plain, Custom, KeyError]
    assert chain[1].__notes__ == ["noted"]
    if backend == "process":
        assert type(chain[-1]) is errors.RemoteTraceback
        assert len(chain) == 4


async def test_a_circle_of_causes_arrives_as_an_error() -> None:
    async with asyncio.timeout(20):
        with pytest.raises(Plain, match="first"):
            await gather_parallel([delayed(raise_in_a_circle)()])


@each_backend
async def test_an_exception_group_that_a_call_raised_arrives_as_one(backend: Any) -> None:
    group = ExceptionGroup("several", [ValueError("one"), ExceptionGroup("inner", [KeyError("two")])])
    with pytest.raises(ExceptionGroup) as caught:
        await gather_parallel([delayed(fail)(group)], backend=backend)
    assert caught.group_contains(KeyError, match="two")
    assert caught.value.message == "several"


@each_backend
async def test_members_of_an_exception_group_keep_their_types_whatever_their_init_takes(backend: Any) -> None:
    with pytest.raises(ExceptionGroup) as caught:
        await gather_parallel([delayed(raise_group_of_customs)()], backend=backend)
    assert [type(member) for member in caught.value.exceptions] == [Custom, Needy]


@each_backend
async def test_a_base_exception_of_the_users_arrives_itself(backend: Any) -> None:
    with pytest.raises(Stop, match="own"):
        await gather_parallel([delayed(fail)(Stop("own"))], backend=backend)


SPECIAL = [
    StopIteration("x"),
    StopAsyncIteration("x"),
    GeneratorExit("x"),
    SystemExit("x"),
    KeyboardInterrupt("x"),
    asyncio.CancelledError("x"),
]


@each_backend
async def test_exceptions_that_would_mean_something_else_here_arrive_wrapped(backend: Any) -> None:
    calls = [delayed(fail)(error) for error in SPECIAL]
    results = await gather_parallel(calls, backend=backend, return_exceptions=True)
    for error, result in zip(SPECIAL, results, strict=True):
        assert type(result) is errors.RemoteCallError
        assert result.type_name.rpartition(".")[2] == type(error).__name__
        assert result.text == "x"
        assert type(error).__name__ in str(result)
        assert "in fail" in result.traceback


@each_backend
async def test_exceptions_of_coroutines_that_would_mean_something_else_arrive_wrapped(backend: Any) -> None:
    special = [error for error in SPECIAL if not isinstance(error, StopIteration | StopAsyncIteration)]
    calls = [delayed(fail_later)(error) for error in special]
    results = await gather_parallel(calls, backend=backend, return_exceptions=True)
    assert [type(result) for result in results] == [errors.RemoteCallError] * len(special)
    assert await gather_parallel([delayed(double)(1)], backend=backend) == [2]


@each_backend
async def test_pool_run_wraps_them_too(backend: Any) -> None:
    async with Pool(1, backend) as pool:
        for error in SPECIAL:
            with pytest.raises(errors.RemoteCallError, match=type(error).__name__):
                await pool.run(fail, error)
        assert await pool.run(double, 2) == 4


async def test_errors_that_cannot_travel_tell_their_story_and_harm_nothing_else(tmp_path: Path) -> None:
    calls = [
        delayed(raise_with_lock)(),
        delayed(raise_hostile)(),
        delayed(raise_unbuildable)(),
        delayed(raise_not_an_error)(),
        delayed(raise_from_module_only_there)(str(tmp_path)),
        delayed(double)(1),
    ]
    async with Pool(1) as pool:
        *failures, value = await pool.gather(calls, return_exceptions=True, batch_size=1)
        assert pool.statistics().broken == 0
    assert value == 2
    names = ["Plain", "Hostile", "Unbuildable", "Liar", "Foreign"]
    texts = ["holds a lock", "cannot travel", "cannot be rebuilt", "not an exception when rebuilt", "unknown here"]
    for failure, name, text in zip(failures, names, texts, strict=True):
        assert type(failure) is errors.RemoteCallError
        assert failure.type_name.endswith(name)
        assert failure.text == text
        assert text in failure.traceback
        assert type(chain_of(failure)[-1]) is errors.RemoteTraceback


async def test_an_error_whose_module_is_not_imported_here_is_read_off_the_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = "import threading\nimported_by = threading.get_ident()\nclass Late(ValueError): pass\n"
    (tmp_path / "with_errors.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "with_errors", raising=False)

    @by_value
    def raise_late() -> None:
        import with_errors  # type: ignore[import-not-found]

        raise with_errors.Late("not known there")

    async with Pool(1) as pool:
        late, value = await pool.gather(delayed(raise_late)(), delayed(double)(2), return_exceptions=True)
        assert value == 4
        assert pool.statistics().failed == 1
    module = sys.modules["with_errors"]
    assert module.imported_by != threading.get_ident()
    assert type(late) is module.Late
    assert late.args == ("not known there",)
    assert type(chain_of(late)[-1]) is errors.RemoteTraceback
    assert late.__traceback__ is None


async def test_a_large_error_is_read_off_the_loop() -> None:
    calls = [delayed(fail)(KnowsItsThread("large" * 20_000)), delayed(fail)(KnowsItsThread("small"))]
    large, small = await gather_parallel(calls, return_exceptions=True)
    assert isinstance(large, KnowsItsThread)
    assert isinstance(small, KnowsItsThread)
    assert large.args == ("large" * 20_000,)
    assert large.thread != threading.get_ident()
    assert small.thread == threading.get_ident()


async def test_an_error_without_a_text_arrives() -> None:
    (error,) = await gather_parallel([delayed(fail)(HostileText("arg"))], return_exceptions=True)
    assert type(error) is HostileText
    assert error.args == ("arg",)


@each_backend
async def test_return_exceptions_hands_failures_back_in_place(backend: Any) -> None:
    calls = [delayed(fail)(ValueError(x)) if x % 3 == 0 else delayed(double)(x) for x in range(30)]
    results = await gather_parallel(calls, return_exceptions=True, backend=backend)
    for x, result in enumerate(results):
        if x % 3 == 0:
            assert type(result) is ValueError
            assert result.args == (x,)
        else:
            assert result == 2 * x


@each_backend
async def test_a_pool_is_usable_after_a_failure(backend: Any) -> None:
    async with Pool(2, backend) as pool:
        for _ in range(3):
            with pytest.raises(ValueError, match="bad"):
                await pool.gather([delayed(double)(1), delayed(fail)(ValueError("bad")), delayed(double)(2)])
            assert await pool.gather(delayed(double)(x) for x in range(10)) == [2 * x for x in range(10)]
        assert (pool.statistics().queued, pool.statistics().busy) == (0, 0)


@each_backend
async def test_after_a_failure_no_more_calls_are_drawn(backend: Any) -> None:
    drawn = 0

    def calls() -> Iterator[Any]:
        nonlocal drawn
        for x in range(100_000):
            drawn += 1
            # The failure takes its worker some milliseconds, for what it imports to describe it.
            yield delayed(fail)(ValueError("stop")) if x == 5 else delayed(time.sleep)(0.001)

    with pytest.raises(ValueError, match="stop"):
        await gather_parallel(calls(), backend=backend, pre_dispatch=10)
    # Ten are ahead at a time; how many others end before the one that fails is up to the workers.
    assert drawn < 1_000


@pytest.mark.parametrize("backend", ["process", "thread"])
async def test_after_a_failure_queued_calls_never_run(backend: Any, tmp_path: Path) -> None:
    calls = [delayed(fail)(ValueError("first"))] + [delayed(Path.touch)(tmp_path / str(x)) for x in range(50)]
    async with Pool(1, backend) as pool:
        with pytest.raises(ValueError, match="first"):
            await pool.gather(calls, batch_size=1)
        await pool.run(double, 1)
        # One more may have been on its way when the failure arrived.
        assert len(os.listdir(tmp_path)) <= 2


async def test_a_failure_ends_the_running_calls_of_its_gather(tmp_path: Path) -> None:
    started, never = tmp_path / "started", tmp_path / "never"

    def fail_once_started() -> None:
        wait_for_file(started)
        raise ValueError("sibling")

    async with Pool(2) as pool:
        await pool.warm_up()
        begun = time.monotonic()
        with pytest.raises(ValueError, match="sibling"):
            await pool.gather([delayed(touch_and_wait)(started, never), delayed(fail_once_started)()])
        assert time.monotonic() - begun < 10
        assert pool.statistics().running == 0


class Refusing:
    """What cannot travel."""

    def __reduce__(self) -> Any:
        raise TypeError("refused")


async def read_later(text: str) -> int:
    return int(text)


async def then_fail() -> AsyncIterator[Any]:
    yield delayed(same)(1)
    raise LookupError


def refuse_to_go_on(done: int, total: int | None) -> None:
    raise LookupError


async def outlasted() -> None:
    """Is cancelled while it waits for what cancellation does not cut short."""
    loop = asyncio.get_running_loop()
    ending = loop.create_future()
    task = asyncio.current_task()
    assert task is not None
    loop.call_soon(task.cancel)
    loop.call_soon(lambda: loop.call_soon(ending.set_result, None))
    await outlast([ending])


FAILING: list[Any] = [
    ("thread", lambda pool: pool.run(int, "x")),
    ("thread", lambda pool: pool.gather([delayed(int)("x")])),
    ("thread", lambda pool: pool.run(read_later, "x")),
    ("inline", lambda pool: pool.gather(then_fail())),
    ("inline", lambda pool: pool.gather([delayed(same)(1)], progress=refuse_to_go_on)),
    ("inline", lambda pool: outlasted()),
    ("process", lambda pool: pool.gather([delayed(same)(Refusing())])),
    ("process", lambda pool: asyncio.gather(*[pool.run(same, Refusing())])),
    ("process", lambda pool: pool.run(Broken, 1_000_000)),
]


async def assert_nothing_is_kept_by(attempt: Callable[[], Any]) -> None:
    """Assert that what its callers had goes with the error, though frames in its traceback have all that these had."""
    had: list[weakref.ref[Refusing]] = []

    async def fail_with(something: Refusing) -> None:
        had.append(weakref.ref(something))
        await attempt()

    with contextlib.suppress(Exception, asyncio.CancelledError):
        await fail_with(Refusing())
    async with asyncio.timeout(20):
        while had[0]() is not None:  # noqa: ASYNC110  what has told of the error may be at its last step
            await asyncio.sleep(0)


@pytest.mark.parametrize(("backend", "attempt"), FAILING)
async def test_what_a_failed_attempt_had_goes_with_its_error(backend: Any, attempt: Any) -> None:
    async with Pool(1, backend) as pool:
        await pool.warm_up()
        with without_collection():
            await assert_nothing_is_kept_by(lambda: attempt(pool))


async def test_a_pool_whose_workers_do_not_start_keeps_nothing_of_those_who_were_told() -> None:
    def refuse() -> None:
        raise LookupError

    async with Pool(1, "inline", initializer=refuse) as pool:
        with without_collection():
            await assert_nothing_is_kept_by(lambda: pool.run(abs, 1))
            await assert_nothing_is_kept_by(pool.warm_up)


# How far ahead calls are drawn


@each_backend
async def test_pre_dispatch_is_a_hard_limit(backend: Any) -> None:
    drawn = done = 0
    most = 0

    def calls() -> Iterator[Any]:
        nonlocal drawn, most
        for x in range(200):
            drawn += 1
            most = max(most, drawn - done)
            yield delayed(double)(x)

    def progress(count: int, total: int | None) -> None:
        nonlocal done
        done = count

    await gather_parallel(calls(), backend=backend, pre_dispatch=3, progress=progress)
    assert drawn == 200
    assert most <= 3


@pytest.mark.parametrize(("pre_dispatch", "limit"), [("2*n_jobs", 4), ("n_jobs", 2), (7, 7), ("1.5*n_jobs", 3)])
async def test_no_more_than_pre_dispatch_is_drawn_while_calls_run(
    pre_dispatch: Any, limit: int, tmp_path: Path
) -> None:
    drawn = await drawn_while_blocked(tmp_path, pre_dispatch=pre_dispatch)
    assert drawn == limit


async def test_all_is_drawn_at_once_if_so_wished(tmp_path: Path) -> None:
    assert await drawn_while_blocked(tmp_path, pre_dispatch="all") == 1000


async def test_calls_of_unknown_length_are_drawn_two_ahead_for_each_worker(tmp_path: Path) -> None:
    assert await drawn_while_blocked(tmp_path) <= 4


async def drawn_while_blocked(folder: Path, **options: Any) -> int:
    """How many of 1,000 calls are drawn while the first ones still run, on two threads."""
    gate = folder / "gate"
    drawn = 0

    def calls() -> Iterator[Any]:
        nonlocal drawn
        for x in range(1000):
            drawn += 1
            yield delayed(touch_and_wait)(folder / str(x), gate)

    gather = asyncio.create_task(gather_parallel(calls(), n_jobs=2, backend="thread", **options))
    await see_file(folder / "0")
    await see_file(folder / "1")
    for _ in range(20):
        await asyncio.sleep(0.001)
    seen = drawn
    gate.touch()
    assert len(await gather) == 1000
    return seen


@each_backend
@pytest.mark.parametrize("batch_size", [1, 3, 1000, "auto"])
async def test_any_batch_size_gives_the_same_results(backend: Any, batch_size: Any) -> None:
    results = await gather_parallel((delayed(double)(x) for x in range(100)), backend=backend, batch_size=batch_size)
    assert results == [2 * x for x in range(100)]


async def test_n_jobs_caps_a_gather_on_a_larger_pool() -> None:
    running = most = 0
    lock = threading.Lock()

    def count() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.005)
        with lock:
            running -= 1

    async with Pool(4, "thread") as pool:
        await pool.warm_up()
        await pool.gather((delayed(count)() for _ in range(12)), n_jobs=1)
        assert most == 1
        await pool.gather((delayed(count)() for _ in range(24)), n_jobs=2)
        assert most <= 2
        assert pool.statistics().n_jobs == 4


async def test_a_gather_starts_no_more_workers_than_n_jobs() -> None:
    pids = await gather_parallel((delayed(os.getpid)() for _ in range(50)), n_jobs=1)
    assert len(set(pids)) == 1
    assert os.getpid() not in pids


# What it tells while it runs


@each_backend
async def test_progress_counts_up_to_the_total(backend: Any) -> None:
    told: list[tuple[int, int | None]] = []
    calls = [delayed(double)(x) for x in range(20)]
    await gather_parallel(calls, backend=backend, progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (20, 20)
    assert told == sorted(set(told))
    assert {total for _, total in told} == {20}


async def test_progress_of_a_generator_learns_the_total_in_the_end() -> None:
    told: list[tuple[int, int | None]] = []
    calls = (delayed(double)(x) for x in range(20))
    await gather_parallel(calls, backend="thread", progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (20, 20)


@each_backend
@pytest.mark.parametrize("kind", [LookupError, asyncio.CancelledError])
async def test_what_the_progress_function_raises_is_raised(backend: Any, kind: type[BaseException]) -> None:
    def progress(done: int, total: int | None) -> None:
        raise kind("progress")

    async with Pool(1, backend) as pool, asyncio.timeout(10):
        with pytest.raises(kind, match="progress"):
            await pool.gather((delayed(double)(x) for x in range(20)), progress=progress)
        assert await pool.run(double, 1) == 2


async def test_verbose_prints_lines_to_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    await gather_parallel((delayed(double)(x) for x in range(20)), n_jobs=2, backend="thread", verbose=5)
    out, err = capfd.readouterr()
    assert out == ""
    *_, last = err.splitlines()
    assert re.fullmatch(r"\[gather_parallel\(n_jobs=2\)\]: Done  20 out of  20 \| elapsed: +\d\.\ds finished", last)


async def test_nothing_is_printed_unless_asked_for(capfd: pytest.CaptureFixture[str]) -> None:
    await gather_parallel(delayed(double)(x) for x in range(20))
    assert capfd.readouterr() == ("", "")


# parallel_config


async def test_parallel_config_sets_defaults_for_its_block() -> None:
    thread, process = {threading.main_thread().ident}, {os.getpid()}
    with parallel_config(backend="thread"):
        assert {await gather_one(os.getpid)} == process
        assert {await gather_one(threading.get_ident)} != thread
    assert {await gather_one(os.getpid)} != process


async def gather_one(fn: Any, **options: Any) -> Any:
    (result,) = await gather_parallel([delayed(fn)()], **options)
    return result


async def test_a_given_option_wins_over_the_configured_one() -> None:
    with parallel_config(backend="process"):
        assert await gather_one(os.getpid, backend="thread") == os.getpid()


async def test_config_blocks_nest() -> None:
    with parallel_config(backend="inline", batch_size=1):
        with parallel_config(backend="thread"):
            assert await gather_one(threading.get_ident) != threading.get_ident()
        assert await gather_one(threading.get_ident) == threading.get_ident()


async def test_interleaved_tasks_do_not_see_each_others_config() -> None:
    both = asyncio.Barrier(2)

    async def run(backend: Any) -> bool:
        with parallel_config(backend=backend):
            await both.wait()
            ident = await gather_one(threading.get_ident)
            await both.wait()
            again = await gather_one(threading.get_ident)
        return ident == again == threading.get_ident()

    assert await asyncio.gather(run("inline"), run("thread")) == [True, False]


async def test_a_configured_pool_is_used_and_a_given_backend_wins_over_it() -> None:
    async with Pool(1, "inline") as pool:
        with parallel_config(pool=pool):
            assert await gather_one(threading.get_ident) == threading.get_ident()
            assert await gather_one(threading.get_ident, backend="thread") != threading.get_ident()


async def test_an_inner_block_wins_over_what_an_outer_one_says_in_other_words() -> None:
    async with Pool(1, "inline") as pool:
        with parallel_config(pool=pool), parallel_config(backend="thread"):
            assert await gather_one(threading.get_ident) != threading.get_ident()
        with parallel_config(backend="process"), parallel_config(require="sharedmem"):
            assert await gather_one(os.getpid) == os.getpid()
        with parallel_config(backend="thread"), parallel_config(pool=pool), parallel_config(backend=None):
            assert await gather_one(threading.get_ident) == threading.get_ident()


async def test_configured_inner_threads_do_not_hinder_a_pool() -> None:
    async with Pool(1, "inline") as pool:
        with parallel_config(inner_max_num_threads=1):
            assert await pool.gather([delayed(double)(1)]) == [2]


def test_a_bad_configuration_is_refused_where_it_is_made() -> None:
    with pytest.raises(TypeError, match=r"'n_job'.*'n_jobs'"), parallel_config(n_job=2):
        pass
    with pytest.raises(ValueError, match="n_jobs"), parallel_config(n_jobs=0):
        pass


# Options


async def report_later(done: int, total: int | None) -> None: ...


class ReportsLater:
    async def __call__(self, done: int, total: int | None) -> None: ...


BAD_OPTIONS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"n_job": 2}, TypeError, "no option 'n_job'. Did you mean 'n_jobs'"),
    ({"n_jobs": 0}, ValueError, "n_jobs"),
    ({"n_jobs": 2.0}, TypeError, "n_jobs"),
    ({"n_jobs": "2"}, TypeError, "n_jobs"),
    ({"n_jobs": True}, TypeError, "n_jobs"),
    ({"backend": "procces"}, ValueError, "'procces'"),
    ({"backend": 3}, ValueError, "backend=3"),
    ({"prefer": "process"}, ValueError, "prefer"),
    ({"require": "shared"}, ValueError, "require"),
    ({"require": "sharedmem", "backend": "process"}, ValueError, "sharedmem"),
    ({"require": "sharedmem", "backend": "loky"}, ValueError, "sharedmem"),
    ({"require": "sharedmem", "prefer": "processes"}, ValueError, "contradict"),
    ({"pool": 3, "require": "sharedmem"}, TypeError, "pool=3 is neither a Pool"),
    ({"batch_size": 0}, ValueError, "batch_size"),
    ({"batch_size": 1.5}, ValueError, "batch_size"),
    ({"pre_dispatch": 0}, ValueError, "pre_dispatch"),
    ({"pre_dispatch": "__import__('os')"}, ValueError, "pre_dispatch"),
    ({"pre_dispatch": 2.5}, ValueError, "pre_dispatch"),
    ({"timeout": 0}, ValueError, "timeout"),
    ({"timeout": -1}, ValueError, "timeout"),
    ({"timeout": float("nan")}, ValueError, "timeout"),
    ({"timeout": "1"}, ValueError, "timeout"),
    ({"timeout": 1, "backend": "thread"}, ValueError, "abandon"),
    ({"timeout": 1, "backend": "inline"}, ValueError, "abandon"),
    ({"on_cancel": "kill", "backend": "thread"}, ValueError, "kill"),
    ({"on_cancel": "stop"}, ValueError, "on_cancel"),
    ({"retries": -1}, ValueError, "retries"),
    ({"retries": 1.0}, ValueError, "retries"),
    ({"verbose": "loud"}, TypeError, "verbose"),
    ({"verbose": 1.5}, TypeError, "verbose"),
    ({"verbose": None}, TypeError, "verbose"),
    ({"progress": 3}, TypeError, "progress"),
    ({"progress": None}, TypeError, "progress"),
    ({"progress": report_later}, TypeError, "coroutine function"),
    ({"progress": ReportsLater()}, TypeError, "coroutine function"),
    ({"pool": 3}, TypeError, "pool=3"),
    ({"return_as": "generator"}, TypeError, "stream_parallel"),
    ({"ordered": False}, TypeError, "stream_parallel"),
    ({"inner_max_num_threads": 0}, ValueError, "inner_max_num_threads"),
]


@pytest.mark.parametrize(("options", "kind", "text"), BAD_OPTIONS, ids=lambda value: str(value)[:40])
async def test_a_bad_option_is_refused_before_any_call_is_drawn(
    options: dict[str, Any], kind: type[Exception], text: str
) -> None:
    calls = iter([delayed(double)(1)])
    with pytest.raises(kind, match=re.escape(text).replace(r"\ ", " ")):
        await gather_parallel(calls, **options)
    assert len(list(calls)) == 1


async def test_a_pool_and_a_backend_contradict_each_other() -> None:
    async with Pool(1, "inline") as pool:
        with pytest.raises(ValueError, match=r"backend= and pool="):
            await gather_parallel([delayed(double)(1)], pool=pool, backend="thread")
        with pytest.raises(ValueError, match="backend"):
            await pool.gather([delayed(double)(1)], backend="thread")
        with pytest.raises(ValueError, match="inner_max_num_threads"):
            await pool.gather([delayed(double)(1)], inner_max_num_threads=1)
        with pytest.raises(ValueError, match="another pool"):
            await pool.gather([delayed(double)(1)], pool=Pool(1, "inline"))


async def test_a_process_pool_is_no_shared_memory() -> None:
    async with Pool(1) as pool:
        with pytest.raises(ValueError, match="sharedmem"):
            await gather_parallel([delayed(double)(1)], pool=pool, require="sharedmem")


async def test_threads_may_have_a_timeout_that_abandons() -> None:
    options: Any = {"backend": "thread", "timeout": 30, "on_cancel": "abandon"}
    assert await gather_parallel([delayed(double)(1)], **options) == [2]


@pytest.mark.parametrize(
    ("options", "own_process", "own_thread"),
    [
        ({"backend": "loky"}, False, False),
        ({"backend": "multiprocessing"}, False, False),
        ({"backend": "threading"}, True, False),
        ({"backend": "sequential"}, True, True),
        ({"prefer": "threads"}, True, False),
        ({"prefer": "processes"}, False, False),
        ({"require": "sharedmem"}, True, False),
        ({"prefer": "threads", "backend": "process"}, False, False),
    ],
    ids=str,
)
async def test_joblibs_names_mean_what_they_mean_there(
    options: dict[str, Any], own_process: bool, own_thread: bool
) -> None:
    assert (await gather_one(os.getpid, **options) == os.getpid()) is own_process
    here = (os.getpid(), threading.main_thread().ident)
    assert (await gather_one(partial(lambda: (os.getpid(), threading.get_ident())), **options) == here) is own_thread


@pytest.mark.parametrize("backend", ["loky", "process", "thread", "inline"])
async def test_a_demand_for_shared_memory_outweighs_the_backend_of_a_block(backend: Any) -> None:
    with parallel_config(backend=backend):
        (found,) = await gather_parallel([delayed(thread_of)()], require="sharedmem")
        assert found[0] == os.getpid()
        assert (found[1] == threading.get_ident()) is (backend == "inline")  # which shares memory, too
    with parallel_config(require="sharedmem"), pytest.raises(ValueError, match="sharedmem"):
        await gather_parallel([delayed(os.getpid)()], backend="process")


async def test_negative_n_jobs_count_from_all_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APARALLEL_CPU_COUNT", "3")
    assert cpu_count() == 3
    assert [Pool(n_jobs, "thread").n_jobs for n_jobs in (-1, -2, -3, -9, 5)] == [3, 2, 1, 1, 5]


async def test_a_stream_checks_its_options_where_it_is_made() -> None:
    with pytest.raises(TypeError, match="'n_jobs'"):
        stream_parallel([], n_job=2)  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="sharedmem"):
        stream_parallel([], require="sharedmem", backend="process")
