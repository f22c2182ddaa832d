"""A thread that helps another one does not share its core."""

from __future__ import annotations

import os
import pathlib
import sys
import threading
from collections.abc import Callable

import numpy as np
import pytest

from aparallel import dump, load
from aparallel._ground import cores
from aparallel._ground.helping import Helper

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a thread choose its cores")

needs_two = pytest.mark.skipif(
    sys.platform == "linux" and len(os.sched_getaffinity(0)) < 2, reason="there is only one core"
)


def helped() -> set[int]:
    """The cores that a helper may run on."""
    found: list[set[int]] = []
    helper = Helper(lambda give_way: found.append(os.sched_getaffinity(0)))
    assert helper.is_there
    helper.wait()
    return found[0]


@pytest.fixture(params=[min, max])
def mine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """The core that the caller believes to be on."""
    core: int = request.param(os.sched_getaffinity(0))
    monkeypatch.setattr(cores, "current_core", lambda: core)
    return core


@needs_two
def test_a_helper_may_run_on_any_core_but_its_callers(mine: int) -> None:
    usable = os.sched_getaffinity(0)
    assert helped() == usable - {mine}
    assert os.sched_getaffinity(0) == usable  # of the caller


@needs_two
def test_a_helper_makes_room_for_its_caller_wherever_that_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    usable = os.sched_getaffinity(0)
    first, last = min(usable), max(usable)
    here = [first]
    monkeypatch.setattr(cores, "current_core", lambda: here[0])
    begun, moved, seen = threading.Event(), threading.Event(), list[set[int]]()

    def help_on(give_way: Callable[[], None]) -> None:
        seen.append(os.sched_getaffinity(0))
        begun.set()
        moved.wait(10)
        give_way()
        seen.append(os.sched_getaffinity(0))

    helper = Helper(help_on)
    assert begun.wait(10)
    here[0] = last
    helper.give_way()
    moved.set()
    helper.wait()
    assert seen == [usable - {first}, usable - {last}]


def test_where_there_is_one_core_both_run_on_it() -> None:
    found: list[set[int]] = []
    core = min(os.sched_getaffinity(0))

    def caller() -> None:
        os.sched_setaffinity(0, {core})
        found.append(helped())

    thread = threading.Thread(target=caller)
    thread.start()
    thread.join()
    assert found == [{core}]


def test_a_helper_that_may_not_choose_its_core_helps_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("a filter of system calls")

    usable = os.sched_getaffinity(0)
    monkeypatch.setattr(os, "sched_setaffinity", refuse)
    assert helped() == usable


def test_a_helper_whose_caller_may_not_ask_for_its_cores_helps_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int) -> set[int]:
        raise PermissionError("a sandbox refuses it")

    helped: list[bool] = []
    monkeypatch.setattr(os, "sched_getaffinity", refuse)
    helper = Helper(lambda give_way: helped.append(True))
    helper.wait()
    assert helper.is_there
    assert helped


def test_the_current_core_is_one_that_may_be_used() -> None:
    assert cores.current_core() in os.sched_getaffinity(0)


@needs_two
async def test_threads_that_help_to_load_leave_the_reading_threads_core(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, mine: int
) -> None:
    seen: dict[int, set[int]] = {}
    offering: Callable[[], None] = cores.offer_core

    def offer() -> None:
        seen[threading.get_ident()] = os.sched_getaffinity(0)
        offering()

    usable = os.sched_getaffinity(0)
    monkeypatch.setattr(cores, "offer_core", offer)
    monkeypatch.setattr(cores, "current_core", lambda: mine)
    array = np.arange(5_000_000)
    await dump(array, tmp_path / "array", durable=False)
    for _ in range(100):  # one of the threads may be too late to take part
        np.testing.assert_array_equal(await load(tmp_path / "array"), array)
        if len(set(map(frozenset, seen.values()))) == 2:
            break
    assert set(map(frozenset, seen.values())) == {frozenset(usable), frozenset(usable - {mine})}
    assert os.sched_getaffinity(0) == usable
