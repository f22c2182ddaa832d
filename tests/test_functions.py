"""Which functions travel to process workers, how often, and that it is always their newest version that runs."""

from __future__ import annotations

import abc
import asyncio
import contextvars
import functools
import gc
import importlib
import json
import math
import operator
import os
import subprocess
import sys
import textwrap
import threading
import types
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import cloudpickle
import numpy as np
import pytest
from importable import Locked, Scale, cached, closure, decorated, dispatched, double, factorial, later, traced

from aparallel import Pool, delayed, errors, gather_parallel
from aparallel._transfer import by_name, by_value, packing

FUNCTIONS: list[tuple[Any, tuple[Any, ...], Any]] = [
    (double, (3,), 6),
    (lambda x: x + 5, (3,), 8),
    (closure(4), (3,), 12),
    (functools.partial(pow, 2), (5,), 32),
    (functools.partial(lambda a, b: a - b, b=1), (5,), 4),
    (Scale(5), (3,), 15),
    (Scale(5).method, (3,), 15),
    (Scale.of_class, (3,), "Scale3"),
    (Scale.static, (3,), 9),
    (Scale.Nested.static, (3,), 12),
    ("text {}".format, (3,), "text 3"),
    ([1, 2, 3].count, (3,), 1),
    (len, ("abc",), 3),
    (math.sqrt, (9,), 3.0),
    (int, ("7",), 7),
    (dict.fromkeys, ("ab",), {"a": None, "b": None}),
    (str.upper, ("a",), "A"),
    (operator.itemgetter(1), ("ab",), "b"),
    (decorated, (1,), ("traced", 2)),
    (traced(lambda x: x * 2), (3,), ("traced", 6)),
    (cached, (1,), 3),
    (dispatched, (1,), "int"),
    (later, (3,), 6),
    (functools.partial(later, 3), (), 6),
    (factorial, (5,), 120),
    (Scale, (3,), None),
    (os.getcwd, (), os.getcwd()),
]


async def test_functions_of_every_kind_travel() -> None:
    calls = [delayed(fn)(*args) for fn, args, _ in FUNCTIONS]
    results = await gather_parallel(calls)
    for (fn, _, expected), result in zip(FUNCTIONS, results, strict=True):
        if fn is Scale:
            assert type(result) is Scale
        else:
            assert result == expected


async def test_pool_run_takes_functions_of_every_kind() -> None:
    async with Pool(1) as pool:
        for fn, args, expected in FUNCTIONS:
            if fn is not Scale:
                assert await pool.run(fn, *args) == expected


async def test_recursive_closures_and_mutual_recursion_travel() -> None:
    def even(n: int) -> bool:
        return n == 0 or odd(n - 1)

    def odd(n: int) -> bool:
        return n != 0 and even(n - 1)

    assert await gather_parallel(delayed(even)(10), delayed(odd)(10)) == [True, False]


async def test_a_lambda_may_use_modules_and_globals_of_its_own() -> None:
    assert await gather_parallel(delayed(lambda x: math.floor(double(x) + 0.5))(2)) == [4]


async def test_a_generator_cannot_travel_and_the_message_says_which_part_it_is() -> None:
    with pytest.raises(errors.UnpicklableCallError) as caught:
        await gather_parallel([delayed(double)(1), delayed(len)(x for x in "ab")])  # type: ignore[arg-type]
    assert str(caught.value).startswith("Call 1 (len) could not be pickled: argument 0 is a generator.")
    assert (caught.value.call, caught.value.part) == ("len", "argument 0")
    assert "backend='thread'" in str(caught.value)


LOCK = threading.Lock()


def closes_over_a_lock() -> Callable[[], None]:
    lock = threading.Lock()

    def locked() -> None:
        lock.acquire()

    return locked


def closes_over(value: object) -> Callable[[], object]:
    return lambda: value


def class_with_a_lock() -> Any:
    class Locked(abc.ABC):  # noqa: B024
        __slots__ = ("value",)

        def __init__(self) -> None:
            super().__init__()

        def work(self) -> int:
            return 1

        lock = threading.Lock()

    class Inherits(Locked):
        def __init__(self) -> None:
            super().__init__()

    return Inherits


@pytest.mark.parametrize(
    ("call", "part"),
    [
        (delayed(class_with_a_lock())(), "the function.__bases__[0].lock"),
        (delayed(class_with_a_lock()().work)(), "self.__class__.__bases__[0].lock"),
        (delayed(closes_over_a_lock())(), "'lock', which the function closes over"),
        (delayed(double)(LOCK), "argument 0"),  # type: ignore[arg-type]
        (delayed(double)(x=LOCK), "argument 'x'"),  # type: ignore[arg-type]
        (delayed(len)([1, {"key": LOCK}]), "argument 0[1]['key']"),
        (delayed(lambda lock=LOCK: lock)(), "the function's default 0"),
        (delayed(closes_over({"key": [LOCK]}))(), "'value['key'][0]', which the function closes over"),
    ],
    ids=["class", "method", "closure", "argument", "keyword", "deep", "default", "deep in a closure"],
)
async def test_what_cannot_travel_is_found(call: Any, part: str) -> None:
    (error,) = await gather_parallel([call], return_exceptions=True)
    assert type(error) is errors.UnpicklableCallError
    assert error.part == part
    assert "lock" in str(error)


class Service:
    def __init__(self, pool: Pool) -> None:
        self.pool = pool

    def work(self) -> int:
        return 1


async def test_a_pool_that_a_call_brings_along_is_named() -> None:
    async with Pool(1) as pool:
        for calls in (pool, pool.limit("key", 1)):
            with pytest.raises(errors.UnpicklableCallError, match=r"Pool.*a pool stays in its process") as caught:
                await calls.run(Service(calls).work)  # type: ignore[arg-type]
            assert caught.value.part == "self.pool"


async def test_what_is_shared_is_not_blamed_for_a_call_that_cannot_travel() -> None:
    async with Pool(1) as pool, pool.share(b"shared") as shared:
        with pytest.raises(errors.UnpicklableCallError) as caught:
            await pool.run(len, [shared, LOCK])
    assert caught.value.part == "argument 0[1]"


async def test_a_run_that_cannot_travel_is_not_called_by_an_index() -> None:
    async with Pool(1) as pool:
        for extra in (b"", b"x" * 1_000_000):
            with pytest.raises(errors.UnpicklableCallError, match=r"^The call "):
                await pool.run(len, [extra, LOCK])
        assert await pool.run(double, 1) == 2


async def test_one_call_that_cannot_travel_harms_no_other() -> None:
    calls = [delayed(double)(1), delayed(len)([LOCK]), delayed(double)(2)]
    one, error, two = await gather_parallel(calls, return_exceptions=True)
    assert (one, type(error), two) == (2, errors.UnpicklableCallError, 4)


async def test_a_result_that_cannot_travel_says_so() -> None:
    (error,) = await gather_parallel([delayed(threading.Lock)()], return_exceptions=True)
    assert type(error) is errors.UnpicklableResultError
    assert isinstance(error.__cause__, TypeError)


class Counted:
    """Counts how often it is pickled here, and how often it is rebuilt there."""

    pickled = 0

    def __reduce__(self) -> Any:
        Counted.pickled += 1
        return rebuild_counted, ()


rebuilt = 0


def rebuild_counted() -> Counted:
    global rebuilt
    rebuilt += 1
    return Counted()


def count_rebuilt() -> int:
    return rebuilt


async def test_a_function_travels_once_per_gather() -> None:
    counted = Counted()
    Counted.pickled = 0

    def uses(x: int) -> tuple[Any, int]:
        return type(counted).__name__, x

    async with Pool(1) as pool:
        before = await pool.run(count_rebuilt)
        results = await pool.gather(delayed(uses)(x) for x in range(500))
        after = await pool.run(count_rebuilt)
    assert results == [("Counted", x) for x in range(500)]
    assert Counted.pickled == 1
    assert after - before == 1


async def test_functions_with_state_travel_as_they_are_at_each_draw() -> None:
    scale = Scale(1)

    def calls() -> Any:
        for factor in range(5):
            scale.factor = factor
            yield delayed(scale)(10)
            yield delayed(scale.method)(10)

    results = await gather_parallel(calls(), n_jobs=1)
    assert results == [10 * factor for factor in range(5) for _ in range(2)]


class Heavy:
    """Has a method, can be called, and counts how often it is pickled."""

    def __init__(self, size: int) -> None:
        self.table = list(range(size))
        self.pickled = [0]

    def __getstate__(self) -> dict[str, Any]:
        self.pickled[0] += 1
        return self.__dict__

    def __call__(self, number: int) -> int:
        return len(self.table) + number

    def method(self, number: int) -> int:
        return len(self.table) + number

    def count(self, array: Any) -> int:
        return len(self.table)


@pytest.mark.parametrize("size", [10, 100_000], ids=["on the loop", "in a thread"])
async def test_what_has_state_travels_once_per_list_or_map(size: int) -> None:
    numbers = list(range(150))
    async with Pool(2) as pool:
        for gather in (
            lambda heavy: pool.gather([delayed(heavy)(number) for number in numbers]),
            lambda heavy: pool.gather(tuple(delayed(heavy.method)(number) for number in numbers)),
            lambda heavy: pool.map(heavy, numbers),
            lambda heavy: pool.map(heavy.method, [*numbers[:-1], 149]),
        ):
            heavy = Heavy(size)
            assert await gather(heavy) == [size + number for number in numbers]
            assert heavy.pickled[0] <= 4  # tried on the loop when asked for, and then done in a thread
            heavy.table.append(0)
            assert await gather(heavy) == [size + 1 + number for number in numbers]


async def test_what_has_state_is_pickled_few_times_from_a_generator_that_cannot_change_it() -> None:
    heavy = Heavy(10)
    arrays = [np.arange(3)] * 500
    async with Pool(2) as pool:
        for gather in (
            lambda: pool.gather(delayed(heavy.method)(number) for number in range(500)),
            lambda: pool.gather(delayed(heavy)(number) for number in range(500)),
            lambda: pool.gather(delayed(heavy.count)(array) for array in arrays),
        ):
            heavy.pickled[0] = 0
            await gather()
            assert heavy.pickled[0] < 100
            heavy.table.append(0)
            assert set(await gather()) >= {len(heavy.table)}


async def test_an_argument_that_changes_what_is_called_when_it_is_pickled_is_followed() -> None:
    scale = Scale(0)

    class Changes:
        def __reduce__(self) -> Any:
            scale.factor += 1
            return int, (10,)

    arguments = [Changes() for _ in range(100)]
    results = await gather_parallel(delayed(scale.method)(argument) for argument in arguments)
    # A function is pickled before its arguments.
    assert results == [10 * factor for factor in range(100)]
    scale.factor = 0
    assert await gather_parallel(delayed(scale)(argument) for argument in arguments) == results


async def test_what_is_called_and_changes_another_thing_that_is_when_it_is_pickled_is_followed() -> None:
    scale = Scale(0)

    class Changes(Scale):
        def __reduce__(self) -> Any:
            scale.factor += 1
            return Scale, (1,)

    functions = [Changes(1).method, scale.method] * 50
    results = await gather_parallel(delayed(function)(10) for function in functions)
    assert results[::2] == [10] * 50
    assert results[1::2] == [10 * factor for factor in range(1, 51)]


async def test_a_method_whose_lookup_changes_what_it_is_of_is_followed() -> None:
    class Turning(Scale):
        @property
        def turn(self) -> Any:
            self.factor += 1
            return self.method

        def __getattr__(self, name: str) -> Any:
            if name != "other":
                raise AttributeError(name)
            return self.turn

    turning = Turning(0)
    results = await gather_parallel(delayed(turning.turn)(10) for _ in range(100))
    assert results == [10 * factor for factor in range(1, 101)]
    turning.factor = 0
    assert await gather_parallel(delayed(turning.other)(10) for _ in range(100)) == results


async def test_equal_things_with_state_in_one_list_are_told_apart() -> None:
    class Equal(Scale):
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = None  # type: ignore[assignment]

    scales = [Equal(factor) for factor in range(100)]
    assert await gather_parallel([delayed(scale)(10) for scale in scales]) == [10 * factor for factor in range(100)]
    assert await gather_parallel([delayed(scale.method)(1) for scale in scales]) == list(range(100))


async def test_functions_travel_once_per_gather_however_many_with_state_are_drawn_among_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("aparallel._transfer.functions._MANY_BYTES", 2_000)
    scale, one, two = Scale(2), Counted(), Counted()
    Counted.pickled = 0
    functions = (lambda x: (x, type(one).__name__)), (lambda x: (x, type(two).__name__)), scale
    async with Pool(1) as pool:
        results = await pool.gather(delayed(functions[x % 3])(x) for x in range(150))
    assert results == [2 * x if x % 3 == 2 else (x, "Counted") for x in range(150)]
    assert Counted.pickled == 2


# What a function refers to may change between two gathers

SCRIPT_HEAD = """
import asyncio, contextvars, dataclasses, enum, functools, os, sys, types
from aparallel import *
"""


def run_script(tmp_path: Path, body: str) -> str:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT_HEAD + textwrap.dedent(body))
    run = subprocess.run([sys.executable, "-W", "error", str(script)], capture_output=True, text=True, timeout=30)
    assert (run.returncode, run.stderr) == (0, "")
    return run.stdout


INITIALIZERS = {
    "function": "init",
    "coroutine function": "later",
    "lambda": "lambda value: init(value)",
    "partial": "functools.partial(init)",
}


@pytest.mark.parametrize("initializer", list(INITIALIZERS.values()), ids=list(INITIALIZERS))
def test_calls_of_a_script_find_what_the_initializer_set_in_its_globals(tmp_path: Path, initializer: str) -> None:
    printed = run_script(
        tmp_path,
        f"""
        model, factor, table, items, settings = None, 1, {{}}, [], types.SimpleNamespace()
        def init(value):
            global model, new
            model = new = table["value"] = settings.value = value
            items.append(value)
        async def later(value):
            init(value)
        def look():
            return model, new, table, items, vars(settings), factor
        class Look:
            def method(self):
                return new
        async def main():
            global factor
            async with Pool(2, initializer={initializer}, initargs=(5,)) as pool:
                print(await pool.run(look), await pool.gather(delayed(Look().method)(), delayed(lambda: new)()))
                factor = 2
                print((await pool.run(look))[-1], model, table)
        asyncio.run(main())
        """,
    )
    assert printed == "(5, 5, {'value': 5}, [5], {'value': 5}, 1) [5, 5]\n2 None {}\n"


CHANGES = {
    "global": ("level = 1\ndef f(): return level", "globals()['level'] = 2"),
    "list": ("levels = [1]\ndef f(): return levels[0]", "levels[0] = 2"),
    "dict": ("levels = {'a': 1}\ndef f(): return levels['a']", "levels['a'] = 2"),
    "default": ("def f(x=1): return x", "f.__defaults__ = (2,)"),
    "mutable default": ("def f(x=[1]): return x[0]", "f.__defaults__[0][0] = 2"),
    "keyword default": ("def f(*, x=1): return x", "f.__kwdefaults__['x'] = 2"),
    "code": ("def f(): return 1", "f.__code__ = (lambda: 2).__code__"),
    "attribute": ("def f(): return f.level\nf.level = 1", "f.level = 2"),
    "helper": ("def g(): return 1\ndef f(): return g()", "globals()['g'] = lambda: 2"),
    "helper's global": ("n = 1\ndef g(): return n\ndef f(): return g()", "globals()['n'] = 2"),
    "class attribute": ("class C: n = 1\ndef f(): return C.n", "C.n = 2"),
    "instance": ("class C: pass\nc = C()\nc.n = 1\ndef f(): return c.n", "c.n = 2"),
    "cell": (
        """
def make(n):
    def f(): return n
    def s():
        nonlocal n
        n = 2
    return f, s
f, s = make(1)
""",
        "s()",
    ),
    "partial": ("n = [1]\nf = functools.partial(lambda m: m[0], n)", "n[0] = 2"),
    "dynamic module": ("m = types.ModuleType('m')\nm.n = 1\ndef f(): return m.n", "m.n = 2"),
    "wrapped": (
        "n = 1\ndef deco(g):\n    @functools.wraps(g)\n    def w(): return g()\n    return w\n@deco\ndef f(): return n",
        "globals()['n'] = 2",
    ),
    "name": (
        "import inspect\ndef f(): return 1 if inspect.currentframe().f_code.co_name and f.__name__ == 'f' else 2",
        "f.__name__ = 'g'",
    ),
}


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a script with one pool sees of each function before its change and after it."""
    body = f"""
import json

CHANGES = {CHANGES!r}

async def main():
    seen = {{}}
    async with Pool(1) as pool:
        for change, (before, after) in CHANGES.items():
            clean = set(globals())
            exec(before, globals())
            seen[change] = [[await pool.run(f), *await pool.gather([delayed(f)()])]]
            exec(after, globals())
            seen[change] += [[await pool.run(f), *await pool.gather([delayed(f)()])]]
            for name in set(globals()) - clean:
                del globals()[name]
    print(json.dumps(seen))

asyncio.run(main())
"""
    seen: dict[str, Any] = json.loads(run_script(tmp_path_factory.mktemp("changes"), body))
    return seen


@pytest.mark.parametrize("change", CHANGES)
def test_what_a_function_refers_to_is_seen_as_it_is_now(seen: dict[str, Any], change: str) -> None:
    assert seen[change] == [[1, 1], [2, 2]]


class Ballast:
    """Large, and counts how often it is pickled."""

    def __init__(self) -> None:
        self.texts = [str(number) for number in range(20_000)]
        self.pickled = 0

    def __getstate__(self) -> dict[str, Any]:
        self.pickled += 1
        return self.__dict__


@pytest.mark.parametrize("source", [list, iter])
async def test_a_large_function_is_pickled_once_for_all_calls_of_a_gather(source: Callable[[Any], Any]) -> None:
    one, two = Ballast(), Ballast()
    functions = [lambda: len(one.texts), lambda: len(two.texts)]
    async with Pool(2) as pool:
        assert await pool.gather(source([delayed(functions[x % 2])() for x in range(20)])) == [20_000] * 20
    assert max(one.pickled, two.pickled) <= 3  # that it is too large for the loop is found by trying


async def test_of_large_functions_that_come_once_each_a_gather_keeps_one() -> None:
    alive: weakref.WeakSet[Any] = weakref.WeakSet()

    def calls() -> Iterator[Any]:
        for size in range(20_000_000, 20_000_004):
            fn = functools.partial(len, "x" * size)
            alive.add(made := lambda fn=fn: fn())
            yield delayed(made)()
            del fn, made
            gc.collect()
            kept.append(len(alive))

    kept: list[int] = []
    async with Pool(1) as pool:
        assert len(await pool.gather(calls(), pre_dispatch=1)) == 4
    assert kept == [1, 1, 1, 1]


class Kept:
    def __reduce__(self) -> Any:
        return str, ("kept",)


@pytest.mark.parametrize("how", ["run", "submit", "gather"])
async def test_what_a_function_closes_over_is_gone_with_it(how: str) -> None:
    def closing_over(kept: Any) -> Callable[[Any], Any]:
        return lambda _: kept

    async with Pool(1) as pool:
        await pool.run(closing_over(0), 1)  # cloudpickle is imported
        kept = Kept()
        calls: list[Any] = [delayed(closing_over(kept))(1)]
        if how == "gather":
            assert await pool.gather(calls) == ["kept"]
        else:
            assert await getattr(pool, how)(calls[0]) == "kept"
        alive = weakref.ref(kept)
        del kept
        calls.clear()
        await asyncio.sleep(0)
        gc.collect()
        assert alive() is None


async def test_a_change_while_a_large_function_is_pickled_is_seen_by_the_next_gather() -> None:
    space: dict[str, Any] = {"__name__": "__main__", "level": 1, "ballast": b"x" * 20_000_000}
    exec("def f():\n    return level, len(ballast)", space)
    async with Pool(1) as pool:
        first = asyncio.create_task(pool.gather([delayed(space["f"])()]))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        space["level"] = 2
        await first
        assert await pool.gather([delayed(space["f"])()]) == [(2, 20_000_000)]


async def test_a_module_registered_by_value_is_seen_as_it_is_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "goes_by_value.py").write_text("level = 1\ndef read():\n    return level\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    module = importlib.import_module("goes_by_value")
    cloudpickle.register_pickle_by_value(module)
    try:
        async with Pool(1) as pool:
            assert await pool.gather([delayed(module.read)()]) == [1]
            module.level = 2  # type: ignore[attr-defined]
            assert await pool.gather([delayed(module.read)()]) == [2]
    finally:
        cloudpickle.unregister_pickle_by_value(module)
        sys.modules.pop("goes_by_value")


BY_VALUE_TOO = """
import contextvars, functools
level = contextvars.ContextVar("level", default=1)
@functools.lru_cache
def double(x):
    return 2 * x
def read(x):
    return level.get() + double(x)
"""


async def test_all_of_a_module_registered_by_value_goes_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "only_here.py").write_text(BY_VALUE_TOO)
    with monkeypatch.context() as here:
        here.syspath_prepend(str(tmp_path))
        module = importlib.import_module("only_here")
    cloudpickle.register_pickle_by_value(module)
    try:
        async with Pool(1) as pool:
            assert await pool.run(module.double, 2) == 4
            assert await pool.run(module.read, 2) == 5
    finally:
        cloudpickle.unregister_pickle_by_value(module)
        sys.modules.pop("only_here")


async def test_a_function_is_pickled_anew_once_a_module_that_it_uses_goes_by_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "goes_by_value.py").write_text("level = 1\ndef read():\n    return level\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    module = importlib.import_module("goes_by_value")
    space: dict[str, Any] = {"__name__": "__main__", "read": module.read}
    exec("def f():\n    return read()", space)
    try:
        async with Pool(1) as pool:
            assert await pool.run(space["f"]) == 1
            cloudpickle.register_pickle_by_value(module)
            module.level = 2  # type: ignore[attr-defined]
            assert await pool.run(space["f"]) == 2
            cloudpickle.unregister_pickle_by_value(module)
            assert await pool.run(space["f"]) == 1  # as the worker imported it
    finally:
        if "goes_by_value" in cloudpickle.list_registry_pickle_by_value():
            cloudpickle.unregister_pickle_by_value(module)
        sys.modules.pop("goes_by_value")


# Many, large, late


async def test_a_module_on_a_path_added_after_the_pool_started_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "made_late.py").write_text("def read():\n    return 'late'\n")
    async with Pool(1) as pool:
        await pool.warm_up()
        monkeypatch.syspath_prepend(str(tmp_path))
        module = importlib.import_module("made_late")
        try:
            assert await pool.run(module.read) == "late"
        finally:
            sys.modules.pop("made_late")


async def test_a_function_that_cannot_be_imported_there_costs_its_own_calls_only(tmp_path: Path) -> None:
    (tmp_path / "unreachable.py").write_text("def read():\n    return 1\n")
    sys.path.insert(0, str(tmp_path))
    try:
        module = importlib.import_module("unreachable")
    finally:
        sys.path.remove(str(tmp_path))
    try:
        calls = [delayed(double)(1), delayed(module.read)(), delayed(double)(2)]
        one, error, two = await gather_parallel(calls, return_exceptions=True, n_jobs=1)
    finally:
        sys.modules.pop("unreachable")
    assert (one, two) == (2, 4)
    assert type(error) is errors.UnpicklableCallError
    assert type(error.__cause__) is ModuleNotFoundError


class Demanding(Exception):
    """pickle makes it anew from ``args``, which have no *code*."""

    def __init__(self, text: str, *, code: int) -> None:
        super().__init__(text)
        self.code = code


async def test_an_argument_that_cannot_be_made_anew_there_is_told_how_it_could() -> None:
    async with Pool(1) as pool:
        with pytest.raises(errors.UnpicklableCallError, match=r"could not be rebuilt in its worker.*code") as caught:
            await pool.run(repr, Demanding("text", code=1))
        assert "__reduce__" in str(caught.value)
        assert "import" not in str(caught.value)
        assert await pool.run(double, 1) == 2


async def test_a_closure_over_five_megabytes_travels() -> None:
    ballast = os.urandom(5_000_000)

    def last(x: int) -> tuple[int, int]:
        return x, ballast[-1]

    assert await gather_parallel(delayed(last)(x) for x in range(20)) == [(x, ballast[-1]) for x in range(20)]


async def test_a_worker_forgets_old_functions_and_still_runs_them() -> None:
    functions = [closure(n) for n in range(330)]
    async with Pool(1) as pool:
        for _ in range(2):
            assert await pool.gather(delayed(fn)(2) for fn in functions) == [2 * n for n in range(330)]
        for n in (0, 329, 1, 100):
            assert await pool.run(functions[n], 3) == 3 * n
        (worker,) = [slot.worker for slot in pool._engine.use().scheduler.workforce.slots]
        assert len(worker._known) <= 330 + 30  # type: ignore[attr-defined]


async def test_a_context_variable_in_a_closure_is_the_same_in_every_function() -> None:
    hidden: contextvars.ContextVar[str] = contextvars.ContextVar("hidden", default="unset")

    def write_and_read(value: str) -> str:
        hidden.set(value)
        return read()

    def read() -> str:
        return hidden.get()

    assert await gather_parallel(delayed(write_and_read)("set"), n_jobs=1) == ["set"]


def test_threads_may_send_context_variables_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(by_name, "home_of", lambda variable: None)  # which looks at each name of each module
    sent = {str(number): contextvars.ContextVar[int]("sent") for number in range(5000)}
    monkeypatch.setattr(by_name, "_variables", sent)

    def send_new_ones() -> None:
        for _ in range(30):
            by_value.dumps_by_value([contextvars.ContextVar("one"), contextvars.ContextVar("another")])

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as threads:
            for sending in [threads.submit(send_new_ones) for _ in range(4)]:
                sending.result()
    finally:
        sys.setswitchinterval(interval)


# Functions of __main__, in scripts without a guard


def make_richly_made() -> Callable[..., Any]:
    """A closure with everything that a function can have."""
    if len(sys.argv) < 0:
        unset = None
    base = [1]

    def richly_made(a: int, b: int = 2, *, c: int = 3) -> Any:
        """Says what it is made of."""
        try:
            there = unset is None
        except NameError:
            there = False
        return a + b + c + base[0], there, richly_made.__dict__, richly_made.__doc__, richly_made.__kwdefaults__

    richly_made.mark = "attribute"  # type: ignore[attr-defined]
    return richly_made


async def test_a_function_that_travels_by_value_arrives_whole() -> None:
    fn = make_richly_made()
    assert await gather_parallel(delayed(fn)(1), n_jobs=1) == [fn(1)]


async def test_a_worker_runs_functions_that_travel_by_value_without_importing_cloudpickle() -> None:
    """Its import would delay the first call by 25 ms."""
    factor = 2
    async with Pool(1) as pool:
        assert await pool.run(lambda x: (factor * x, math.floor(0.5), "cloudpickle" in sys.modules), 3) == (6, 0, False)


def test_each_single_call_of_a_script_has_its_closure_as_it_was_when_it_was_made(tmp_path: Path) -> None:
    """The first one, too, for which cloudpickle has to be imported."""
    body = """
    async def main():
        async with Pool(2) as pool:
            made = [pool.submit(lambda: step) for step in range(4)]
            print("cloudpickle" in sys.modules, [await call for call in made])

    for name in [name for name in sys.modules if "cloudpickle" in name or name.endswith(".by_value")]:
        del sys.modules[name]
    asyncio.run(main())
    """
    assert run_script(tmp_path, body) == "True [0, 1, 2, 3]\n"


@pytest.mark.parametrize("way", ["await pool.run(lambda: 5)", "(await asyncio.gather(pool.run(lambda: 5)))[0]"])
def test_the_first_awaited_call_by_value_has_cloudpickle_imported_off_the_loop(way: str, tmp_path: Path) -> None:
    body = """
    import threading

    class Watching:
        def find_spec(self, name, path=None, target=None):
            if name == "cloudpickle":
                print(threading.current_thread() is threading.main_thread())

    sys.meta_path.insert(0, Watching())

    async def main():
        async with Pool(1) as pool:
            print(WAY)

    for name in [name for name in sys.modules if "cloudpickle" in name or name.endswith(".by_value")]:
        del sys.modules[name]
    asyncio.run(main())
    """
    assert run_script(tmp_path, body.replace("WAY", way)) == "False\n5\n"


async def test_importable_functions_are_drawn_while_cloudpickle_is_being_imported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with Pool(1) as pool:
        # As a thread leaves it while it imports it: there, and still empty.
        monkeypatch.setitem(sys.modules, "cloudpickle", types.ModuleType("cloudpickle"))
        assert await pool.run(double, 1) == 2
        assert await pool.gather(delayed(double)(x) for x in range(3)) == [0, 2, 4]


def test_a_script_needs_no_guard(tmp_path: Path) -> None:
    body = """
    factor = 3

    def scale(x):
        return factor * x

    async def scale_later(x):
        await asyncio.sleep(0)
        return scale(x)

    async def main():
        print(await gather_parallel(delayed(scale)(x) for x in range(4)))
        print(await gather_parallel(delayed(scale_later)(x) for x in range(4)))
        print(await gather_parallel(delayed(lambda x: scale(x) + 1)(x) for x in range(4)))

    asyncio.run(main())
    """
    assert run_script(tmp_path, body).splitlines() == ["[0, 3, 6, 9]", "[0, 3, 6, 9]", "[1, 4, 7, 10]"]


def test_classes_of_main_come_back_as_the_same_classes(tmp_path: Path) -> None:
    body = """
    class Color(enum.Enum):
        RED = 1

    @dataclasses.dataclass(frozen=True)
    class Point:
        x: int
        color: Color = Color.RED

    class Failure(Exception):
        def __init__(self, code, *, why):
            super().__init__(f"{code} {why}")
            self.code = code

    def make(x):
        return Point(x)

    def take(point):
        return type(point) is Point and point.color is Color.RED

    def fail():
        raise Failure(3, why="because")

    async def main():
        async with Pool(1) as pool:
            point = await pool.run(make, 1)
            print(type(point) is Point, point == Point(1), point.color is Color.RED, await pool.run(take, point))
            print(await pool.run(make, 2) == Point(2), isinstance(await pool.run(make, 3), Point))
            try:
                await pool.run(fail)
            except Failure as error:
                print(type(error) is Failure, error.code, error)

    asyncio.run(main())
    """
    assert run_script(tmp_path, body).splitlines() == ["True True True True", "True True", "True 3 3 because"]


def test_objects_of_main_with_slots_go_and_come_back(tmp_path: Path) -> None:
    body = """
    class One:
        __slots__ = "x"

    class Two(One):
        __slots__ = ("__weakref__", "__secret")

        def __init__(self, x, secret):
            self.x, self.__secret = x, secret

        def tell(self):
            return self.x, self.__secret, hasattr(self, "__dict__")

    class Open(Two):
        pass

    def look(thing):
        return thing.tell(), thing

    async def main():
        async with Pool(1) as pool:
            for kind in (Two, Open):
                told, back = await pool.run(look, kind(1, 2))
                print(told, back.tell(), type(back) is kind, (await pool.run(kind, 3, 4)).tell())

    asyncio.run(main())
    """
    assert run_script(tmp_path, body).splitlines() == [
        "(1, 2, False) (1, 2, False) True (3, 4, False)",
        "(1, 2, True) (1, 2, True) True (3, 4, True)",
    ]


def test_objects_of_main_go_and_come_back_whatever_makes_their_slots(tmp_path: Path) -> None:
    body = """
    import abc, typing

    class Pair(typing.NamedTuple):
        a: int
        b: int = 2

    class Named(Pair):
        __slots__ = ()

    @dataclasses.dataclass(slots=True)
    class Slotted:
        a: int

    @dataclasses.dataclass(slots=True, frozen=True)
    class Frozen:
        a: int

    class Box(typing.Generic[typing.TypeVar("T")]):
        __slots__ = {"a": "what it is"}

        def __init__(self, a):
            self.a = a

    class Base(abc.ABC):
        __slots__ = ()

    class Derived(Base):
        __slots__ = ("a",)

        def __init__(self, a):
            self.a = a

    class Grown(list):
        __slots__ = ("a",)

        def __init__(self, a=None):
            self.a = a

    class Text(str):
        __slots__ = ()

    def same(thing):
        return thing

    async def main():
        async with Pool(1) as pool:
            for thing in (Pair(1), Named(1), Slotted(1), Frozen(1), Box(1), Derived(1), Grown(1), Text("x")):
                back = await pool.run(same, thing)
                assert type(back) is type(thing), thing
                assert getattr(back, "a", 1) == 1, thing
                assert hasattr(back, "__dict__") == hasattr(thing, "__dict__"), thing

    asyncio.run(main())
    """
    run_script(tmp_path, body)


def test_a_metaclass_of_main_that_gives_slots_is_left_to_give_them(tmp_path: Path) -> None:
    body = """
    class Slotted(type):
        def __new__(cls, name, bases, namespace):
            if "__slots__" in namespace:
                raise TypeError("they are not for the class to say")
            return super().__new__(cls, name, bases, {**namespace, "__slots__": ("x",)})

    class Point(metaclass=Slotted):
        def __init__(self, x):
            self.x = x

    def same(point):
        return point

    async def main():
        async with Pool(1) as pool:
            print((await pool.run(same, Point(3))).x)

    asyncio.run(main())
    """
    assert run_script(tmp_path, body) == "3\n"


def test_generic_functions_of_main_travel(tmp_path: Path) -> None:
    body = """
    @functools.singledispatch
    def kind(value):
        return "any"

    @kind.register
    def _(value: int):
        return "int"

    async def main():
        kind(True)  # it has something in its cache
        print(await gather_parallel(delayed(kind)(value) for value in (1, "a", True)))

    asyncio.run(main())
    """
    assert run_script(tmp_path, body) == "['int', 'any', 'int']\n"


def test_a_class_of_main_is_unchanged_here_after_its_instances_came_back(tmp_path: Path) -> None:
    body = """
    level = 1

    class Thing:
        seen = 0

        def read(self):
            return level

    method = Thing.read

    def make():
        return Thing()

    async def main():
        global level
        async with Pool(1) as pool:
            task = asyncio.create_task(pool.run(make))
            await asyncio.sleep(0)
            Thing.seen = 5  # meanwhile, here
            thing = await task
            level = 2
            print(Thing.seen, thing.read(), Thing.read is method)

    asyncio.run(main())
    """
    assert run_script(tmp_path, body) == "5 2 True\n"


def test_cached_functions_of_main_travel(tmp_path: Path) -> None:
    body = """
    @functools.lru_cache(maxsize=7)
    def cached(x):
        return 2 * x

    @functools.cache
    def fib(n):
        return n if n < 2 else fib(n - 1) + fib(n - 2)

    def uses(x):
        return cached(x) + 1

    async def main():
        print(await gather_parallel(delayed(uses)(1), delayed(cached)(2), delayed(fib)(50)))

    asyncio.run(main())
    """
    assert run_script(tmp_path, body) == "[3, 4, 12586269025]\n"


async def test_a_cached_function_of_an_imported_class_travels_as_its_name_inside_a_closure() -> None:
    cached = Locked.cached  # by value, it would bring a lock

    assert await gather_parallel([delayed(lambda: cached(1))()], n_jobs=1) == [4]


def test_objects_of_main_with_cached_properties_go_and_come_back(tmp_path: Path) -> None:
    body = """
    class Table:
        def __init__(self, rows):
            self.rows = rows

        @functools.cached_property
        def total(self):
            \"\"\"Of all rows.\"\"\"
            return sum(self.rows)

    def double(table):
        return Table([2 * row for row in table.rows])

    async def main():
        table, total, text = await gather_parallel(
            delayed(double)(Table([1, 2])),
            delayed(lambda table: (table.total, table.total, vars(table)["total"]))(Table([3])),
            delayed(lambda table: type(table).total.__doc__)(Table([])),
        )
        print(table.total, type(table) is Table, total, text)

    asyncio.run(main())
    """
    assert run_script(tmp_path, body) == "6 True (3, 3, 3) Of all rows.\n"


def test_what_a_script_defines_for_its_annotations_travels(tmp_path: Path) -> None:
    body = """
    from dataclasses import dataclass
    from typing import Callable, Generic, NewType, NotRequired, ParamSpec, TypedDict, TypeVar, TypeVarTuple

    try:
        from typing_extensions import TypedDict as AnotherTypedDict
    except ImportError:
        AnotherTypedDict = TypedDict

    UserId = NewType("UserId", int)
    T = TypeVar("T")
    P = ParamSpec("P")
    Ts = TypeVarTuple("Ts")

    class Row(TypedDict):
        id: UserId
        name: NotRequired[str]

    class Marked(Row, Generic[T], total=False):
        mark: T

    class Other(AnotherTypedDict):
        id: UserId

    @dataclass
    class Entry:
        id: UserId
        row: Row

    def listed(fn: Callable[P, T]) -> Callable[P, list[T]]:
        def wrapper(*args: P.args, **kwargs: P.kwargs) -> list[T]:
            return [fn(*args, **kwargs)]
        return wrapper

    @listed
    def new_id(row: Row) -> UserId:
        return UserId(row["id"] + 1)

    def marked(row: Row) -> Marked[int]:
        return Marked(**row, mark=2)

    def others(*rows: *Ts) -> Other:
        return Other(id=UserId(len(rows)))

    def same(x):
        return x

    def keys(kind):
        return sorted(kind.__required_keys__), sorted(kind.__optional_keys__)

    async def main():
        print(*await gather_parallel(
            delayed(new_id)({"id": 1}),
            delayed(marked)({"id": 1}),
            delayed(others)(1, 2),
            delayed(same)(Entry(UserId(3), {})),
        ))
        print(*await gather_parallel(delayed(keys)(Marked), delayed(same)(Marked), delayed(same)(UserId)))
        print((await gather_parallel(delayed(same)(Row)))[0] is Row)

    asyncio.run(main())
    """
    results = "[2] {'id': 1, 'mark': 2} {'id': 2} Entry(id=3, row={})\n"
    assert run_script(tmp_path, body) == (
        f"{results}(['id'], ['mark', 'name']) <class '__main__.Marked'> __main__.UserId\nTrue\n"
    )


def test_dataclasses_of_main_can_be_derived_from_where_they_travel_to(tmp_path: Path) -> None:
    body = """
    import dataclasses

    @dataclasses.dataclass
    class Point:
        x: int
        _: dataclasses.KW_ONLY
        y: list = dataclasses.field(default_factory=list)

    def derived():
        @dataclasses.dataclass
        class Named(Point):
            name: int

        return repr(Named(1, 3)), [field.default is dataclasses.MISSING for field in dataclasses.fields(Point)]

    print(*asyncio.run(gather_parallel(delayed(derived)())))
    """
    assert run_script(tmp_path, body) == "('derived.<locals>.Named(x=1, y=[], name=3)', [True, True])\n"


def test_classes_of_main_travel_though_their_bases_want_keywords(tmp_path: Path) -> None:
    body = """
    from typing import Generic, TypeVar

    T = TypeVar("T")

    class Plugin(Generic[T]):
        known = {}

        def __init_subclass__(cls, *, suffix, **more):
            super().__init_subclass__(**more)
            cls.suffix = suffix
            Plugin.known[suffix] = cls

    class Png(Plugin[int], suffix=".png"):
        pass

    def look():
        try:
            class Bare(Plugin):
                pass
        except TypeError:
            return Png.suffix, list(Plugin.known.items()) == [(".png", Png)], Png.__orig_bases__ == (Plugin[int],)

    def same(x):
        return x

    async def main():
        found, same_class, made = await gather_parallel(delayed(look)(), delayed(same)(Png), delayed(same)(Png()))
        print(*found, same_class is Png, type(made) is Png)

    asyncio.run(main())
    """
    assert run_script(tmp_path, body) == ".png True True True True\n"


def test_enums_of_main_travel_with_all_that_their_members_have(tmp_path: Path) -> None:
    body = """
    import enum
    from dataclasses import dataclass
    from datetime import timedelta

    class Planet(enum.Enum):
        MERCURY = (2, 3.0)
        EARTH = (4, 5.0)
        FIRST = (2, 3.0)

        def __init__(self, mass, radius):
            self.mass = mass
            self.radius = radius

    class Coordinate(bytes, enum.Enum):
        def __new__(cls, value, label):
            made = bytes.__new__(cls, [value])
            made._value_ = value
            made.label = label
            return made

        X = 0, "x"
        Y = 1, "y"

    class Numbered(enum.Enum):
        def __new__(cls, *args):
            made = object.__new__(cls)
            made._value_ = 10 * (len(cls.__members__) + 1)
            return made

    class Colour(Numbered):
        RED = ()
        BLUE = ()

    @dataclass
    class Animal:
        size: str
        legs: int

    class Creature(Animal, enum.Enum):
        BEETLE = "small", 6

    class Period(timedelta, enum.Enum):
        WEEK = 7

    class Pair(tuple, enum.Enum):
        A = 1, 2

    class Access(enum.IntFlag):
        R = 1
        W = 2
        RW = 3

    kinds = Planet, Coordinate, Colour, Creature, Period, Pair, Access
    NAMES = "__init__", "__new__", "__new_member__", "_new_member_", "_use_args_"

    def look():
        told = [Planet.EARTH.mass, Planet["FIRST"].radius, Planet((4, 5.0)).name, list(Planet.__members__)]
        told += [[(bytes(one), one.value, one.label) for one in Coordinate], Coordinate(1).name, Colour(20).name]
        told += [Creature.BEETLE.legs, Creature.BEETLE.size, Period.WEEK.days, Pair.A[1], Access["RW"] == Access.R | 2]
        told += [[name in vars(kind) for name in NAMES] for kind in kinds]
        return told

    def same(members):
        return members

    async def main():
        told, members = await gather_parallel(delayed(look)(), delayed(same)([one for kind in kinds for one in kind]))
        print(told == look() or told, all(one is type(one)[one.name] for one in members))

    asyncio.run(main())
    """
    assert run_script(tmp_path, body) == "True True\n"


@pytest.mark.skipif(sys.version_info < (3, 12), reason="there is no type statement")
def test_aliases_of_a_script_travel_though_they_mention_themselves(tmp_path: Path) -> None:
    body = """
    type Json = dict[str, Json] | list[Json] | str
    type Even = list[Odd]
    type Odd = tuple[Even]
    type Pair[T] = tuple[T, T]

    def told(value: Json, other: Even = (), pair: Pair[int] = (1, 2)) -> Json:
        return [str(alias.__value__) for alias in (Json, Even, Odd)]

    print(*asyncio.run(gather_parallel(delayed(told)("a")))[0], sep="; ")
    """
    told = "dict[str, Json] | list[Json] | str; list[Odd]; tuple[Even]\n"
    assert run_script(tmp_path, body) == told


def test_a_function_may_be_redefined_between_gathers(tmp_path: Path) -> None:
    body = """
    async def main():
        for n in range(3):
            exec(f"def f(): return {n}", globals())
            print(*await gather_parallel(delayed(f)()))

    asyncio.run(main())
    """
    assert run_script(tmp_path, body).split() == ["0", "1", "2"]


async def test_code_with_constants_that_no_compiler_makes_travels_too() -> None:
    def answer() -> Any:
        return 4.2  # a small whole number would be in the code from Python 3.14 on

    constants = answer.__code__.co_consts
    answer.__code__ = answer.__code__.replace(co_consts=tuple(Fraction(1, 3) if c == 4.2 else c for c in constants))
    async with Pool(1) as pool:
        assert await pool.run(answer) == Fraction(1, 3)


@pytest.mark.skipif(sys.version_info < (3, 14), reason="annotations are computed when a function is made")
async def test_a_function_travels_whatever_its_annotations_name() -> None:
    source = """
def make(by):
    def scaled(x: Missing, *, more: list[Missing.part] = 1) -> Missing / 2:
        "What it does."
        return x * by + more
    scaled.mark = "its own"
    return scaled
"""
    space: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(source, "source", "exec", dont_inherit=True), space)
    annotations = {"x": "Missing", "more": "list[Missing.part]", "return": "Missing / 2"}
    async with Pool(1) as pool:
        assert await pool.run(space["make"](3), 2) == 7
        made = await pool.run(space["make"], 5)
        assert (made(1), made.__annotations__) == (6, annotations)
        given = await pool.run(lambda fn: (fn.mark, fn.__doc__, fn.__kwdefaults__, fn.__qualname__), space["make"](2))
        assert given == ("its own", "What it does.", {"more": 1}, "make.<locals>.scaled")
    with pytest.raises(NameError):
        _ = space["make"](3).__annotations__


@pytest.mark.skipif(sys.version_info < (3, 14), reason="annotations are computed when a class is made")
async def test_a_dataclass_travels_whatever_its_annotations_name() -> None:
    source = """
import dataclasses, threading
lock = threading.Lock()  # stays where it is
@dataclasses.dataclass
class Point:
    x: Missing
    y: list[Missing] = 2
def told(point):
    return dataclasses.fields(point)[0].type.__forward_arg__, repr(point)
"""
    space: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(source, "source", "exec", dont_inherit=True), space)
    point = space["Point"](1)
    async with Pool(1) as pool:
        assert await pool.run(space["told"], point) == ("Missing", "Point(x=1, y=2)")
        assert await pool.run(lambda point: point, point) == point


async def test_a_function_that_is_met_again_is_not_pickled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    pickled: list[Any] = []
    pickling = packing.pickle_within

    def noted(obj: Any, *args: Any) -> Any:
        pickled.append(obj)
        return pickling(obj, *args)

    def twice(x: int) -> int:
        return 2 * x

    monkeypatch.setattr(packing, "pickle_within", noted)
    async with Pool(1) as pool:
        for x in range(5):
            assert await pool.run(twice, x) == 2 * x
    assert pickled.count(twice) == 2  # the second time it is found worth watching


KEYWORDS: list[dict[str, Any]] = [
    {"a": 1},
    {"a": None, "b": 2.5, "c": b"bytes", "d": "text"},
    {"": 0, "0": 1, "not an identifier": 2},
    {"a": [1, 2]},
    {"a": "x" * 5000},
    {"self": 1, "args": 2, "function": 3, "payload": 4},
    {"b": False},
]
ARGUMENTS: list[tuple[Any, ...]] = [(), (1,), (b"",), (1, "x"), ([1],)]


@pytest.mark.parametrize("backend", ["process", "thread", "inline"])
async def test_arguments_with_names_arrive_whatever_they_are(backend: Literal["process", "thread", "inline"]) -> None:
    class Name(str):
        """Its pickle brings its class along."""

        __slots__ = ()

    def echo(*args: Any, **keywords: Any) -> Any:
        return args, keywords

    given = [(args, keywords) for args in ARGUMENTS for keywords in [*KEYWORDS, {Name("a"): 1}]]
    async with Pool(1, backend) as pool:
        for _ in range(2):  # as the worker does not know the function, and as it does
            calls = [delayed(echo)(*args, **keywords) for args, keywords in given]
            assert await pool.gather(calls) == given
            assert await asyncio.gather(*map(pool.run, calls)) == given
        with pytest.raises(TypeError, match="unexpected keyword argument 'missing'"):
            await pool.run(delayed(double)(1, missing=1))  # type: ignore[call-arg]
