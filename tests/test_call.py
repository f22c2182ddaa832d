"""What delayed() returns, and what is told to those who gather something else."""

from __future__ import annotations

import copy
import gc
import pickle
import warnings
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import pytest
from work import add, add_later, collect

from aparallel import Call, Pool, delayed, gather_parallel, stream_parallel

BACKENDS = ["process", "thread", "inline"]


def test_delayed_gives_a_call_and_does_not_run_the_function() -> None:
    ran: list[int] = []
    call = delayed(ran.append)(1)

    assert isinstance(call, Call)
    assert ran == []
    assert (call.args, call.keywords) == ((1,), {})


def test_a_call_runs_its_function_here_when_called() -> None:
    assert delayed(add)(1, y=2)() == 3


def test_a_call_has_its_function_arguments_and_keywords() -> None:
    call = delayed(add)(1, y=2)
    assert (call.func, call.args, call.keywords) == (add, (1,), {"y": 2})


@pytest.mark.parametrize("name", ["func", "args", "keywords", "anything"])
def test_a_call_does_not_change(name: str) -> None:
    call = delayed(add)(1)
    with pytest.raises(AttributeError):
        setattr(call, name, ())
    with pytest.raises(AttributeError):
        delattr(call, name)


def test_repr_reads_like_the_call() -> None:
    assert repr(delayed(add)(1, y=2)) == f"Call({add.__module__}.add, 1, y=2)"
    assert repr(delayed(len)("abc")) == "Call(len, 'abc')"


def test_repr_cuts_large_arguments_short_and_never_runs_their_repr() -> None:
    class Hostile:
        def __repr__(self) -> str:
            raise RuntimeError("no repr")

    text = repr(delayed(add)(Hostile(), "x" * 1000, y=[1] * 1000))
    assert text == f"Call({add.__module__}.add, <Hostile>, <str>, y=<list>)"


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickled_call_is_the_same_call(protocol: int) -> None:
    call = pickle.loads(pickle.dumps(delayed(add)(1, y=2), protocol))
    assert type(call) is Call
    assert (call.func, call.args, call.keywords) == (add, (1,), {"y": 2})


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_a_copied_call_is_the_same_call(copied: Callable[[Any], Any]) -> None:
    call = copied(delayed(add)(1, y=2))
    assert type(call) is Call
    assert (call.func, call.args, call.keywords) == (add, (1,), {"y": 2})


def test_a_call_of_a_partial_keeps_both_ones_arguments() -> None:
    assert delayed(partial(collect, 1, x=2))(3, y=4)() == ((1, 3), {"x": 2, "y": 4})


def test_a_delayed_function_can_be_called_again_and_again() -> None:
    later = delayed(add)
    assert [later(x)() for x in range(3)] == [0, 1, 2]
    assert later(1, y=5)() == 6
    assert later(1).keywords == {}


@pytest.mark.parametrize("item", [3, None, "f"])
def test_delayed_refuses_what_is_no_function(item: Any) -> None:
    with pytest.raises(TypeError, match=r"delayed\(f\)\(x\), not delayed\(f\(x\)\)"):
        delayed(item)


@pytest.mark.parametrize("backend", BACKENDS)
async def test_keywords_arrive_whatever_they_are_called(backend: Any) -> None:
    names = {"self": 1, "fn": 2, "func": 3, "args": 4, "kwargs": 5, "timeout": 6, "pool": 7, "calls": 8}
    (result,) = await gather_parallel([delayed(collect)(0, **names)], backend=backend)
    assert result == ((0,), names)


@pytest.mark.parametrize("backend", BACKENDS)
async def test_a_coroutine_functions_call_is_awaited(backend: Any) -> None:
    assert await gather_parallel((delayed(add_later)(x, y=1) for x in range(3)), backend=backend) == [1, 2, 3]


# Something else than calls


@pytest.mark.parametrize("backend", BACKENDS)
async def test_results_instead_of_calls_are_refused_with_the_way_to_write_it(backend: Any) -> None:
    with pytest.raises(TypeError, match=r"Item 0 is 7 \(int\).*delayed\(f\)\(x\) for x in xs"):
        await gather_parallel((add(x) for x in [7, 8]), backend=backend)


async def test_the_first_wrong_item_is_named_by_its_index() -> None:
    calls = [delayed(add)(0), delayed(add)(1), "two", delayed(add)(3)]
    with pytest.raises(TypeError, match="Item 2 is 'two'"):
        await gather_parallel(calls, backend="inline")


async def test_a_partial_is_no_call() -> None:
    with pytest.raises(TypeError, match=r"Item 0 is <partial>"):
        await gather_parallel([partial(add, 1)], backend="inline")  # type: ignore[list-item]


@pytest.mark.parametrize(("thing", "told"), [(add, "the function work.add"), (float, "the class float")])
async def test_a_function_is_no_call(thing: Any, told: str) -> None:
    _, _, name = told.split()
    with pytest.raises(TypeError, match=rf"Item 0 is {told}, not a call\. Write delayed\({name}\)\(\.\.\.\)"):
        await gather_parallel(thing, backend="inline")


async def test_delayed_without_arguments_is_no_call() -> None:
    with pytest.raises(TypeError, match=r"Item 0 is delayed\(.*add\) without its arguments"):
        await gather_parallel([delayed(add)], backend="inline")  # type: ignore[list-item]


async def test_joblibs_delayed_is_told_from_ours() -> None:
    joblibs: Any = (add, (1,), {})
    with pytest.raises(TypeError, match=r"joblib.*from aparallel import delayed"):
        await gather_parallel([joblibs], backend="inline")


async def test_what_is_no_function_is_refused_before_it_runs() -> None:
    async with Pool(1, "inline") as pool:
        with pytest.raises(TypeError, match=r"3 \(int\) is not a function. Write run\(f, x\)"):
            await pool.run(3)  # type: ignore[call-overload]
        with pytest.raises(TypeError, match=r"map\(f, xs\)"):
            await pool.map(None, [1])  # type: ignore[call-overload]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(TypeError, match=r"coroutine.*run\(f, x\)"):
                await pool.run(add_later(1))  # type: ignore[call-overload]
            gc.collect()


async def test_a_delayed_function_without_its_arguments_is_not_run_for_a_call() -> None:
    async with Pool(1, "inline") as pool:
        half: Any = delayed(add)
        for run in (pool.run, pool.submit):
            with pytest.raises(TypeError, match=r"delayed\(.*add\) is without its arguments. Write .*\(f, x\)"):
                await run(half, 1)
        with pytest.raises(TypeError, match=r"delayed\(.*add\) is without its arguments. Write map\(f, xs\)"):
            await pool.map(half, [1])


async def test_map_says_what_it_cannot_iterate_over() -> None:
    async def numbers() -> AsyncIterator[int]:
        yield 1

    async with Pool(1, "inline") as pool:
        with pytest.raises(TypeError, match=r"Argument 2 of map\(\) is of type int"):
            await pool.map(add, [1], 2)  # type: ignore[call-overload]
        with pytest.raises(TypeError, match="async for"):
            await pool.map(add, numbers())  # type: ignore[call-overload]


def gather_star(items: list[Any]) -> Any:
    return gather_parallel(*items, backend="inline")


def gather_list(items: list[Any]) -> Any:
    return gather_parallel(items, backend="inline")


async def stream_list(items: list[Any]) -> None:
    async with stream_parallel(items, backend="inline") as results:
        async for _ in results:
            pass


@pytest.mark.parametrize("gather", [gather_star, gather_list, stream_list])
@pytest.mark.parametrize("count", [1, 3])
async def test_coroutines_are_refused_without_a_warning_that_they_were_never_awaited(
    gather: Callable[[list[Any]], Any], count: int
) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(TypeError, match=r"Item 0 is the coroutine add_later\(\.\.\.\).*delayed\(add_later\)"):
            await gather([add_later(x) for x in range(count)])
        gc.collect()
    assert [str(warning.message) for warning in caught] == []


async def test_a_coroutine_among_calls_is_refused_without_a_warning() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(TypeError, match="Item 1 is the coroutine"):
            await gather_parallel(delayed(add)(1), add_later(2), add_later(3), backend="inline")  # type: ignore[call-overload]
        gc.collect()
    assert [str(warning.message) for warning in caught] == []


@pytest.mark.parametrize("item", [3, None, add])
async def test_what_is_neither_a_call_nor_iterable_is_refused(item: Any) -> None:
    with pytest.raises(TypeError, match="Item 0 is"):
        await gather_parallel(item)
    with pytest.raises(TypeError, match="Item 0 is"):
        stream_parallel(item)


async def test_a_wrong_item_leaves_the_pool_usable() -> None:
    async with Pool(1, "process") as pool:
        with pytest.raises(TypeError, match="Item 1"):
            await pool.gather([delayed(add)(1), 2])  # type: ignore[list-item]
        assert await pool.gather([delayed(add)(1)]) == [1]
        assert (pool.statistics().busy, pool.statistics().queued) == (0, 0)
