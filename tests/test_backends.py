"""Every backend of ours keeps the promises that aparallel.testing states for all."""

from __future__ import annotations

import asyncio
import functools
import itertools
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest

from aparallel import Call, Pool, delayed
from aparallel._backend_suite.driving import Told, held
from aparallel._backends.inline import InlineBackend, InlineWorker
from aparallel._backends.process import ProcessBackend
from aparallel._backends.thread import ThreadBackend
from aparallel.abc import Backend, Drawn, Encoder, Function, Later, Timings, name_of
from aparallel.errors import ClosedPoolError
from aparallel.testing import BackendSuite

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from aparallel.abc import Batch, WorkerEvents


class TestProcessBackend(BackendSuite):
    def new_backend(self) -> Backend:
        return ProcessBackend()

    def new_backend_with(self, initializer: Callable[[], object]) -> Backend:
        return ProcessBackend(initializer=initializer)


class TestThreadBackend(BackendSuite):
    def new_backend(self) -> Backend:
        return ThreadBackend()

    def new_backend_with(self, initializer: Callable[[], object]) -> Backend:
        return ThreadBackend(initializer=initializer)


class TestInlineBackend(BackendSuite):
    def new_backend(self) -> Backend:
        return InlineBackend()

    def new_backend_with(self, initializer: Callable[[], object]) -> Backend:
        return InlineBackend(initializer=initializer)


@functools.cache
def backend_of_the_docs() -> type[Any]:
    """The class that docs/how-to/backends.md shows."""
    page = (Path(__file__).parent.parent / "docs" / "how-to" / "backends.md").read_text()
    names: dict[str, Any] = {}
    exec(page.split("```python\n")[1].split("```")[0], names)
    backend: type[Any] = names["ExecutorBackend"]
    return backend


class TestBackendOfTheDocs(BackendSuite):
    @pytest.fixture(autouse=True)
    def _with_threads(self) -> Iterator[None]:
        with ThreadPoolExecutor(4) as self.executor:
            yield

    def new_backend(self) -> Backend:
        backend: Backend = backend_of_the_docs()(self.executor)
        return backend


def run_pickled(data: bytes) -> Any:
    function, args, keywords = pickle.loads(data)
    return function(*args, **keywords)


class PicklingEncoder(Encoder):
    """For workers elsewhere, of public names alone: calls become bytes, the larger ones off the loop."""

    def __init__(self, timings: Timings) -> None:
        self._timings = timings

    def _function(self, call: Call[Any]) -> Function:
        return Function(pickle.dumps(call.func), name_of(call.func), self._timings.of(call.func))

    def _payload(self, call: Call[Any]) -> Call[Any]:
        return Call(run_pickled, pickle.dumps((call.func, call.args, call.keywords)))

    def draw(self, calls: Iterator[Any], limit: int, first: int, seconds: float) -> Drawn:
        drawn = Drawn([])
        for call in itertools.islice(calls, limit):
            encoded = self.encode(call)
            if encoded is None:
                drawn.large = call
                return drawn
            drawn.group_for(encoded[0]).append(encoded[1])
            drawn.count += 1
        drawn.exhausted = drawn.count < limit
        return drawn

    def encode(self, call: Call[Any]) -> tuple[Function, Any] | None:
        if any(isinstance(arg, bytes) and len(arg) > 100_000 for arg in call.args):
            return None
        return self._function(call), self._payload(call)

    async def encode_large(self, call: Call[Any], index: int | None) -> tuple[Function, Any, int]:
        payload = await asyncio.to_thread(self._payload, call)
        return self._function(call), payload, len(payload.args[0])


class TestBackendThatPickles(TestBackendOfTheDocs):
    def new_backend(self) -> Backend:
        backend = super().new_backend()
        backend.shares_memory = False
        timings = Timings()
        backend.encoder = lambda *_, **__: PicklingEncoder(timings)  # type: ignore[method-assign]
        return backend

    async def test_a_worker_that_dies_costs_the_call_that_it_ran_and_no_other(self) -> None:
        pytest.skip("these are threads all the same")


class Wrong(InlineWorker):
    """Breaks one promise."""


class ForgetsWhatItTookBack(Wrong):
    def recall(self) -> None:
        self._events.on_recalled(max(self._take_back() - 1, 0))


class TellsTwice(Wrong):
    def _wake(self) -> None:
        if not isinstance(self._events, Twice):
            self._events = Twice(self._events)
        super()._wake()


class Twice:
    def __init__(self, events: WorkerEvents) -> None:
        self.events = events

    def __getattr__(self, name: str) -> Any:
        return getattr(self.events, name)

    def on_outcomes(self, values: list[Any], failed: list[int], seconds: float) -> None:
        self.events.on_outcomes(values * 2, failed, seconds)


class NeverKnowsSinceWhen(Wrong):
    def running_since(self) -> float | None:
        return 0.0


class SaysThatAllHadStarted(Wrong):
    def _take_back(self) -> int:
        super()._take_back()
        return 0


class ExitsBeforeItReturns(Wrong):
    def retire(self) -> None:
        self._end()


class SendsNothing(Wrong):
    def send(self, batches: Sequence[Batch]) -> None:
        super().send([batch.split(len(batch) - 1)[0] for batch in batches])


@pytest.mark.parametrize(
    ("worker", "test"),
    [
        (ForgetsWhatItTookBack, BackendSuite.test_what_has_not_started_can_be_taken_back),
        (TellsTwice, BackendSuite.test_a_worker_tells_each_outcome_once_in_the_order_sent),
        (NeverKnowsSinceWhen, BackendSuite.test_a_worker_knows_since_when_its_call_runs),
        (SaysThatAllHadStarted, BackendSuite.test_a_worker_that_is_killed_says_how_much_had_not_started),
        (ExitsBeforeItReturns, BackendSuite.test_a_worker_that_retires_ends_cleanly_and_tells_nothing_more),
        (SendsNothing, BackendSuite.test_a_worker_tells_each_outcome_once_in_the_order_sent),
    ],
)
async def test_the_suite_finds_a_worker_that_breaks_its_promise(
    worker: type[Wrong], test: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(BackendSuite):
        def new_backend(self) -> Backend:
            return InlineBackend()

    monkeypatch.setattr("aparallel._backends.inline.InlineWorker", worker)
    monkeypatch.setattr("aparallel._backend_suite.driving.PATIENCE_SECONDS", 0.2)
    with pytest.raises(AssertionError):
        await test(Broken())
    monkeypatch.undo()
    await test(Broken())


def test_the_suite_finds_an_outcome_that_comes_later_among_others() -> None:
    """A pool would give it to the caller in place of its value."""
    told = Told()
    told.on_outcomes([Later(lambda: asyncio.sleep(0))], [], 0.1)
    assert told.broken == []
    told.on_outcomes([1, Later(lambda: asyncio.sleep(0))], [], 0.1)
    assert told.broken == ["on_outcomes of a Later and others"]


async def test_a_held_call_ends_with_its_test() -> None:
    with held() as one:
        running = asyncio.ensure_future(one.call())
        await one.started()
        assert not running.done()
    assert await running == "held"


@pytest.mark.parametrize("deadline", [0, 0.01])
async def test_a_pool_that_closes_while_its_workers_prepare_on_the_loop_leaves_no_task(deadline: float) -> None:
    began = asyncio.Event()
    ended: list[str] = []

    async def prepare() -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.append("cleaned up")

    before = asyncio.all_tasks()
    pool = Pool(2, "inline", initializer=prepare)
    waiting = asyncio.ensure_future(pool.run(abs, -1))
    await began.wait()
    await pool.aclose(timeout=deadline)
    assert ended == ["cleaned up"]
    assert asyncio.all_tasks() - before <= {waiting}
    with pytest.raises(ClosedPoolError):
        await waiting


@pytest.mark.skipif(sys.version_info < (3, 12), reason="tasks never begin at once")
@pytest.mark.parametrize("kind", ["process", "thread", "inline"])
async def test_calls_end_as_they_must_where_tasks_begin_at_once(kind: Literal["process", "thread", "inline"]) -> None:
    async def same(x: int) -> int:
        if x % 2:
            await asyncio.sleep(0)
        return x

    xs = list(range(20))
    loop = asyncio.get_running_loop()
    loop.set_task_factory(asyncio.eager_task_factory if sys.version_info >= (3, 12) else None)
    try:
        async with asyncio.timeout(60), Pool(2, kind) as pool:
            assert await pool.gather(delayed(abs)(x) for x in xs) == xs
            assert await pool.gather(delayed(same)(x) for x in xs) == xs
            assert await asyncio.gather(*(asyncio.create_task(pool.run(same, x)) for x in xs)) == xs
            async with pool.stream(delayed(same)(x) for x in xs) as results:
                assert [result async for result in results] == xs
    finally:
        loop.set_task_factory(None)
