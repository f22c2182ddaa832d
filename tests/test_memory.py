"""Memory: what is computed once, what is remembered, and what nobody may lose by it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import inspect
import itertools
import json
import math
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import MethodType
from typing import Any

import importable
import memory_support
import numpy as np
import pytest
from memory_support import Recorder, files_of, until

from aparallel import Memory, Pool, delayed, errors, gather_parallel
from aparallel._ground.threads import Threads
from aparallel._memory import computation, computing_threads, lookup, single_flight, tier
from aparallel._memory.computing_threads import ComputingThreads
from aparallel._memory.disk import recency
from aparallel._memory.disk.locks import ByteLocks, FileLocks


@pytest.fixture(autouse=True)
def flush_recency_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test ends when its threads have, and the one that flushes waits for company."""
    monkeypatch.setattr(recency, "_DELAY", 0.01)


@pytest.fixture
def location(tmp_path: Path) -> str:
    return str(tmp_path / "cache")


@pytest.fixture
def memory(location: str) -> Memory:
    return Memory(location)


@pytest.fixture(params=["ours", "anyio's"])
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Functions are computed in both kinds of threads; here anyio is imported, so they would all be in anyio's."""
    monkeypatch.setattr(ComputingThreads, "_may_call_back", lambda self: request.param == "anyio's")


@pytest.fixture
def one_thread(threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of them for each loop."""
    monkeypatch.setattr(computing_threads, "_threads", Threads(1))
    monkeypatch.setattr(computing_threads, "COMPUTING_THREADS", 1)


# Remembering


async def test_a_result_is_computed_once_and_then_remembered(memory: Memory, location: str) -> None:
    recorder = Recorder()
    cached = memory.cache(recorder)
    assert await cached(1) == await cached(x=1) == await Memory(location).cache(recorder)(1) == [1]
    assert await cached(1.0) == [1.0]
    assert [repr(x) for x in recorder.calls] == ["1", "1.0"]


class Shape:
    def __init__(self, width: int, record: list[Any]) -> None:
        self.width = width
        self._record = record

    def __aparallel_key__(self) -> int:
        return self.width

    def area(self, height: int) -> int:
        """Return the area."""
        self._record.append((self.width, height))
        return self.width * height


async def test_an_error_has_nothing_of_ours_in_its_context(memory: Memory) -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        await memory.cache(lambda x: 1 // x)(0)
    assert caught.value.__context__ is None


async def test_only_what_a_caller_gets_counts_as_a_hit(memory: Memory) -> None:
    cached = memory.cache(abs)
    await cached(-1)
    await cached.explain(-1)
    await cached.check_call_in_cache(-1)
    assert (cached.statistics().hits, cached.statistics().memory_hits) == (0, 0)
    await cached(-1)
    assert (cached.statistics().hits, cached.statistics().memory_hits) == (1, 1)


@pytest.mark.parametrize(("limit", "error"), [(-1, ValueError), ("3", TypeError), (1.5, TypeError)])
async def test_a_bad_limit_removes_nothing(memory: Memory, limit: Any, error: type[Exception]) -> None:
    cached = memory.cache(abs)
    await cached(-1)
    with pytest.raises(error, match="items_limit"):
        await memory.reduce_size(items_limit=limit)
    assert await cached.check_call_in_cache(-1)


async def test_parameters_may_have_any_name(memory: Memory) -> None:
    def named(self: int, fn: int, args: int, key: int) -> int:
        return self + fn + args + key

    given = {"self": 1, "fn": 2, "args": 3, "key": 4}
    cached = memory.cache(named)
    assert await cached(**given) == await cached.refresh(**given) == await memory.eval(named, **given) == 10
    assert (await cached.explain(**given)).hit
    assert await cached.check_call_in_cache(**given)
    assert await (await cached.call_and_shelve(**given)).get() == 10
    assert await cached.forget(**given)


def test_under_trio_the_error_names_it(memory: Memory) -> None:
    trio = pytest.importorskip("trio")
    with pytest.raises(errors.WrongLoopError, match="trio"):
        trio.run(memory.eval, abs, -1)


async def test_memoizing_what_is_memoized_memoizes_its_function(memory: Memory) -> None:
    class Scale:
        @memory.cache
        def by(self, x: int) -> int:
            return 3 * x

    twice = memory.cache(memory.cache(abs))
    assert twice.__wrapped__ is abs
    assert await twice(-2) == 2
    assert await memory.cache(Scale().by)(2) == 6


async def test_methods_are_bound_and_count_their_object(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    cached = memory.cache(Shape.area)
    monkeypatch.setattr(Shape, "area", cached)
    record: list[Any] = []
    one, two = Shape(1, record), Shape(2, record)
    assert [await one.area(3), await two.area(3), await one.area(height=3)] == [3, 6, 3]
    assert record == [(1, 3), (2, 3)]
    method: Any = one.area
    assert method.__doc__ == "Return the area."
    assert inspect.iscoroutinefunction(type(method).__call__)
    assert await method.check_call_in_cache(3)
    assert (await method.explain(3)).hit
    assert await method.forget(3)
    assert not await method.check_call_in_cache(3)
    assert await method.refresh(3) == 3
    assert await (await method.call_and_shelve(3)).get() == 3
    assert method.statistics() == cached.statistics()
    assert await method.clear() == 2


@pytest.mark.filterwarnings("ignore:'asyncio.iscoroutinefunction':DeprecationWarning")  # from Python 3.14 on
async def test_every_form_of_function_can_be_memoized(memory: Memory) -> None:
    async def coroutine(x: float) -> float:
        return x * 2

    class Static:
        @staticmethod
        @memory.cache
        def double(x: float) -> float:
            return x * 2

    class Doubler:
        def __call__(self, x: float) -> float:
            return x * 2

        async def later(self, x: float) -> float:
            return x * 2

        def __reduce__(self) -> Any:
            return Doubler, ()

    def multiply(a: float, x: float) -> float:
        return a * x

    async def multiply_later(a: float, x: float) -> float:
        return a * x

    @functools.wraps(multiply)
    def decorated(x: float) -> float:
        return multiply(2, x)

    forms: list[Any] = [
        coroutine,
        lambda x: x * 2,
        Doubler(),
        Doubler().later,
        functools.partial(multiply, 2),
        functools.partial(multiply_later, 2),
        decorated,
        (2.0).__mul__,
        functools.lru_cache(lambda x: x * 2),
    ]
    for form in forms:
        cached = memory.cache(form)
        assert await cached(4.0) == await cached(4.0) == 8.0
        assert cached.statistics().misses == 1, form
        assert inspect.iscoroutinefunction(cached) or sys.version_info < (3, 12)
        assert asyncio.iscoroutinefunction(cached)
    assert await Static.double(4.0) == 8.0
    assert await memory.cache(math.sqrt)(4) == 2.0
    assert await memory.cache(dict)(a=1) == {"a": 1}
    assert await memory.eval(max, 1, 2) == 2


def test_what_cannot_be_memoized_is_refused_with_words(memory: Memory) -> None:
    def generator() -> Iterator[int]:
        yield 1

    async def later() -> Any:
        yield 1

    for form in (generator, later, functools.partial(generator)):
        with pytest.raises(TypeError, match=r"is a generator function.*Return a list"):
            memory.cache(form)
    with pytest.raises(TypeError, match="takes a function, got 3"):
        memory.cache(3)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="below @staticmethod"):
        memory.cache(staticmethod(len))


async def test_a_plain_function_that_returns_a_coroutine_says_what_to_do(memory: Memory) -> None:
    async def inner() -> int:
        return 1

    with pytest.raises(TypeError, match="Make it `async def`"):
        await memory.cache(lambda: inner())()  # noqa: PLW0108  # it must be a plain function


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mmap_mode": "r+"}, "mmap_mode='r\\+'"),
        ({"mmap_mode": "r", "compress": "zlib"}, "exclude each other"),
        ({"max_entries": 0}, "max_entries=0"),
        ({"max_bytes": "1 furlong"}, "furlong"),
        ({"max_bytes": 0}, "max_bytes=0"),
        ({"ttl": -1}, "-1"),
        ({"signing_key": b""}, "signing_key is empty"),
        ({"track": "all"}, "track='all'"),
        ({"pool": 3}, "pool=3"),
        ({"verbose": "much"}, "verbose='much'"),
    ],
)
def test_bad_options_are_refused(options: Any, message: str, location: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        Memory(location, **options)
    assert not os.path.exists(location)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validate": 3}, "validate=3 is no function"),
        ({"cache_validation_callback": 3}, "validate=3 is no function"),
        ({"cache_errors": "ValueError"}, "cache_errors='ValueError' is neither"),
        ({"cache_errors": [int]}, "neither True or False nor types"),
        ({"tags": [1]}, r"1 \(int\) is none"),
        ({"tags": "price"}, r"Write tags=\['price'\]"),
        ({"depends_on": len}, r"Write depends_on=\[<built-in"),
    ],
)
def test_bad_options_of_a_function_are_refused(options: Any, message: str, memory: Memory) -> None:
    with pytest.raises(TypeError, match=message):
        memory.cache(**options)


async def test_results_that_expire_at_once_must_be_good_for_something(location: str) -> None:
    memory = Memory(location, ttl=0)
    with pytest.raises(ValueError, match=r"ttl=0 has every result expire at once\. Memory\(None\) caches nothing"):
        memory.cache(len)
    cached = memory.cache(stale_while_revalidate="1h")(Recorder())
    assert [await cached(1), await cached(1)] == [[1], [1]]
    await until(lambda: cached.__wrapped__.calls == [1, 1])


async def test_tags_that_a_function_gives_are_checked_too(memory: Memory) -> None:
    cached = memory.cache(tags=lambda item: item)(len)
    with pytest.raises(TypeError, match=r"Write tags=\['apple'\]"):
        await cached("apple")


@pytest.mark.parametrize("location", [3, ["cachedir"]])
def test_a_location_is_a_path(location: Any) -> None:
    with pytest.raises(TypeError, match="is neither a path nor a Store"):
        Memory(location)
    assert Memory(os.fsencode("cachedir")).location == Memory(Path("cachedir")).location == os.path.abspath("cachedir")  # type: ignore[arg-type]


async def test_without_a_location_nothing_is_cached_and_all_else_works() -> None:
    recorder = Recorder()
    memory = Memory(None)
    cached = memory.cache(recorder)
    assert [await cached(1), await cached(1), await cached.refresh(1)] == [[1]] * 3
    assert recorder.calls == [1, 1, 1]
    assert not await cached.check_call_in_cache(1)
    assert (await cached.explain(1)).reason == "not cached"
    assert await (await cached.call_and_shelve(2)).get() == [2]
    with pytest.raises(TypeError):
        await cached("one", "too many")
    assert cached.statistics().misses == 5
    assert await cached.clear() == await memory.clear() == await memory.reduce_size(items_limit=1) == 0
    assert [entry async for entry in memory.entries()] == []
    assert (await memory.statistics()).entries == 0
    await memory.invalidate(["a"])
    assert await memory.cache(lambda x: x)(threading.Lock()) is not None  # there are no keys


async def test_no_parameter_is_ignored_if_none_is_named_as_in_joblib(memory: Memory) -> None:
    cached = memory.cache(ignore=None)(abs)
    assert [await cached(-1), await cached(-2)] == [1, 2]


async def test_refresh_forget_and_clear(memory: Memory) -> None:
    numbers = itertools.count()
    hidden = {"numbers": numbers}

    def draw(x: int) -> int:
        hidden["last"] = x
        return next(hidden["numbers"])

    cached = memory.cache(draw)
    assert [await cached(0), await cached(0), await cached.refresh(0), await cached(0)] == [0, 0, 1, 1]
    assert await cached.call(0) == 2
    assert await cached.forget(0)
    assert not await cached.forget(0)
    assert await cached(0) == 3
    assert await cached(1) == 4
    assert await cached.clear() == 2
    assert await cached(0) == 5
    assert await memory.clear() == 1
    assert (await memory.statistics()).entries == 0


async def test_a_shelved_result_is_small_and_travels(memory: Memory) -> None:
    cached = memory.cache(np.ones)
    shelved = await cached.call_and_shelve(300_000)
    data = pickle.dumps(shelved)
    assert len(data) < 2000
    copy = pickle.loads(data)
    assert (await copy.get()).sum() == 300_000
    await copy.clear()
    with pytest.raises(errors.MissingResultError, match="Call the function again") as caught:
        await shelved.get()
    assert pickle.loads(pickle.dumps(caught.value)).call == caught.value.call
    assert not await cached.check_call_in_cache(300_000)


# One computation for all


async def test_concurrent_equal_calls_compute_once_and_share_no_object(memory: Memory) -> None:
    calls: list[int] = []

    @memory.cache
    async def fn(x: int) -> list[int]:
        calls.append(x)
        await asyncio.sleep(0.05)
        return [x]

    results = await asyncio.gather(*(fn(1) for _ in range(64)))
    assert results == [[1]] * 64
    assert calls == [1]
    results[0].append(2)
    assert results[1:] == [[1]] * 63
    assert await fn(1) == [1]
    assert len({id(result) for result in results}) == 64


async def test_equal_calls_of_a_plain_function_compute_once(memory: Memory, threads: None) -> None:
    calls: list[int] = []
    # An event is no content; it hides in a dict that the function changes itself, which is not part of the key.
    held: dict[str, Any] = {"release": threading.Event()}

    @memory.cache
    def fn(x: int) -> int:
        calls.append(x)
        held["seen"] = x
        assert held["release"].wait(10)
        return x

    tasks = [asyncio.ensure_future(fn(1)) for _ in range(20)]
    await until(lambda: calls, *tasks)
    held["release"].set()
    assert await asyncio.gather(*tasks) == [1] * 20
    assert calls == [1]


@pytest.mark.parametrize("cache_errors", [False, True])
@pytest.mark.parametrize("in_task", [False, True])
async def test_nothing_keeps_results_errors_or_arguments_alive(
    in_task: bool, cache_errors: bool, memory: Memory, threads: None
) -> None:
    class Argument(set[int]):
        def __reduce__(self) -> Any:
            return set, ([*self],)

    results: list[weakref.ref[Any]] = []

    def plain(x: Argument) -> set[int]:
        if x:
            raise ValueError("x")
        result = {1}
        results.append(weakref.ref(result))
        return result

    async def on_loop(x: Argument) -> set[int]:
        return plain(x)

    cached: Any = memory.cache(on_loop if in_task else plain, cache_errors=cache_errors)
    gc.collect()
    gc.disable()
    try:
        assert await cached(Argument()) == {1}
        argument = Argument([1])
        reference = weakref.ref(argument)
        with contextlib.suppress(ValueError):
            await cached(argument)
        del argument
        await until(lambda: results[0]() is reference() is None)
    finally:
        gc.enable()


async def test_a_cancelled_caller_leaves_the_others_unharmed(memory: Memory) -> None:
    calls: list[int] = []
    gates: dict[str, asyncio.Event] = {}

    @memory.cache
    async def fn(x: int) -> int:
        calls.append(x)
        gates["started"] = gates["started"]
        gates["started"].set()
        await gates["go"].wait()
        return x

    gates.update(started=asyncio.Event(), go=asyncio.Event())
    first, second = (asyncio.ensure_future(fn(1)) for _ in range(2))
    await until(lambda: any(len(flight.waiters) == 2 for flight in single_flight._flights.values()), first, second)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    gates["go"].set()
    assert await second == 1
    assert calls == [1]


async def test_the_last_to_leave_cancels_a_coroutine_and_frees_its_key(memory: Memory) -> None:
    events: list[str] = []
    gates: dict[str, asyncio.Event] = {}

    @memory.cache
    async def fn(x: int) -> int:
        events.append("started")
        gates["started"] = gates["started"]
        gates["started"].set()
        try:
            await gates["go"].wait()
        except asyncio.CancelledError:
            events.append("cancelled")
            raise
        return x

    gates.update(started=asyncio.Event(), go=asyncio.Event())
    tasks = [asyncio.ensure_future(fn(1)) for _ in range(3)]
    await until(gates["started"].is_set, *tasks)
    await until(lambda: any(len(flight.waiters) == 3 for flight in single_flight._flights.values()), *tasks)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    await until(lambda: events[-1] == "cancelled")
    gates["go"].set()
    assert await fn(1) == 1
    assert events == ["started", "cancelled", "started"]


async def test_a_thread_that_nobody_waits_for_finishes_and_stores(memory: Memory, threads: None) -> None:
    calls: list[int] = []
    held: dict[str, Any] = {}

    @memory.cache
    def fn(x: int) -> int:
        calls.append(x)
        held["go"] = held["go"]
        assert held["go"].wait(10)
        return x

    held["go"] = threading.Event()
    task = asyncio.ensure_future(fn(1))
    await until(lambda: calls, task)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    held["go"].set()
    await until(lambda: fn.statistics().stored)
    assert await fn(1) == 1
    assert calls == [1]


async def test_what_waits_for_a_thread_never_begins_if_nobody_wants_it(memory: Memory, one_thread: None) -> None:
    calls: list[str] = []
    held: dict[str, Any] = {}

    @memory.cache
    def fn(x: str) -> str:
        calls.append(x)
        held["last"] = x
        if x == "first":
            assert held["go"].wait(10)
        return x

    held["go"] = threading.Event()
    first = asyncio.ensure_future(fn("first"))
    await until(lambda: calls, first)
    second = asyncio.ensure_future(fn("second"))
    await until(lambda: len(single_flight._flights) == 2, first, second)
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    await until(lambda: len(single_flight._flights) == 1, first)
    held["go"].set()
    assert await asyncio.gather(first, fn("third")) == ["first", "third"]
    assert calls == ["first", "third"]


async def test_a_function_that_raises_cancelled_error_raises_it_to_all_who_wait(memory: Memory) -> None:
    runs = 0

    @memory.cache
    async def ask(x: int) -> None:
        nonlocal runs
        runs += 1
        (flight,) = single_flight._flights.values()
        await until(lambda: len(flight.waiters) == 2)
        raise asyncio.CancelledError("of something that it waited for")

    async def caught() -> str:
        try:
            await ask(1)
        except asyncio.CancelledError as error:
            return str(error)
        return ""

    async with asyncio.timeout(10):
        assert await asyncio.gather(caught(), caught()) == ["of something that it waited for"] * 2
    assert runs == 1


def test_loops_in_many_threads_compute_once(location: str, threads: None) -> None:
    calls: list[int] = []
    memory = Memory(location)
    start = threading.Barrier(8)

    @memory.cache
    def slow(x: int) -> list[int]:
        calls.append(x)
        time.sleep(0.1)
        return [x]

    @memory.cache
    async def slow_coroutine(x: int) -> list[int]:
        calls.append(-x)
        await asyncio.sleep(0.1)
        return [x]

    async def both() -> list[Any]:
        return await asyncio.gather(slow(1), slow_coroutine(1), slow(1), slow_coroutine(1))

    results: list[Any] = []

    def run() -> None:
        start.wait()
        results.append(asyncio.run(both()))

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [[[1]] * 4] * 8
    assert sorted(calls) == [-1, 1]


def test_a_loop_that_ends_hands_its_computation_on(location: str) -> None:
    memory = Memory(location)
    events: dict[str, Any] = {"started": threading.Event(), "waiting": threading.Event()}
    calls: list[str] = []

    @memory.cache
    async def fn(x: int) -> int:
        calls.append(threading.current_thread().name)
        events["last"] = x
        events["started"].set()
        if len(calls) == 1:
            await asyncio.sleep(60)
        return x

    async def begin() -> None:
        task = asyncio.ensure_future(fn(1))
        while not await asyncio.to_thread(events["waiting"].wait, 0.01):
            pass
        assert not task.done()

    first = threading.Thread(target=lambda: asyncio.run(begin()), name="first")
    first.start()
    assert events["started"].wait(10)

    async def follow() -> int:
        task = asyncio.ensure_future(fn(1))
        await until(lambda: any(len(flight.waiters) == 2 for flight in single_flight._flights.values()), task)
        events["waiting"].set()
        return await task

    assert asyncio.run(follow()) == 1
    first.join()
    assert calls == ["first", "MainThread"]


@pytest.mark.parametrize("is_closed", [False, True])
def test_a_loop_that_is_left_with_its_tasks_hands_its_computation_on(
    is_closed: bool, memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(single_flight, "_LOOK_AT_LOOP_EVERY", 0.01)
    gated: dict[str, Any] = {"calls": 0}

    async def fn(x: int) -> int:
        gated["calls"] += 1
        if gated["calls"] == 1:
            await asyncio.Event().wait()
        return x

    cached = memory.cache(fn)

    async def begin() -> asyncio.Task[int]:
        task = asyncio.ensure_future(cached(1))
        await until(lambda: gated["calls"], task)
        return task

    async def again() -> int:
        async with asyncio.timeout(10):
            return await cached(1)

    left = asyncio.new_event_loop()
    left.set_exception_handler(lambda *_: None)  # of tasks that are destroyed
    task = left.run_until_complete(begin())
    if is_closed:
        left.close()
    assert asyncio.run(again()) == 1
    if not is_closed:  # it goes on with what the other one has computed
        assert left.run_until_complete(task) == 1
        left.close()
    assert gated["calls"] == 2


def test_a_loop_that_ends_hands_on_what_waits_for_a_thread(location: str, one_thread: None) -> None:
    memory = Memory(location)
    events: dict[str, Any] = {"go": threading.Event(), "waiting": threading.Event()}
    calls: list[str] = []

    @memory.cache
    def fn(x: str) -> str:
        calls.append(x)
        events["last"] = x
        if x == "first":
            assert events["go"].wait(10)
        return x

    async def begin() -> None:
        tasks = [asyncio.ensure_future(fn("first"))]
        await until(lambda: calls, *tasks)
        tasks.append(asyncio.ensure_future(fn("second")))
        await until(events["waiting"].is_set, *tasks)

    def run_first() -> None:
        loop = asyncio.new_event_loop()
        loop.run_until_complete(begin())
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0.01))
        loop.close()

    first = threading.Thread(target=run_first)
    first.start()

    async def follow() -> str:
        async with asyncio.timeout(10):
            await until(lambda: len(single_flight._flights) == 2)
            task = asyncio.ensure_future(fn("second"))
            await until(lambda: any(len(flight.waiters) == 2 for flight in single_flight._flights.values()), task)
            events["waiting"].set()
            return await task

    try:
        assert asyncio.run(follow()) == "second"
    finally:
        events["go"].set()
        first.join()
    assert calls == ["first", "second"]


async def test_a_function_that_awaits_its_own_key_raises(memory: Memory) -> None:
    table: dict[str, Any] = {}

    @memory.cache
    async def direct(x: int) -> Any:
        table["last"] = x
        return await table["direct"](x)

    @memory.cache
    async def ping(x: int) -> Any:
        table["last"] = x
        return await asyncio.gather(table["pong"](x))

    @memory.cache
    async def pong(x: int) -> Any:
        table["last"] = x
        return await asyncio.create_task(table["ping"](x))

    @memory.cache
    def from_thread(x: int) -> Any:
        import anyio.from_thread

        table["last"] = x
        return anyio.from_thread.run(table["from_thread"], x)

    table.update(direct=direct, ping=ping, pong=pong, from_thread=from_thread)
    async with asyncio.timeout(20):
        for fn in (direct, ping, from_thread):
            with pytest.raises(errors.RecursiveCallError, match="awaits its own result"):
                await fn(1)
        # Two that begin at the same moment and wait for each other.
        outcomes = await asyncio.gather(ping(2), pong(2), return_exceptions=True)
        assert any(isinstance(outcome, errors.RecursiveCallError) for outcome in outcomes)
    assert not single_flight._flights


async def test_recursion_with_other_arguments_works(memory: Memory) -> None:
    table: dict[str, Any] = {}

    @memory.cache
    async def fibonacci(n: int) -> int:
        table["last"] = n
        return n if n < 2 else sum(await asyncio.gather(table["f"](n - 1), table["f"](n - 2)))

    @memory.cache
    def factorial(n: int) -> int:
        import anyio.from_thread

        table["last"] = n
        return n * anyio.from_thread.run(table["g"], n - 1) if n else 1

    table.update(f=fibonacci, g=factorial)
    async with asyncio.timeout(60):
        assert await fibonacci(25) == 75025
        assert await factorial(40) == math.factorial(40)  # deeper than there are threads for others
    assert fibonacci.statistics().misses == 26


PROCESS = """
import asyncio, os, sys, time
from aparallel import Memory

memory = Memory({location!r})

@memory.cache
def work(x):
    with open({log!r}, "a") as file:
        file.write(f"{{x}}\\n")
    time.sleep(0.2)
    return {{"x": x}}

async def main():
    results = await asyncio.gather(*(work(x) for x in (1, 2, 1)))
    assert results == [{{"x": 1}}, {{"x": 2}}, {{"x": 1}}], results

asyncio.run(main())
"""


def run_processes(count: int, script: str) -> None:
    processes = [
        subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True) for _ in range(count)
    ]
    for process in processes:
        _, stderr = process.communicate(timeout=100)
        assert process.returncode == 0, stderr


def test_processes_on_one_directory_compute_once(location: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    run_processes(6, PROCESS.format(location=location, log=str(log)))
    assert sorted(log.read_text().split()) == ["1", "2"]


@pytest.mark.soak
def test_two_hundred_processes_compute_once(location: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    run_processes(200, PROCESS.format(location=location, log=str(log)))
    assert sorted(log.read_text().split()) == ["1", "2"]


HOLDER = """
import asyncio, sys, time
from aparallel import Memory

memory = Memory(sys.argv[1])

@memory.cache(track="none")
def work(x):
    print("computing", flush=True)
    if sys.argv[2] == "hold":
        time.sleep(60)
    return x

print("asking", flush=True)
print(asyncio.run(work(1)), flush=True)
"""


def test_a_lock_dies_with_its_holder(location: str) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, location, "hold"], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert [holder.stdout.readline() for _ in range(2)] == ["asking\n", "computing\n"]
    other = subprocess.Popen([sys.executable, "-c", HOLDER, location, "go"], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "asking\n"
    with pytest.raises(subprocess.TimeoutExpired):
        other.wait(0.5)
    holder.kill()
    out, _ = other.communicate(timeout=20)
    assert out == "computing\n1\n"
    holder.wait()
    holder.stdout.close()


@pytest.mark.parametrize("make", [ByteLocks, FileLocks])
def test_locks_exclude_each_other_within_a_process_and_between(make: Any, tmp_path: Path) -> None:
    locks, others = make(str(tmp_path / "locks")), make(str(tmp_path / "locks"))
    assert locks.try_acquire(5)
    assert not locks.try_acquire(5)
    assert not others.try_acquire(5)
    assert others.try_acquire(6)
    locks.release(5)
    assert others.try_acquire(5)
    others.release(5)
    others.release(6)
    assert locks.try_acquire(6)
    locks.release(6)
    others.release(6)  # not held: nothing happens


@pytest.mark.parametrize("make", [ByteLocks, FileLocks])
def test_a_forked_child_does_not_keep_its_parents_locks(make: Any, tmp_path: Path) -> None:
    script = """
import os, sys, time
from aparallel._memory.disk.locks import ByteLocks, FileLocks
locks = {kind}({path!r})
assert locks.try_acquire(1)
if os.fork() == 0:
    print("ready", flush=True)
    time.sleep(60)
    os._exit(0)
sys.stdin.read()
os._exit(0)
""".format(kind=make.__name__, path=str(tmp_path / "locks"))
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    locks = make(str(tmp_path / "locks"))
    assert not locks.try_acquire(1)
    process.stdin.close()
    process.wait(10)
    try:
        assert locks.try_acquire(1)
        locks.release(1)
    finally:
        process.stdout.close()
        os.killpg(process.pid, signal.SIGKILL)


# The memory tier


async def test_no_caller_can_change_what_another_gets(memory: Memory, location: str) -> None:
    makers: list[Callable[[int], Any]] = [
        lambda n: [n],
        lambda n: {"a": [n]},
        lambda n: np.full(3, n),
        lambda n: np.full(300_000, n),
        lambda n: {"array": np.full(300_000, n)},
    ]

    def first_of(value: Any) -> Any:
        inner = value.get("a", value.get("array")) if isinstance(value, dict) else value
        return inner[0]

    def spoil(value: Any) -> None:
        inner = value.get("a", value.get("array")) if isinstance(value, dict) else value
        inner[0] = 99

    for make in makers:
        cached = memory.cache(make)
        for _ in range(4):
            value = await cached(5)
            assert first_of(value) == 5
            spoil(value)
        again = Memory(location).cache(make)
        value = await again(5)
        spoil(value)
        assert first_of(await again(5)) == 5


class Unreadable:
    """It pickles, and does not unpickle."""

    def __reduce__(self) -> Any:
        return int, ("no number",)


@pytest.mark.parametrize("trusted_for", [10.0, 0.0])
async def test_a_result_that_cannot_be_unpickled_is_a_miss(
    memory: Memory, monkeypatch: pytest.MonkeyPatch, trusted_for: float
) -> None:
    monkeypatch.setattr(lookup, "TRUSTED_FOR", trusted_for)
    make = memory.cache(lambda x: Unreadable())
    for _ in range(3):
        assert isinstance(await make(1), Unreadable)
    assert make.statistics().hits == 0
    assert (await make.explain(1)).reason == "damaged"


async def test_a_repeated_hit_does_not_touch_the_disk(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    cached = memory.cache(lambda x: [x])
    await cached(1)

    async def no_hop(*args: Any) -> Any:
        raise AssertionError("a hop to a thread")

    monkeypatch.setattr(tier, "TRUSTED_FOR", 60)
    monkeypatch.setattr(lookup, "TRUSTED_FOR", 60)
    monkeypatch.setattr(computation, "in_thread", no_hop)
    assert await cached(1) == [1]
    assert cached.statistics().memory_hits == 1


async def test_a_miss_after_a_miss_takes_one_hop_and_a_wrong_guess_is_still_a_hit(
    location: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder()
    for x in range(3):
        await Memory(location).cache(recorder)(x)
    cached = Memory(location).cache(recorder)
    hops: list[Any] = []
    hop = computation.in_thread

    async def counted(fn: Any, *args: Any) -> Any:
        hops.append(fn)
        return await hop(fn, *args)

    monkeypatch.setattr(computation, "in_thread", counted)
    assert [await cached(x) for x in (10, 11, 12)] == [[10], [11], [12]]
    assert len(hops) == 1, "the first one looked, then computed; the others did both at once"
    assert await asyncio.gather(*(cached(0) for _ in range(5))) == [[0]] * 5
    assert [await cached(x) for x in (1, 2)] == [[1], [2]]
    assert recorder.calls == [0, 1, 2, 10, 11, 12]
    statistics = cached.statistics()
    assert (statistics.misses, statistics.hits + statistics.shared) == (3, 7)


async def test_who_shared_a_computation_gets_a_small_result_without_a_hop(
    memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = memory.cache(Recorder())
    await cached(0)
    monkeypatch.setattr(computation, "in_thread", None)  # nobody hops: a miss is expected after a miss
    results = await asyncio.gather(*(cached(1) for _ in range(64)))
    assert results == [[1]] * 64
    assert len({id(result) for result in results}) == 64
    assert cached.statistics().shared == 63


async def test_what_another_computes_anew_is_served_meanwhile_also_to_who_expects_a_miss(location: str) -> None:
    class Work:
        def __init__(self) -> None:
            self.entered, self.gate = asyncio.Event(), asyncio.Event()

        async def __call__(self, x: int) -> int:
            self.entered.set()
            await self.gate.wait()
            return x

        def __aparallel_key__(self) -> str:
            return "work"

    work = Work()
    work.gate.set()
    first, second = (Memory(location).cache(work) for _ in range(2))
    assert [await first(1), await second(2)] == [1, 2]
    work.entered.clear()
    work.gate.clear()
    refreshing = asyncio.create_task(first.refresh(1))
    await work.entered.wait()
    async with asyncio.timeout(10):
        assert await second(1) == 1
    assert second.statistics().hits == 1
    work.gate.set()
    assert await refreshing == 1


@pytest.mark.parametrize(
    ("before", "expected"),
    [("", set()), ("await length.explain('abc')", set()), ("import anyio", {"aparallel-thread-apart", "MainThread"})],
)
def test_misses_need_no_anyio_and_never_import_its_large_part_on_the_loop(
    before: str, expected: set[str], tmp_path: Path
) -> None:
    script = textwrap.dedent("""
        import asyncio, sys, threading
        from aparallel import Memory

        class Watch:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] in ("anyio", "sniffio"):
                    imported_in.add(threading.current_thread().name)
                    assert "_backends" not in name or threading.current_thread() is not threading.main_thread()

        imported_in = set()
        sys.meta_path.insert(0, Watch())

        async def main():
            length = Memory(sys.argv[1]).cache(len)
            BEFORE
            assert await asyncio.gather(length("abc"), length("de")) == [3, 2]
            assert await Memory(None).cache(len)("abc") == 3

        asyncio.run(main())
        assert imported_in == EXPECTED, imported_in
    """)
    script = script.replace("BEFORE", before or "pass").replace("EXPECTED", repr(expected))
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "cache")], check=True)


@pytest.mark.parametrize("where", ["before", "within"])
def test_a_function_in_a_thread_may_call_back(where: str, tmp_path: Path) -> None:
    script = textwrap.dedent("""
        import asyncio, sys
        from aparallel import Memory
        if sys.argv[2] == "before":
            import anyio

        async def double(x):
            return 2 * x

        def fn(x):
            if sys.argv[2] == "within":
                import anyio.from_thread
            return sys.modules["anyio"].from_thread.run(double, x)

        assert asyncio.run(Memory(sys.argv[1]).cache(fn)(3)) == 6
    """)
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "cache"), where], check=True)


async def test_hits_do_not_wait_behind_computations(memory: Memory, one_thread: None) -> None:
    gate = threading.Event()
    calls: list[Any] = []

    def slow(x: Any) -> Any:
        calls.append(x)
        if x == "wait":
            gates["wait"].wait()
        gates["last"] = x
        return x

    gates: dict[str, Any] = {"wait": gate}
    cached = memory.cache(slow)
    await cached("stored")
    waiting = asyncio.ensure_future(cached("wait"))
    try:
        await until(lambda: "wait" in calls, waiting)
        memory._shelf.tier.clear()
        async with asyncio.timeout(5):
            assert await cached("stored") == "stored"
    finally:
        gate.set()
    assert await waiting == "wait"
    assert calls == ["stored", "wait"]


async def test_results_that_are_nested_deep_or_share_everything_are_given_and_remembered(memory: Memory) -> None:
    def nested(depth: int, width: int) -> Any:
        value: Any = ()
        for _ in range(depth):
            value = (value,) * width
        return value

    shared = memory.cache(nested)
    assert isinstance(await shared(100, 2), tuple)  # with 2**100 paths through it
    assert isinstance(await shared(100, 2), tuple)
    assert shared.statistics().misses == 1
    with warnings.catch_warnings(action="ignore"):  # it may be too deep for pickle, which is not our limit
        assert len(await shared(2000, 1)) == 1

    constant = nested(2000, 1), nested(100, 2)
    assert await memory.cache(lambda: len(constant))() == 2


async def test_another_process_sees_a_removal_within_a_second(location: str) -> None:
    removals = ("forget", "clear", "evict", "refresh")
    await asyncio.gather(*[is_seen_within_a_second(f"{location}/{removal}", removal) for removal in removals])


async def is_seen_within_a_second(location: str, removal: str) -> None:
    values = {"now": 1}

    def fn(x: int) -> int:
        values["last"] = x
        return values["now"]

    ours, theirs = Memory(location), Memory(location)
    cached, other = ours.cache(fn), theirs.cache(fn)
    assert await cached(0) == 1
    assert await cached(0) == 1
    values["now"] = 2
    if removal == "forget":
        await other.forget(0)
    elif removal == "clear":
        await other.clear()
    elif removal == "evict":
        await theirs.reduce_size(items_limit=0)
    else:
        await other.refresh(0)
    removed = time.monotonic()
    while await cached(0) == 1:
        assert time.monotonic() < removed + 1.0, removal
        await asyncio.sleep(0.01)


async def test_what_is_too_large_for_the_memory_tier_is_not_copied_for_it(
    location: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied: list[int] = []

    def copy_of(value: Any) -> Any:
        copied.append(value.nbytes)
        return tier.copy_of(value)

    monkeypatch.setattr(lookup, "copy_of", copy_of)
    ones = Memory(location, memory_bytes="1MB").cache(np.ones)
    for count in (200_000, 100_000, 200_000, 100_000):
        assert (await ones(count)).sum() == count
    assert copied == [800_000]


async def test_the_memory_tier_is_bounded(location: str) -> None:
    memory = Memory(location, memory_bytes="100KB")
    cached = memory.cache(lambda x: "x" * 10_000 + str(x))
    for x in range(40):
        await cached(x)
    statistics = await memory.statistics()
    assert statistics.entries == 40
    assert 5 <= statistics.memory_entries <= 10
    assert statistics.memory_bytes <= 102_400


# Everywhere


@pytest.mark.filterwarnings("ignore:'asyncio.iscoroutinefunction':DeprecationWarning")  # from Python 3.14 on
async def test_it_pickles(location: str, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = Memory(location, ttl=5, max_entries=7)
    copy = pickle.loads(pickle.dumps(memory))
    assert (copy.location, copy._shelf.home, copy._shelf.options) == (
        memory.location,
        memory._shelf.home,
        memory._shelf.options,
    )
    local = memory.cache(lambda x: [x])
    assert await pickle.loads(pickle.dumps(local))(1) == [1]
    assert await local.check_call_in_cache(1)
    named = memory.cache(memory_support.files_of)
    monkeypatch.setattr(memory_support, "files_of", named)
    assert pickle.loads(pickle.dumps(named)) is named
    monkeypatch.setattr(importable.Scale, "method", memory.cache(importable.Scale.method))
    bound: Any = importable.Scale(3).method
    arrived = pickle.loads(pickle.dumps(bound))
    assert await arrived(2) == 6
    assert (arrived.__func__, type(arrived.__wrapped__)) == (bound.__func__, MethodType)
    assert asyncio.iscoroutinefunction(arrived) == asyncio.iscoroutinefunction(bound)


async def test_it_runs_in_the_workers_of_a_pool(location: str) -> None:
    memory = Memory(location)

    @memory.cache
    def square(x: int) -> tuple[int, int]:
        return x * x, os.getpid()

    @memory.cache
    async def factorial(n: int) -> int:
        return n * await factorial(n - 1) if n else 1

    async with Pool(n_jobs=2) as pool:
        first = await pool.gather(delayed(square)(x) for x in (1, 2, 3, 1, 2, 3))
        assert [value for value, _ in first] == [1, 4, 9, 1, 4, 9]
        assert os.getpid() not in {pid for _, pid in first}
        assert first[:3] == first[3:]
        assert [await square(x) for x in (1, 2, 3)] == first[:3]
        assert await pool.run(factorial, 5) == 120


async def test_misses_are_computed_on_the_pool(location: str) -> None:
    async with Pool(n_jobs=1) as pool:
        memory = Memory(location, pool=pool)
        cached = memory.cache(lambda x, y=1: (x, y, os.getpid()))
        x, y, pid = await cached(1, y=2)
        assert (x, y) == (1, 2)
        assert pid != os.getpid()
        assert await cached(1, 2) == (1, 2, pid)
        here = Memory(location).cache(ignore=["x"])(lambda x: os.getpid())
        assert await here(1) == os.getpid()


async def test_the_last_to_leave_stops_a_pools_worker(location: str, tmp_path: Path) -> None:
    started = tmp_path / "started"

    def endless(path: str) -> None:
        Path(path).write_text(str(os.getpid()))
        while True:
            time.sleep(0.01)

    async with Pool(n_jobs=1) as pool:
        cached = Memory(location, pool=pool).cache(endless)
        task = asyncio.ensure_future(cached(str(started)))
        await until(lambda: started.exists() and started.read_text(), task)
        pid = int(started.read_text())
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: not os.path.exists(f"/proc/{pid}"))
        assert await pool.run(abs, -1) == 1


async def test_gather_parallel_takes_memoized_functions(memory: Memory) -> None:
    cached = memory.cache(lambda x: x + 1)
    assert await gather_parallel((delayed(cached)(x) for x in range(5)), n_jobs=2) == [1, 2, 3, 4, 5]
    assert (await memory.statistics()).entries == 5


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_child_goes_on_with_its_own(location: str) -> None:
    script = """
import asyncio, os, sys, numpy as np
from aparallel import Memory
memory = Memory(sys.argv[1])
cached = memory.cache(np.sum)
array = np.ones(3_000_000)
asyncio.run(cached(array))
child = os.fork()
if child == 0:
    try:
        assert asyncio.run(cached(array)) == 3_000_000
        assert asyncio.run(cached(array + 1)) == 6_000_000
    except BaseException:
        os._exit(1)
    os._exit(0)
code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
assert asyncio.run(cached(array + 1)) == 6_000_000
assert cached.statistics().misses == 1
print(code)
"""
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, location], capture_output=True, text=True, timeout=60
    )
    assert (run.stdout, run.returncode) == ("0\n", 0), run.stderr


async def test_memoized_functions_are_content_too(memory: Memory, location: str) -> None:
    @memory.cache
    async def helper(x: int) -> int:
        return x + 1

    @memory.cache
    async def recursive(n: int) -> int:
        return n + await recursive(n - 1) if n else await helper(0)

    @memory.cache
    async def apply(fn: Any, x: int) -> int:
        return await fn(x)  # type: ignore[no-any-return]

    assert await recursive(5) == 16
    hops = recursive.statistics().misses
    assert [await recursive(5), await apply(helper, 1), await apply(helper, 1)] == [16, 2, 2]
    assert (recursive.statistics().misses, apply.statistics().misses, hops) == (6, 1, 6)
    assert recursive._lookup.keys.make((5,), {}, 50).digest  # quickly, on the loop
    shelved = await helper.call_and_shelve(7)
    take = memory.cache(lambda result: result.key)
    assert await take(shelved) == await take(pickle.loads(pickle.dumps(shelved))) == shelved.key
    assert take.statistics().misses == 1


async def test_a_slow_file_system_does_not_hold_the_loop(location: str, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = Memory(location, max_entries=5, ttl=100)
    cached = memory.cache(tags=["a"])(lambda x: [x])
    await cached(-1)
    loop_thread = threading.get_ident()
    touched: list[str] = []

    def slow(name: str, real: Any) -> Any:
        @functools.wraps(real)
        def call(*args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() == loop_thread:
                touched.append(name)
            else:
                time.sleep(0.001)
            return real(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        for name in ("open", "stat", "replace", "unlink", "utime", "listdir", "scandir", "mkdir", "pread", "pwrite"):
            patch.setattr(os, name, slow(name, getattr(os, name)))
        patch.setattr("builtins.open", slow("builtins.open", open))
        for x in range(7):
            assert await cached(x) == [x]
            assert await cached(x) == [x]
        other = Memory(location).cache(cached.__wrapped__)
        await other(6)
        await other.explain(99)
        await other.forget(6)
        await memory.invalidate("a")
        await memory.reduce_size(items_limit=2)
        await (await cached.call_and_shelve(3)).get()
        assert [entry async for entry in memory.entries()]
        await memory.clear()
        await memory.statistics()
    assert touched == []


async def test_verbose_tells_what_is_computed(location: str, capsys: pytest.CaptureFixture[str]) -> None:
    cached = Memory(location, verbose=1).cache(files_of)
    await cached(location)
    await cached(location)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "files_of: computed in" in lines[0]


async def test_nothing_remains_of_a_memory_that_is_dropped(location: str) -> None:
    memory = Memory(location)
    cached = memory.cache(lambda x: [x])
    await asyncio.gather(*(cached(x % 3) for x in range(30)))
    with contextlib.suppress(OSError):
        assert not [fd for fd in os.listdir("/proc/self/fd") if location in _target(fd)]
    del memory, cached
    gc.collect()
    assert not single_flight._flights


def _target(fd: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return ""


def test_metadata_is_json(location: str) -> None:
    asyncio.run(Memory(location).cache(len)([1]))
    (path,) = Path(location, "functions").glob("????????????????????????.json")
    assert json.loads(path.read_text()) == {"name": "len", "ttl": None}
