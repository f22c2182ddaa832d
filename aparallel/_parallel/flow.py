"""A source of calls on its way through a pool: drawn as workers free up, delivered as outcomes arrive."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Sized
from typing import TYPE_CHECKING, Any

from aparallel._ground.awaiting import Announced
from aparallel._ground.bars import load_tqdm
from aparallel._ground.call import Call, MappedCalls, close_coroutines
from aparallel._ground.hop import in_thread
from aparallel._ground.nesting import call_context
from aparallel._ground.shield import outlast
from aparallel._parallel.batching import calls_ahead
from aparallel._parallel.progress import Reporter
from aparallel._parallel.queues import Queue
from aparallel._parallel.scheduler import Scheduler
from aparallel.abc import Batch, Drawn

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    from aparallel._parallel.options import Options
    from aparallel._parallel.queues import Quota
    from aparallel.abc import Encoder, Function, OnCancel, Sharing, Timing

Source = Iterable[Any] | AsyncIterable[Any]

# Drawing gives the loop back after this long. A timer's task takes two turns of the loop to run, and each turn also
# takes in outcomes, so at 1 ms the loop's lag was 2 to 3 ms at the median.
_SLICE_SECONDS = 0.00015

# What was drawn in this time is handed out together: each message has its cost.
_HAND_OUT_SECONDS = 0.001


async def prepare(options: Options) -> None:
    """Do before a flow begins what would hold the loop: import the progress bar, about 100 ms."""
    if options.progress is True:
        await in_thread(load_tqdm)


class Flow(Queue):
    """The calls of one gather or stream. It owns them and is the queue that they wait in.

    Attributes:
        drawn: calls taken from the source so far, which is also the next one's index.
        done: outcomes delivered.
        error: why it stopped early, if it did.
        finished: done when every call drawn has an outcome and there are no more, or when it stopped.
        ending: what is to be undone at its end.
        result_bytes: about how many bytes a result has that waits to be consumed; 0 where none waits.
    """

    name: str
    result_bytes = 0.0

    def __init__(
        self,
        scheduler: Scheduler,
        encoder: Encoder,
        source: Source,
        options: Options,
        workers: int,
        *,
        sharing: Sharing,
        on_cancel: OnCancel,
        return_exceptions: bool,
        quota: Quota | None = None,
    ) -> None:
        super().__init__(workers, options.batch_size, tally=scheduler.backlog.tallies.drawn, quota=quota)
        self.context = call_context()
        self.sharing = sharing
        self.timeout = options.timeout
        self.on_cancel = on_cancel
        self.cancelled = False
        self.drawn = 0
        self.done = 0
        self.error: BaseException | None = None
        self.finished: asyncio.Future[None] = scheduler.loop.create_future()
        self.ending = contextlib.ExitStack()
        self._scheduler = scheduler
        self._encoder = encoder
        self._source = source
        self._return_exceptions = return_exceptions
        workers = self.most_workers(workers)
        self._pre_dispatch = options.pre_dispatch.of(workers)
        self._total = (
            len(source) if isinstance(source, Sized) else source.total if type(source) is MappedCalls else None
        )
        self._reporter = Reporter(workers, options.verbose, options.progress, self._total, name=self.name)
        self.retries = options.retries
        self.deaths: dict[int, int] = {}
        self._exhausted = False
        # Of the function whose calls were drawn last.
        self._timing: Timing | None = None
        # Bytes of calls encoded on the loop, and of the large ones that are still ahead. Those are counted singly: of
        # many calls that share an array, one has all its bytes, and no mean tells what the next will have.
        self._drawn_bytes = 0
        self._large_bytes = 0
        self._large: deque[tuple[int, int]] = deque()  # (index, bytes)
        # Set when more may be drawn than when the drawer looked last.
        self._room = asyncio.Event()
        self._drawer: asyncio.Task[None] | None = None
        # The drawer draws no more, and awaits what the source does at its end: only who cancels that wait cancels it.
        self._closing = False

    @property
    def queue(self) -> Flow:
        """Itself. Not an attribute: results must go when they are dropped, not when a cycle is found."""
        return self

    # For those who collect

    def collect(self, first: int, values: list[Any]) -> None:
        """Keep results; *first* is the index of the first one."""
        raise NotImplementedError

    def released(self) -> int:
        """How many calls no longer count as drawn ahead."""
        return self.done

    # Drawing

    async def draw(self) -> None:
        """Draw all calls, in this task, as far ahead as is allowed at any time."""
        if self._total != 0:
            self._scheduler.start_first()
        if isinstance(self._source, AsyncIterable):
            await self._draw_async(aiter(self._source))
        else:
            await self._draw_sync(iter(self._source))
        if not self.cancelled:
            self._exhausted = True
            self._reporter.total_known(self.drawn)
            self._check_finished()

    def draw_in_background(self) -> None:
        self._drawer = self._scheduler.loop.create_task(self._draw_or_stop(), name="aparallel-draw")
        self._drawer.add_done_callback(self._on_drawn)

    def _on_drawn(self, drawer: asyncio.Task[None]) -> None:
        if drawer.cancelled() and not self.cancelled:  # before its first step: else it has stopped this
            self.stop(asyncio.CancelledError())

    async def _draw_or_stop(self) -> None:
        try:
            await self.draw()
        except BaseException as error:
            if self._scheduler.loop.is_closed():  # a GeneratorExit: nobody waits for anything any more
                raise
            if not self.cancelled:  # then the source raised it, be it a CancelledError
                self.stop(error)
            elif not isinstance(error, Exception):  # a Ctrl-C while it was closed: the loop's, as in any task
                raise
            if isinstance(error, asyncio.CancelledError):
                raise

    async def _draw_sync(self, calls: Iterator[Any]) -> None:
        while not self.cancelled:
            room = self._ahead() - self.drawn + self.released()
            if room <= 0:
                self._room.clear()
                await self._room.wait()
                continue
            drawn = await self._draw_slices(calls, room)
            if self.cancelled:  # in between
                return
            await self._admit(drawn)
            self._scheduler.dispatch()
            if drawn.exhausted:
                return
            if drawn.count < room:
                await asyncio.sleep(0)

    async def _draw_slices(self, calls: Iterator[Any], room: int) -> Drawn:
        """Draw at most *room* calls, giving the loop back in between."""
        drawn = Drawn([])
        until = time.monotonic() + _HAND_OUT_SECONDS
        while True:
            try:
                more = self._encoder.draw(calls, room - drawn.count, self.drawn + drawn.count, _SLICE_SECONDS)
            except TypeError:
                close_coroutines(self._source)
                raise
            drawn.extend(more)
            ended = drawn.exhausted or drawn.large is not None or drawn.failed is not None
            if ended or drawn.count == room or time.monotonic() >= until:
                return drawn
            await asyncio.sleep(0)
            if self.cancelled:
                return drawn

    async def _draw_async(self, calls: AsyncIterator[Any]) -> None:
        try:
            await self._draw_each(calls)
        except Exception as error:
            if not self.cancelled:  # told before the source is closed, which may take long
                self.stop(error)
            raise
        finally:
            if isinstance(calls, AsyncGenerator) and self._scheduler.loop.is_running():  # else nobody would go on
                await self._close(calls)

    async def _close(self, calls: AsyncGenerator[Any, Any]) -> None:
        """Have the source run its ``finally`` in the task that ran it, where it may have scopes and timeouts open.

        Left to itself it would do so soon after, in another task, and nobody could wait for that.
        """
        self._closing = True
        try:
            await calls.aclose()
        except Exception as error:  # nobody asks any more; asyncio tells it so, too
            message = f"an error occurred when {calls!r}, which calls were drawn from, was closed"
            self._scheduler.loop.call_exception_handler({"message": message, "exception": error, "asyncgen": calls})

    async def _draw_each(self, calls: AsyncIterator[Any]) -> None:
        # Encoded already, and to be handed out together: before the source suspends, or when it has not for a while.
        drawn = Drawn([])

        def hand_out() -> None:
            nonlocal drawn
            if drawn.count:
                ready, drawn = drawn, Drawn([])
                self._line_up(ready)
                self._scheduler.dispatch()

        until = time.monotonic() + _SLICE_SECONDS
        while not self.cancelled:
            if self._ahead() - self.drawn - drawn.count + self.released() <= 0:
                self._room.clear()  # before they are handed out: if no worker can be had, they end at once
                hand_out()
                await self._room.wait()
                continue
            try:
                call = await Announced(anext(calls), hand_out)
            except StopAsyncIteration:
                hand_out()
                return
            one = self._encoder.draw(iter((call,)), 1, self.drawn + drawn.count, 1.0)
            if one.count:
                drawn.extend(one)
            else:  # it is large, or cannot be encoded
                hand_out()
                await self._admit(one)
                self._scheduler.dispatch()
            if time.monotonic() > until:
                hand_out()
                await asyncio.sleep(0)
                until = time.monotonic() + _SLICE_SECONDS

    def _ahead(self) -> int:
        while self._large and self._large[0][0] < self.released():
            self._large_bytes -= self._large.popleft()[1]
        call_bytes = self._drawn_bytes / self.drawn if self.drawn else 0.0
        seconds = self._timing.seconds if self._timing is not None else None
        workers = self.most_workers(self._scheduler.workforce.limit)
        batch_size = self.batch_size or 1
        return calls_ahead(
            self._pre_dispatch, seconds, call_bytes, workers, batch_size, self._large_bytes, self.result_bytes
        )

    def wake_drawer(self) -> None:
        self._room.set()

    async def _admit(self, drawn: Drawn) -> None:
        """Queue what was drawn; a call that is too large for the loop is encoded first."""
        self._line_up(drawn)
        if drawn.large is not None:
            await self._admit_large(drawn.large)
        elif drawn.failed is not None:
            failed, drawn.failed = [drawn.failed], None  # frames in its traceback have what was drawn
            self.deliver(self._reserve(1), failed, [0])

    def _line_up(self, drawn: Drawn) -> None:
        self._drawn_bytes += drawn.size
        for function, payloads in drawn.groups:
            if payloads:
                self._add(function, payloads, drawn.size * len(payloads) // drawn.count)

    async def _admit_large(self, call: Call[Any]) -> None:
        self._scheduler.dispatch()
        try:
            function, payload, size = await self._encoder.encode_large(call, self.drawn)
        except Exception as error:
            self.deliver(self._reserve(1), [error], [0])
            return
        if not self.cancelled:
            self._large.append((self.drawn, size))
            self._large_bytes += size
            self._add(function, [payload], self._encoder.size_of(payload))
            self._scheduler.dispatch()

    def _add(self, function: Function, payloads: list[Any], size: int) -> None:
        if self.cancelled:  # while a large call was encoded
            return
        self._timing = function.timing
        self._scheduler.backlog.admit(self)
        self.push(Batch(self, function, self._reserve(len(payloads)), payloads, size))

    def _reserve(self, count: int) -> int:
        first = self.drawn
        self.drawn += count
        self.expect(count)
        return first

    def expect(self, count: int) -> None:
        """Make room for *count* more results."""

    # Outcomes

    def deliver(self, first: int, values: list[Any], failed: Sequence[int]) -> None:
        if failed and not self._return_exceptions:
            self.stop(values[failed[0]])
            return
        self.done += len(values)
        self.collect(first, values)
        try:
            self._reporter.advance(self.done)
        except BaseException as error:  # of the user's progress function; what it raises to stop it all, too
            self.stop(error)
            return
        self.wake_drawer()
        self._check_finished()

    def wants(self, index: int) -> bool:
        return not self.cancelled

    def stop(self, error: BaseException) -> None:
        """Draw no more and deliver no more: *error* is what the caller gets."""
        if not self.finished.done():
            self.error = error
            self.finished.set_result(None)
        self.cancelled = True
        self.wake_drawer()

    def _is_complete(self) -> bool:
        return self._exhausted and self.done == self.drawn

    def _check_finished(self) -> None:
        if self._is_complete() and not self.finished.done():
            self.finished.set_result(None)

    async def end(self) -> None:
        """Stop what is left of it and wait until nothing of it runs. Survives cancellation, and passes it on."""
        clean = self._is_complete() and self.error is None  # not finished.done(): who awaits a future cancels it
        waiting: list[asyncio.Future[Any]] = []
        with self.ending:
            if not self._scheduler.loop.is_closed():  # else the workers went with it, and this is the end of its tasks
                if self._drawer is not None and not self._drawer.done():
                    if not self._closing:
                        self._drawer.cancel()
                    waiting.append(self._drawer)
                if not clean:
                    self.cancelled = True
                    waiting += self._scheduler.cancel(self)
            try:
                await outlast(waiting, hearing=self._drawer)
            finally:
                # A generator that nobody else holds runs its finally now; an asynchronous one has done so.
                self._source, self._drawer = (), None
                self._encoder.close()
                self._reporter.close(failed=not clean)


class GatherFlow(Flow):
    """A flow whose results are collected into one list."""

    name = "gather_parallel"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.results: list[Any] = []
        super().__init__(*args, **kwargs)

    def expect(self, count: int) -> None:
        self.results.extend([None] * count)

    def collect(self, first: int, values: list[Any]) -> None:
        self.results[first : first + len(values)] = values
