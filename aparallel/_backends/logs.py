"""Workers' log records and warnings, as a pool's loop sees them: noticed, never waited for here.

Outcomes wait for the records that were made before them: who awaits a call finds its records handled. A
ticket stands for such records. It goes through the reading and the handling thread behind them; when it
comes back, all before it is handled.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from typing import TYPE_CHECKING, Any

from aparallel._backends.log_source import Source
from aparallel._wire.outbox import LOGGED

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextvars import ContextVar

    from aparallel._backends.child import Child
    from aparallel._backends.log_threads import Handling, LogReader
    from aparallel._wire.outbox import Outbox

# Outcomes wait so long for handlers. Nobody waits for handlers that are known to be later than that.
_PATIENCE_SECONDS = 0.1

# At its end, a pool waits for handlers as long as they handle a record now and then.
_STUCK_SECONDS = 5.0
_FAREWELL_SECONDS = 1.0


class LogRelay:
    """The records of one pool's workers. Its threads start with the first record and end with the pool."""

    def __init__(self, variables: Mapping[bytes, ContextVar[Any]]) -> None:
        self._variables = variables
        self._loop: asyncio.AbstractEventLoop | None = None
        self._reader: LogReader | None = None
        self._records: set[WorkerRecords] = set()
        # Tickets are numbered from 1, and come back in this order.
        self._issued = 0
        self._issued_at = 0.0
        self._returned = 0
        # The newest ticket for which somebody has waited in vain.
        self._late = 0
        # Who waits, by ticket.
        self._waiting: dict[int, list[asyncio.Future[None]]] = {}

    def attach(self, loop: asyncio.AbstractEventLoop, child: Child) -> WorkerRecords:
        """Take over the pipe of a worker."""
        fd = child.take_logs()
        assert fd is not None
        assert child.outbox is not None
        self._loop = loop
        records = WorkerRecords(self, loop, Source(fd), child.outbox)
        self._records.add(records)
        return records

    @property
    def is_unsettled(self) -> bool:
        """Whether records are to be handled before outcomes that have been told."""
        return self._returned < self._issued and self._late <= self._returned

    async def settle(self) -> None:
        """Wait until they are handled: at most 0.1 s after their outcomes came. Cancellation: at once."""
        if self._loop is None or not self.is_unsettled:
            return
        ticket = self._issued
        timer = self._loop.call_at(self._issued_at + _PATIENCE_SECONDS, self._give_up, ticket)
        try:
            await self._wait_for(ticket)
        finally:
            timer.cancel()

    def _wait_for(self, ticket: int) -> asyncio.Future[None]:
        assert self._loop is not None
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._waiting.setdefault(ticket, []).append(waiter)
        return waiter

    def _give_up(self, ticket: int) -> None:
        self._late = max(self._late, ticket)
        self._release(ticket)

    def _on_ticket(self, ticket: int) -> None:
        """In the handling thread."""
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # the loop has closed: nobody waits
            self._loop.call_soon_threadsafe(self._take_back, ticket)

    def _take_back(self, ticket: int) -> None:
        self._returned = ticket
        self._release(ticket)

    def _release(self, ticket: int) -> None:
        for number in [number for number in self._waiting if number <= ticket]:
            for waiter in self._waiting.pop(number):
                if not waiter.done():
                    waiter.set_result(None)

    def issue(self) -> int:
        assert self._loop is not None
        self._issued += 1
        self._issued_at = self._loop.time()
        return self._issued

    def reader(self) -> LogReader:
        """Return what reads, started if it does not run.

        Raises:
            OSError, RuntimeError: there is no descriptor for it, or no thread.
        """
        if self._reader is None:
            from aparallel._backends.log_threads import LogReader

            reader = LogReader(self._new_handling())
            reader.start()
            self._reader = reader
        return self._reader

    def _new_handling(self) -> Handling:
        # Imported now: most pools never get here, and it would add to the time of a script's first result.
        from aparallel._backends.log_records import RecordHandler
        from aparallel._backends.log_threads import Handling

        return Handling(RecordHandler(self._variables).handle, self._on_ticket)

    def discard(self, records: WorkerRecords) -> None:
        self._records.discard(records)

    async def aclose(self) -> None:
        """Have everything handled, then end the threads. All workers have ended.

        Handlers that are stuck for five seconds are given up, and a line on stderr says so: their
        thread ends when they do.
        """
        reader, self._reader = self._reader, None
        if reader is None:
            return
        last = self.issue()
        ended = self._wait_for(last)
        reader.stop(last)
        count = reader.handling.count
        while not (await asyncio.wait([ended], timeout=_STUCK_SECONDS))[0]:
            if reader.handling.count == count:
                _report_stuck(reader.handling)
                return
            count = reader.handling.count
        reader.join()  # they have done their last thing

    def close_now(self) -> None:
        """The same without a loop, and with less patience."""
        reader, self._reader = self._reader, None
        left = [records for records in self._records if records.source.is_open]  # none in a forked copy of us
        self._records.clear()
        if reader is None:
            # What workers wrote a moment ago, before the loop had a chance to see it.
            for records in left:
                while data := records.source.take():
                    self._new_handling().handle_all(records.source, data)
                records.source.close()
            return
        for records in left:
            if not records.is_adopted:
                reader.add(records.source)
        reader.stop(self._issued + 1)
        reader.join(_FAREWELL_SECONDS)


class WorkerRecords:
    """The records of one worker."""

    def __init__(self, relay: LogRelay, loop: asyncio.AbstractEventLoop, source: Source, outbox: Outbox) -> None:
        self._relay = relay
        self._loop = loop
        self.source = source
        self._head = outbox.head
        # What the worker's outbox said when we looked.
        self._logged = 0
        self.is_adopted = False
        loop.add_reader(source.fd, self._on_first)

    def _on_first(self) -> None:
        """Records come, or the worker has ended: the threads do the rest."""
        self._loop.remove_reader(self.source.fd)
        if self.source.has_more():
            self._adopt()

    def _adopt(self) -> bool:
        """Have the reader read it; return whether it does. If it cannot be had, what comes stays in the pipe."""
        if not self.is_adopted:
            try:
                reader = self._relay.reader()
            except (OSError, RuntimeError):
                return False
            self._loop.remove_reader(self.source.fd)
            self.is_adopted = True
            self.source.enlarge()
            reader.add(self.source)
        return True

    def notice(self) -> None:
        """Outcomes have come: if records were written since the last time, they were written before these."""
        logged = self._head[LOGGED]
        if logged != self._logged and self._adopt():
            self._logged = logged
            self._relay.reader().reach(self.source, self._relay.issue())

    def finish(self) -> None:
        """The worker is dead, and so are its children. What it left in the pipe is handled, if it can be read."""
        self._relay.discard(self)
        if not self.is_adopted:
            self._loop.remove_reader(self.source.fd)
            if not self.source.has_more() or not self._adopt():
                self.source.close()
                return
        self._relay.reader().finish(self.source, self._relay.issue())


def _report_stuck(handling: Handling) -> None:
    left = handling.items.qsize()
    if sys.stderr is not None:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(
                f"aparallel: a pool has closed, but a logging handler has not returned for {_STUCK_SECONDS:g} s, with "
                f"{left} blocks of workers' log records waiting behind it.\n"
            )
