"""What a pool has admitted: the calls that it still owes an outcome."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aparallel._parallel.flow import Flow
    from aparallel._parallel.runs import Runs
    from aparallel._parallel.scheduler import Scheduler


class Admitted:
    """Calls that were admitted and have not ended. A closing pool admits no more and waits for these.

    Whoever enters something here takes it out again, whatever happens, and then calls :meth:`tell_if_quiet`, which a
    single call may leave out while nobody waits.

    Attributes:
        runs: single calls and their places; None for one that has no place yet: it is still being encoded.
        flows: gathers and streams, and the workers that each asked for.
        is_awaited: whether anyone waits until nothing is left.
    """

    __slots__ = ("_quiet", "flows", "is_awaited", "runs")

    def __init__(self) -> None:
        self.runs: dict[asyncio.Future[Any], tuple[Runs, int] | None] = {}
        self.flows: dict[Flow, int] = {}
        # For those who wait until nothing is left; there while is_awaited.
        self._quiet: asyncio.Future[None] | None = None
        self.is_awaited = False

    def end_flow(self, flow: Flow) -> None:
        self.flows.pop(flow, None)
        self.tell_if_quiet()

    def is_empty(self) -> bool:
        return not (self.flows or self.runs)

    def quiet(self, loop: asyncio.AbstractEventLoop) -> asyncio.Future[None]:
        """A future that is done when nothing is left, or :meth:`give_up` was called."""
        if self._quiet is None:
            self._quiet = loop.create_future()
            self.is_awaited = True
        return self._quiet

    def give_up(self) -> None:
        """Have nobody wait any longer."""
        quiet, self._quiet, self.is_awaited = self._quiet, None, False
        if quiet is not None:
            quiet.set_result(None)

    def tell_if_quiet(self) -> None:
        """Tell those who wait, if nothing is left."""
        if self.is_empty():
            self.give_up()

    def fail_all(self, scheduler: Scheduler, error: Exception) -> None:
        """End all of it with *error*; those who wait for it take it out."""
        for flow in list(self.flows):
            if not flow.finished.done():
                scheduler.cancel(flow)
                flow.stop(error)
        for future, place in list(self.runs.items()):
            if not future.done():
                if place is not None:
                    scheduler.cancel_run(*place)
                future.set_exception(error)
