"""A pool keeps each setting that it is given, or says at once that it cannot."""

from __future__ import annotations

import contextvars
import inspect
import os
import sys
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest

from aparallel import Pool, delayed, gather_parallel, parallel_config
from aparallel._backends.inline import InlineBackend
from aparallel._backends.process import ProcessBackend
from aparallel._backends.thread import ThreadBackend
from aparallel._parallel.batching import MESSAGE_CALLS
from aparallel._parallel.options import resolve
from aparallel._parallel.settings import Settings
from aparallel._parallel.typed import PoolSettings
from aparallel.abc import Sharing
from aparallel.testing import FakeBackend

chosen: contextvars.ContextVar[str] = contextvars.ContextVar("chosen")

# A value of each setting of workers that is not the default.
OF_WORKERS: dict[str, Any] = {
    "initializer": print,
    "initargs": ("x",),
    "context_vars": [chosen],
    "inner_max_num_threads": 2,
    "executable": sys.executable,
    "nice": 5,
    "logs": False,
    "max_nbytes": "2M",
    "mmap_mode": "c",
    "temp_folder": os.curdir,
}
OF_POOLS: dict[str, Any] = {
    "idle_timeout": 10.0,
    "max_calls_per_worker": 5,
    "max_queued": 3,
    "queue_timeout": 1.5,
    "on_cancel": "abandon",
}
FOR_ALL_KINDS = {"initializer", "initargs", "context_vars"}
TOLD_TO_BACKENDS = {"max_nbytes", "mmap_mode", "temp_folder"}

MADE = {"process": ProcessBackend, "thread": ThreadBackend, "inline": InlineBackend, "fake": FakeBackend}


def test_all_settings_are_tried_here() -> None:
    names = set(Settings._fields)
    assert {*OF_WORKERS, *OF_POOLS, "n_jobs", "backend"} == names
    defaults = {name: parameter.default for name, parameter in inspect.signature(Pool).parameters.items()}
    assert defaults == Settings._field_defaults
    assert set(PoolSettings.__annotations__) == names


@pytest.mark.parametrize("kind", ["process", "thread", "inline", "loky", "threading", "sequential"])
@pytest.mark.parametrize("name", [*OF_WORKERS, *OF_POOLS])
def test_a_kind_of_workers_keeps_a_setting_or_refuses_it(name: str, kind: Any) -> None:
    value = {**OF_WORKERS, **OF_POOLS}[name]
    if kind in ("process", "loky") or name in FOR_ALL_KINDS or name in OF_POOLS:
        Pool(1, kind, **{name: value})
    else:
        with pytest.raises(ValueError, match=rf"{name}=.* is for process workers.*leave {name}= out"):
            Pool(1, kind, **{name: value})


@pytest.mark.parametrize("kind", MADE)
@pytest.mark.parametrize("name", [*OF_WORKERS, *OF_POOLS])
def test_a_backend_that_was_made_already_is_told_a_setting_or_it_is_refused(name: str, kind: str) -> None:
    value = {**OF_WORKERS, **OF_POOLS}[name]
    backend = MADE[kind]()
    if name in OF_POOLS or (name in TOLD_TO_BACKENDS and kind in ("process", "fake")):
        Pool(1, backend, **{name: value})
    else:
        with pytest.raises(ValueError, match=rf"{name}=.* does not reach the workers of .*{type(backend).__name__}"):
            Pool(1, backend, **{name: value})


def test_what_others_have_anyway_may_be_said_but_not_to_a_backend_that_may_have_been_told_otherwise() -> None:
    for backend in ("thread", "inline", ThreadBackend(), FakeBackend()):
        Pool(1, backend, max_nbytes=None)  # type: ignore[arg-type]
        Pool(1, backend, nice=0, logs=True, max_nbytes="1M", mmap_mode="r", temp_folder=None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="nice=0 does not reach"):
        Pool(1, ProcessBackend(nice=5), nice=0)


@pytest.mark.parametrize("name", ["max_nbytes", "mmap_mode", "temp_folder"])
async def test_what_a_backend_is_told_is_what_the_pool_was_given(name: str, tmp_path: Path) -> None:
    told = []

    class Listening(FakeBackend):
        def encoder(self, sharing: Any, moments: Any) -> Any:
            told.append(sharing)
            return super().encoder(sharing, moments)

    value = {"max_nbytes": 5000, "mmap_mode": "c", "temp_folder": str(tmp_path)}[name]
    async with Pool(1, Listening(), **{name: value}):
        assert [getattr(sharing, name) for sharing in told] == [value]


@pytest.mark.parametrize(
    "other", [{"backend": "thread"}, {"backend": FakeBackend()}, {"prefer": "threads"}, {"require": "sharedmem"}]
)
async def test_a_gather_on_other_workers_refuses_threads_of_processes(other: Any) -> None:
    calls = iter([delayed(abs)(-1)])
    with pytest.raises(ValueError, match="inner_max_num_threads=2 is for process workers"):
        await gather_parallel(calls, inner_max_num_threads=2, **other)
    assert len(list(calls)) == 1


async def test_a_surrounding_block_may_say_what_is_only_for_some_of_its_gathers() -> None:
    with parallel_config(inner_max_num_threads=2):
        assert await gather_parallel([delayed(abs)(-1)], backend="inline") == [1]
    with parallel_config(backend="inline"):
        assert await gather_parallel([delayed(abs)(-1)], inner_max_num_threads=2) == [1]


COUNTS = {"n_jobs": 2, "max_calls_per_worker": 3, "max_queued": 0, "inner_max_num_threads": 1, "nice": 5}


@pytest.mark.parametrize("number", [np.int64, np.uint8])
def test_whole_numbers_of_numpy_are_numbers(number: Any) -> None:
    settings = Settings(**{name: number(count) for name, count in COUNTS.items()}).checked()
    kept = [getattr(settings, name) for name in COUNTS if name != "n_jobs"]
    assert [settings.workers(), *kept] == list(COUNTS.values())
    assert {type(value) for value in kept} == {int}
    limited = Pool(1, "inline").limit("key", number(3), max_queued=number(2))
    assert repr(limited.statistics().n) == "3"
    assert repr(limited.statistics().max_queued) == "2"


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("value", [np.float64(1), True, "1", np.bool_(True)])
def test_other_things_are_not(name: str, value: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=name):
        Settings(**{name: value}).checked()


@pytest.mark.parametrize("value", ["5m", True, -1, float("nan"), [1]])
def test_an_idle_timeout_that_is_no_number_of_seconds_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"idle_timeout=.* is not a positive number of seconds"):
        Pool(idle_timeout=value)


async def test_workers_may_be_kept_for_an_infinite_time() -> None:
    async with Pool(1, "thread", idle_timeout=float("inf"), queue_timeout=np.float32(30)) as pool:  # type: ignore[arg-type]
        assert await pool.run(abs, -1) == 1
        assert pool.statistics().idle == 1


async def test_an_infinite_timeout_is_none_which_threads_keep_too() -> None:
    async with Pool(1, "thread") as pool:
        assert await pool.run(abs, -1, timeout=float("inf")) == 1
        assert await pool.gather([delayed(abs)(-1)], timeout=float("inf")) == [1]
        with pytest.raises(ValueError, match=r"timeout=nan is not a positive number of seconds"):
            await pool.run(abs, -1, timeout=float("nan"))


async def test_numbers_of_numpy_are_numbers_in_the_options_of_a_gather() -> None:
    calls = [delayed(abs)(-x) for x in range(5)]
    options: Any = {
        **{name: np.int64(2) for name in ("n_jobs", "batch_size", "pre_dispatch", "retries")},
        "verbose": np.int64(0),
        "timeout": np.float32(30),
        "on_cancel": "abandon",
    }
    assert await gather_parallel(calls, backend="inline", **options) == [0, 1, 2, 3, 4]
    with parallel_config(**options):
        assert await gather_parallel(calls, backend="inline") == [0, 1, 2, 3, 4]


def test_options_are_read_once_where_they_are_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at: list[str] = []
    there = os.path.isdir
    monkeypatch.setattr(os.path, "isdir", lambda path: looked_at.append(path) or there(path))
    with parallel_config(temp_folder=tmp_path, max_nbytes="2K", pre_dispatch="2*n_jobs", batch_size=10**9):
        options = resolve({"n_jobs": 3})
        assert (options.temp_folder, options.max_nbytes, options.batch_size) == (str(tmp_path), 2048, MESSAGE_CALLS)
        assert options.pre_dispatch.of(3) == 6
        assert options.sharing(Sharing()) == Sharing(2048, "r", str(tmp_path))
    assert looked_at == [str(tmp_path)]


def test_the_settings_of_a_web_pool_can_be_looked_up() -> None:
    from aparallel import web

    assert web.PoolSettings is PoolSettings
    with pytest.raises(NameError):  # types that only type checkers need are not imported for them
        get_type_hints(PoolSettings)


@pytest.mark.parametrize("name", ["run", "submit"])
def test_help_says_of_a_call_without_a_queue_timeout_that_the_pools_own_holds(name: str) -> None:
    assert str(inspect.signature(getattr(Pool, name)).parameters["queue_timeout"]).endswith("= <the pool's>")
