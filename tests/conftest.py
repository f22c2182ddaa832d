"""Every async test runs on asyncio and on uvloop, and must leave nothing behind: no child, descriptor or thread."""

from __future__ import annotations

import atexit
import compileall
import contextlib
import gc
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

# What an example takes says more of the machine than of the code: other programs may have its cores.
hypothesis.settings.register_profile(
    "shared machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("shared machine")

# The tests start a thousand interpreters. Where Python is told to write no bytecode, each of them would compile the
# package anew, which takes longer than the tests. So it is compiled once, and what is new of that goes at the end.
if sys.dont_write_bytecode:
    _tests = Path(__file__).parent
    for _code in (_tests.parent / "aparallel", _tests / "benchmarks" / "suite"):
        _there = set(_code.rglob("__pycache__"))
        compileall.compile_dir(_code, quiet=2)
        for _new in set(_code.rglob("__pycache__")) - _there:
            atexit.register(shutil.rmtree, _new, ignore_errors=True)

# NumPy's BLAS starts its threads while it is imported: a quarter of that time, and many of the workers import it.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# Shells have their background jobs ignore Ctrl-C, and whatever these start. Tests send it to programs that they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

LOOPS: list[Any] = [pytest.param(("asyncio", {"use_uvloop": False}), id="asyncio")]
try:
    import uvloop
except ImportError:
    LOOPS.append(
        pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop", marks=pytest.mark.skip(reason="uvloop is missing"))
    )
else:
    LOOPS.append(pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop"))
    # libuv keeps a pipe for signals from its first use on, which is not a leak of ours.
    uvloop.new_event_loop().close()


# The promises of these are about calls, not loops: in the suite one loop is enough, and the other is for soak.
_ONE_LOOP = (
    "test_admission",
    "test_backends",
    "test_call",
    "test_closing",
    "test_cores",
    "test_crashes",
    "test_functions",
    "test_gather",
    "test_hash",
    "test_limits",
    "test_logs",
    "test_map",
    "test_memory",
    "test_memory_store",
    "test_nested",
    "test_nice",
    "test_output",
    "test_persist_checking",
    "test_persist_damage",
    "test_persist_files",
    "test_persist_filling",
    "test_persist_joblib",
    "test_persist_pipes",
    "test_persist_roundtrip",
    "test_persist_summing",
    "test_persist_trees",
    "test_persist_trust",
    "test_pool",
    "test_progress",
    "test_random_load",
    "test_runs",
    "test_settings",
    "test_stores",
    "test_stream",
    "test_web_disconnect",
    "test_web_errors",
    "test_web_pool",
    "test_web_streaming",
)
# These are about loops, too, but few of their tests need both in the suite: each of the others runs on one of them.
_ALTERNATE = ("test_cancellation", "test_lifetime", "test_run")
_ON_BOTH = (
    "test_cancelling_ends_the_running_process_call_and_frees_its_worker",
    "test_cancelled_calls_end_within_the_promised_time_and_the_next_starts_at_once",
    "test_the_loops_own_pool_is_reused_grows_and_shrinks",
    "test_gathers_at_the_same_time_share_the_loops_own_pool",
    "test_a_pool_used_from_another_loop_says_so",
    # What pool.run returns must be taken for a coroutine or a future by the tasks and timers of either loop.
    "test_run_can_be_waited_for_in_every_way",
    "test_run_is_a_coroutine_until_it_begins_and_a_future_from_then_on",
    "test_a_run_that_was_made_on_another_loop_is_refused_where_it_is_awaited",
    "test_a_run_that_nobody_awaits_never_begins_and_says_so",
    "test_cancelling_stops_a_call_however_it_is_held",
    "test_an_anyio_scope_cancels_a_run_that_is_a_task_of_its_own",
)


@pytest.hookimpl(tryfirst=True)  # before the marks are asked
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave to ``-m soak`` what tests on a second loop would say again."""
    known = {item.nodeid for item in items}
    for item in items:
        module = item.module.__name__  # type: ignore[attr-defined]
        # A test that has no such fixture runs its loops itself: it is about them.
        if "uvloop" not in item.nodeid or "anyio_backend" not in item.fixturenames:  # type: ignore[attr-defined]
            continue
        on_asyncio = item.nodeid.replace("uvloop", "asyncio")
        if module in _ONE_LOOP or (
            module in _ALTERNATE and on_asyncio in known and not any(name in item.nodeid for name in _ON_BOTH)
        ):
            item.add_marker(pytest.mark.soak)


def pytest_collection_finish() -> None:
    """Have the collector pass over what lives as long as the tests: many tests collect garbage, some of them often."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    gc.unfreeze()  # Hypothesis, should it be loaded only now, asks the collector for referrers


@pytest.fixture(params=LOOPS)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param


def child_processes() -> set[int]:
    """The process IDs of this process's children, zombies included."""
    children = set()
    for task in os.listdir("/proc/self/task"):
        # A thread may end between the listing and this.
        with contextlib.suppress(FileNotFoundError), open(f"/proc/self/task/{task}/children") as file:
            children.update(map(int, file.read().split()))
    return children


def open_descriptors() -> dict[int, str]:
    """What each open descriptor of this process refers to."""
    found = {}
    for fd in os.listdir("/proc/self/fd"):
        try:
            # A file that this process was started with may be removed meanwhile, by another program.
            found[int(fd)] = os.readlink(f"/proc/self/fd/{fd}").removesuffix(" (deleted)")
        except OSError:  # the listing's own
            continue
    return found


def own_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("aparallel")]


@pytest.fixture(scope="session")
def tqdm_is_loaded() -> None:
    """Have tqdm make its lock before a test's children are counted: from Python 3.14 on one is left, for good."""
    pytest.importorskip("tqdm")
    from aparallel._ground.bars import load_tqdm

    load_tqdm()


@pytest.fixture(autouse=True)
def leaves_nothing_behind() -> Iterator[None]:
    """Fail a test after which a child, a descriptor or one of our threads remains."""
    if not os.path.exists("/proc/self/task"):
        yield
        return
    children, descriptors = child_processes(), open_descriptors()
    yield
    ended = time.monotonic()
    while True:
        left = child_processes() - children
        threads = own_threads()
        more = {fd: name for fd, name in open_descriptors().items() if descriptors.get(fd) != name}
        waited = time.monotonic() - ended
        if not (left or threads or more) or waited > 3.0:
            break
        if waited > 0.02:  # what is ending has ended by now; what is still there may be garbage
            gc.collect()
        time.sleep(0.002)
    assert not left, f"child processes remain: {left}"
    assert not threads, f"threads remain: {threads}"
    assert not more, f"descriptors remain: {more}"
