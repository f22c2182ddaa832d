"""What a pool has admitted: the calls that it still owes an outcome."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from aparallel._parallel.futures import CallFuture

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aparallel._parallel.flow import Flow
    from aparallel._parallel.scheduler import Scheduler
    from aparallel.abc import Backend


class Admitted:
    """Calls that were admitted and have not ended. A closing pool admits no more and waits for these.

    A single call is taken out by what ends it: :meth:`tell`, :meth:`forget` or :meth:`fail_all`. A gather or stream is
    entered and, whatever happens, taken out by whoever runs it.

    Attributes:
        futures: single calls. One that was cancelled stays until its call has stopped.
        flows: gathers and streams, and the workers that each asked for.
        encoding: the single calls among *futures* whose arguments are being pickled, and what does it.
    """

    __slots__ = ("_backend", "_quiet", "_scheduler", "encoding", "flows", "futures")

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._scheduler: Scheduler
        self.futures: set[CallFuture[Any]] = set()
        self.flows: dict[Flow, int] = {}
        self.encoding: dict[CallFuture[Any], asyncio.Task[None]] = {}
        # For those who wait until nothing is left.
        self._quiet: asyncio.Future[None] | None = None

    def open(self, scheduler: Scheduler) -> None:
        """Take note of who has the calls; nothing is admitted before."""
        self._scheduler = scheduler

    # Single calls

    def tell(self, futures: list[CallFuture[Any] | None], values: list[Any], failed: Sequence[int]) -> None:
        """Tell single calls their outcomes, when what belongs before them has been handled; None wants none."""
        if not self._backend.is_unsettled:
            self._tell(futures, values, failed)
            return
        settling = self._scheduler.loop.create_task(self._backend.settle(), name="aparallel-settle")
        settling.add_done_callback(lambda _: self._tell(futures, values, failed))

    def _tell(self, futures: list[CallFuture[Any] | None], values: list[Any], failed: Sequence[int]) -> None:
        for position in failed:
            future = futures[position]
            if future is not None and not future.done():
                future.set_exception(values[position])
        for future, value in zip(futures, values, strict=True):
            if future is not None and not future.done():
                future.set_result(value)
        self.futures.difference_update(futures)
        if self._quiet is not None:
            self.tell_if_quiet()

    def stop(self, future: CallFuture[Any]) -> list[asyncio.Future[Any]]:
        """Stop a single call; return what to wait for until it has stopped."""
        if future.place is not None:
            return [*self._scheduler.cancel_single(*future.place)]
        encoding = self.encoding.get(future)
        if encoding is None:
            return []
        encoding.cancel()
        return [encoding]

    def forget(self, future: CallFuture[Any]) -> None:
        """A single call has ended, and not by an outcome."""
        self.futures.discard(future)
        self.tell_if_quiet()

    # All of it

    def end_flow(self, flow: Flow) -> None:
        self.flows.pop(flow, None)
        self.tell_if_quiet()

    def is_empty(self) -> bool:
        return not (self.flows or self.futures)

    def quiet(self, loop: asyncio.AbstractEventLoop) -> asyncio.Future[None]:
        """A future that is done when nothing is left, or :meth:`give_up` was called."""
        if self._quiet is None:
            self._quiet = loop.create_future()
        return self._quiet

    def give_up(self) -> None:
        """Have nobody wait any longer."""
        quiet, self._quiet = self._quiet, None
        if quiet is not None:
            quiet.set_result(None)

    def tell_if_quiet(self) -> None:
        """Tell those who wait, if nothing is left."""
        if self.is_empty():
            self.give_up()

    def fail_all(self, error: Exception) -> None:
        """End all of it with *error*."""
        for flow in list(self.flows):
            if not flow.finished.done():
                flow.stop(error)
                self._scheduler.cancel(flow)
        for future in list(self.futures):
            if future.is_wanted:
                self.stop(future)
                future.set_exception(error)
                future.exception()  # whoever waits for it is told; asyncio need not say that nobody does
                self.futures.discard(future)
