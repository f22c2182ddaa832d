"""Results as they come: an async iterator that belongs to an async with block."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

from aparallel._parallel.batching import rough_bytes
from aparallel._parallel.flow import Flow, prepare

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from types import TracebackType

    from aparallel._parallel.options import Options

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

# A consumer that finds results waiting gives the loop back after this many, or this long.
_RESULTS_AT_ONCE = 64
_SECONDS_AT_ONCE = 0.00025


class StreamFlow(Flow):
    """A flow whose results wait for a consumer, and which draws no further than the consumer keeps pace."""

    name = "stream_parallel"

    def __init__(self, *args: Any, ordered: bool, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._ordered = ordered
        self._ready: deque[tuple[int, Any]] = deque()
        # Ordered only: results whose turn has not come, by index, and whose turn it is.
        self._early: dict[int, Any] = {}
        self._next = 0
        self._consumed = 0
        # For the tasks that wait for a result.
        self._arrival = asyncio.Event()
        # What belongs before a result, as log records of its call do, is handled before it is given: the backend
        # settles it. An announcement is counted when results, or the end, have come; of these so many are settled, and
        # with them so many results, counted from the first one. Invariant: no result beyond them is given.
        self._announced = 0
        self._settled = 0
        self._settled_results = 0

    def released(self) -> int:
        return self._consumed

    def collect(self, first: int, values: list[Any]) -> None:
        self._weigh(values)
        if self._ordered and first != self._next:
            self._early.update(enumerate(values, first))
        else:
            self._ready.extend(enumerate(values, first))
            self._next += len(values)
            while self._next in self._early:
                self._ready.append((self._next, self._early.pop(self._next)))
                self._next += 1
        self._announce()

    def _weigh(self, values: list[Any]) -> None:
        # One of each delivery, and a mean that follows them.
        share = 1.0 if self.done == len(values) else 0.25
        self.result_bytes += share * (rough_bytes(values[-1]) - self.result_bytes)

    def stop(self, error: BaseException) -> None:
        super().stop(error)
        self._announce()

    def _check_finished(self) -> None:
        super()._check_finished()
        if self.finished.done():
            self._announce()

    def _announce(self) -> None:
        self._announced += 1
        self._arrival.set()

    async def end(self) -> None:
        try:
            await super().end()
        finally:
            self._ready.clear()
            self._early.clear()
            if not self.finished.done():
                self.finished.set_result(None)
            self._announce()

    def next_nowait(self) -> tuple[int, Any] | None:
        """Return the next result and its index if it is there and nothing belongs before it."""
        if not self._ready or self._consumed >= self._settled_results or self.error is not None:
            return None
        self._consumed += 1
        self.wake_drawer()
        return self._ready.popleft()

    async def next(self) -> tuple[int, Any]:
        """Return the next result and its index; raise what stopped the flow, or StopAsyncIteration."""
        while True:
            if self._settled < self._announced:
                await self._settle()
            taken = self.next_nowait()
            if taken is not None:
                return taken
            if self._settled < self._announced:  # more came meanwhile, and is not announced again
                continue
            if self.error is not None:
                raise self.error
            if self.finished.done():
                raise StopAsyncIteration
            self._arrival.clear()
            await self._arrival.wait()

    async def _settle(self) -> None:
        announced, results = self._announced, self._consumed + len(self._ready)
        backend = self._scheduler.backend
        if backend.is_unsettled:
            await backend.settle()
        # Another task may have done the same meanwhile.
        self._settled = max(self._settled, announced)
        self._settled_results = max(self._settled_results, results)


class ResultStream(Generic[T_co]):
    """The results of calls that still run: an async iterator, inside its ``async with`` block.

    Leaving the block cancels the calls that have not finished and waits until they have stopped.
    Several tasks may iterate: each result is given to one of them. A failure is raised by the next step of each, and
    ends the stream. Cancelling a step loses no result.
    """

    def __init__(self, options: Options, begin: Callable[[], StreamFlow]) -> None:
        self._options = options
        self._begin: Callable[[], StreamFlow] | None = begin  # None from when it was entered
        self._flow: StreamFlow | None = None
        self._index: int | None = None
        self._given = 0
        self._pause_at = 0.0

    @property
    def index(self) -> int:
        """The input index of the result that was given last.

        Raises:
            LookupError: none has been given yet.
        """
        if self._index is None:
            raise LookupError("No result has been given yet, so there is no index.")
        return self._index

    async def indexed(self) -> AsyncIterator[tuple[int, T_co]]:
        """Iterate over (index, result) instead of results; errors and cancellation are the same."""
        async for result in self:
            yield self.index, result

    async def __aenter__(self) -> Self:
        if self._begin is None:
            raise RuntimeError("This stream has been entered before. Call stream_parallel(...) again for another one.")
        await prepare(self._options)
        self._flow = self._begin()
        self._begin = None  # it has the source
        self._flow.draw_in_background()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._flow is not None
        await self._flow.end()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T_co:
        flow = self._flow
        if flow is None:
            raise RuntimeError("Enter the stream first: async with stream_parallel(...) as results: ...")
        self._given += 1
        if self._given % _RESULTS_AT_ONCE == 0 and time.monotonic() > self._pause_at:
            await asyncio.sleep(0)
            self._pause_at = time.monotonic() + _SECONDS_AT_ONCE
        taken = flow.next_nowait()
        if taken is None:
            taken = await flow.next()
        self._index, value = taken
        result: T_co = value
        return result
