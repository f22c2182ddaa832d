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

    Whoever enters something here takes it out again, whatever happens: with :meth:`end_run` or :meth:`end_flow`.

    Attributes:
        runs: single calls and their places; None for one that has no place yet: it is still being encoded.
        flows: gathers and streams, and the workers that each asked for.
    """

    __slots__ = ("_quiet", "flows", "runs")

    def __init__(self) -> None:
        self.runs: dict[asyncio.Future[Any], tuple[Runs, int] | None] = {}
        self.flows: dict[Flow, int] = {}
        # For those who wait until nothing is left, if anyone does.
        self._quiet: asyncio.Future[None] | None = None

    def end_run(self, future: asyncio.Future[Any]) -> None:
        del self.runs[future]
        if self._quiet is not None:
            self._tell_if_quiet()

    def end_flow(self, flow: Flow) -> None:
        self.flows.pop(flow, None)
        if self._quiet is not None:
            self._tell_if_quiet()

    def is_empty(self) -> bool:
        return not (self.flows or self.runs)

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

    def _tell_if_quiet(self) -> None:
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
