"""One worker process as the pool sees it: frames out, outcomes in, and an exact account of its end."""

from __future__ import annotations

import pickle
import sys
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, cast

from aparallel._backends import log_settings
from aparallel._backends.channel import Channel
from aparallel._backends.loans import Loans
from aparallel._backends.reading import Reader, read_failure_later, read_start_failure, read_value
from aparallel._transfer.out_of_band import NEVER
from aparallel._transfer.shipment import Shipment
from aparallel._wire import frames
from aparallel._wire.outbox import CLAIMED, RECALLS, STARTED, read
from aparallel.abc import Batch, Exit, Worker, WorkerEvents
from aparallel.errors import SharedMemoryError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Sequence

    from aparallel._backends.channel import Piece
    from aparallel._backends.child import Child
    from aparallel._backends.logs import LogRelay, WorkerRecords
    from aparallel._transfer.functions import PickledFunction
    from aparallel._transfer.segments import Segment
    from aparallel.abc import Sharing

# Functions that a worker remembers. More would be a leak in a server that makes closures per request.
_MANY_FUNCTIONS = 256

# A worker that was asked to leave has this long for its exit handlers.
_FAREWELL_SECONDS = 2.0


class ProcessWorker(Worker):
    """A worker process. See ``_wire/frames.py`` for what is said."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        child: Child,
        events: WorkerEvents,
        forget: Callable[[ProcessWorker], object],
        on_memory: Callable[[], object],
        on_shortage: Callable[[ProcessWorker], object],
        relay: LogRelay | None,
    ) -> None:
        self.child = child
        self._loop = loop
        self._events = events
        self._forget = forget
        self._on_shortage = on_shortage
        self._ready = False
        self._error: BaseException | None = None
        self._farewell: asyncio.TimerHandle | None = None
        self._path: list[str] = []
        self._records: WorkerRecords | None = None
        # The levels and filters that the worker has.
        self._log_settings: object = None
        child.watch(loop, self._on_exit)  # before anything looks at its descriptors: it may be ended there
        if relay is not None:
            self._records = relay.attach(loop, child)

        # Which functions the worker knows, by key, least recently used first, with their numbers there.
        self._known: OrderedDict[Any, int] = OrderedDict()
        self._next_number = 0

        # What it was given before it was ready: it is sent then. Until then, to take it back takes no
        # handshake, and who is ready first has all that there is.
        self._early: list[Batch] = []
        # Calls sent whose outcomes have not arrived, and not been taken back.
        self._unfinished = 0
        # Calls are numbered as they are sent. Those below *_void_to* that the worker has not claimed were taken back.
        self._sent = 0
        self._void_to = 0
        self._settling: asyncio.TimerHandle | None = None
        # Outcomes received so far: the position of the next one in all that this worker gives.
        self._received = 0

        assert child.outbox is not None
        # Where large pickles go.
        self._ring = child.outbox.to_worker
        self._reader = Reader(child.outbox.to_parent)
        self._channel = Channel(loop, child.socket, self._take_frame, self._on_end, child.kill)
        # The shared memory between us.
        self.loans = Loans(loop, self._channel, on_memory)

    # Out

    def set_up(self, setup: dict[str, Any], initializer: Sequence[Piece] = ()) -> None:
        """Give the bare child its settings, and the pickle of an initializer; ``on_ready`` follows."""
        self._channel.write(frames.SETUP, setup | self._changing(), tail=initializer)

    def give_up(self, error: BaseException | None) -> None:
        """It is of no use, for what *error* says."""
        self._error = error
        self.child.kill()

    def _changing(self) -> dict[str, Any]:
        """Settings that are sent again when they have changed."""
        self._path = sys.path[:]
        if self._records is not None:
            self._log_settings = log_settings.current()
        return {"path": self._path, "logs": self._log_settings}

    def _has_changed(self) -> bool:
        return sys.path != self._path or (
            self._records is not None and log_settings.current() is not self._log_settings
        )

    def send(self, batches: Sequence[Batch]) -> None:
        if not self._ready:
            self._early.extend(batches)
            return
        if self._has_changed():
            self._channel.write(frames.SETUP, self._changing())
        functions: list[tuple[int, bytes | int]] = []
        tail: list[Piece] = []
        contents = []
        count = 0
        for batch in batches:
            number = self._known.get(batch.function.key)
            if number is None:
                number = self._next_number
                self._next_number += 1
                self._known[batch.function.key] = number
                functions.append((number, _in_line(cast("PickledFunction", batch.function).blob, tail)))
            else:
                self._known.move_to_end(batch.function.key)
            sharing: Sharing = batch.owner.sharing
            largest = NEVER if sharing.max_nbytes is None else sharing.max_nbytes
            contents.append((number, batch.payloads, (largest, sharing.temp_folder)))
            count += len(batch.payloads)
        references: dict[Segment, int] = {}
        if self._ring is not None and not self._unfinished:  # nobody takes what calls have there that were taken back
            self._ring.forget()
        sent = [(number, self._packed(payloads, tail, references), results) for number, payloads, results in contents]
        forget = self._forget_functions(len(batches))
        lent = self.loans.lend(references)
        self._channel.write(frames.CALLS, (functions, forget, sent, lent), first=self._sent, tail=tail)
        self._sent += count
        self._unfinished += count

    def _packed(self, payloads: list[Any], tail: list[Piece], references: dict[Segment, int]) -> list[Any]:
        """Have what is large leave the frame's pickle, and count references to shared memory."""
        if Shipment not in set(map(type, payloads)):
            return payloads
        return [
            [self._placed(payload, tail), _counted(payload, references)] if isinstance(payload, Shipment) else payload
            for payload in payloads
        ]

    def _placed(self, shipment: Shipment, tail: list[Piece]) -> bytes | int | tuple[int, int]:
        """Put a pickle into the ring or, if that is full, the tail; return what tells where it is."""
        if shipment.size <= frames.OUT_OF_LINE:
            return b"".join(shipment.pieces)
        ring = self._ring
        if ring is not None:
            position = ring.put(shipment.pieces, shipment.size)
            if position is not None:
                return position, shipment.size
        tail.extend(shipment.pieces)
        return shipment.size

    def _forget_functions(self, in_use: int) -> list[int]:
        forget = []
        while len(self._known) > _MANY_FUNCTIONS + in_use:
            forget.append(self._known.popitem(last=False)[1])
        return forget

    # In

    def _on_end(self) -> None:
        """It closed its end: it is exiting, or has closed descriptors that were not its own."""
        self._plan_farewell()

    def _take_frame(self, header: tuple[Any, ...], body: memoryview) -> None:
        kind, count, first, busy, _ = header
        if kind in (frames.PLAIN_OUTCOMES, frames.OUTCOMES):
            self._take_outcomes(first, read(body, count), busy / 1e9, are_plain=kind == frames.PLAIN_OUTCOMES)
        elif kind in (frames.LARGE_VALUE, frames.LARGE_FAILURE):
            told = read_failure_later(body) if kind == frames.LARGE_FAILURE else read_value(body)
            self._tell(*told, busy / 1e9)
        elif kind == frames.VALUE_IN_RING:
            self._tell(*self._reader.take_slow(*pickle.loads(body)), busy / 1e9)
        elif kind == frames.VALUE_IN_SEGMENT:
            self._take_in_segment(body, busy / 1e9)
        elif kind == frames.SEGMENT:
            self.loans.introduce(*pickle.loads(body))
        elif kind == frames.MEMORY:
            self.loans.update(*pickle.loads(body))
        elif kind == frames.SHORTAGE:
            self._on_shortage(self)
        elif kind == frames.READY:
            self._notice_records()
            self._ready = True
            early, self._early = self._early, []
            if early:
                self.send(early)
            self._events.on_ready()
        else:
            self._notice_records()
            self._error = read_start_failure(body)
            self.child.kill()

    def _take_outcomes(self, first: int, outcomes: list[Any], seconds: float, *, are_plain: bool) -> None:
        known = self._received - first  # outcomes that were already read from the outbox
        if known:
            outcomes = outcomes[known:]
            if not outcomes:
                return
        if are_plain:
            self._tell(outcomes, [], seconds)
            return
        told = self._reader.read(outcomes)
        for values, failed in told:
            self._tell(values, failed, seconds / len(told))

    def _take_in_segment(self, body: memoryview, seconds: float) -> None:
        number, spans, data = pickle.loads(body)
        try:
            loan = self.loans.borrow(number)
        except SharedMemoryError as error:
            self._tell([error], [0], seconds)
            return

        def buffers() -> list[memoryview]:
            return [loan.view(offset, size, "r+") for offset, size in spans]

        self._tell(*read_value(data, buffers), seconds)

    def _notice_records(self) -> None:
        """Log records that were made before what has just come are to be handled before it is told further up."""
        if self._records is not None:
            self._records.notice()

    def _tell(self, values: list[Any], failed: list[int], seconds: float) -> None:
        self._notice_records()
        self._received += len(values)
        self._unfinished -= len(values)
        self._events.on_outcomes(values, failed, seconds)

    # The calls it has

    def recall(self) -> None:
        if self._settling is not None:
            return
        outbox = self.child.outbox
        if outbox is None or not self._ready or not self._unclaimed():
            early, self._early = self._early, []
            self._events.on_recalled(sum(map(len, early)))
            return
        outbox.head[RECALLS] += 1
        self._settling = self._loop.call_later(frames.SETTLE_SECONDS, self._settle)

    def _settle(self) -> None:
        """Every look at the count of recalls has seen it by now, so what is unclaimed will stay so."""
        self._settling = None
        taken = self._unclaimed()
        self._void_to = self._sent
        self._unfinished -= taken
        self._channel.write(frames.VERDICT, self._sent - taken)
        self._events.on_recalled(taken)

    def _unclaimed(self) -> int:
        """How many of the calls sent the worker has neither claimed nor lost."""
        outbox = self.child.outbox
        assert outbox is not None
        return self._sent - max(outbox.head[CLAIMED], self._void_to)

    def look(self) -> None:
        outbox = self.child.outbox
        if outbox is None:
            return
        try:
            outcomes = outbox.read_from(self._received)
        except (EOFError, TypeError, ValueError):  # a call has written where it should not have, as a crash may
            self.child.kill()
            return
        if outcomes:
            self._take_outcomes(self._received, outcomes, 0.0, are_plain=False)

    def running_since(self) -> float | None:
        outbox = self.child.outbox
        if outbox is None or self._unfinished <= self._unclaimed():
            return None
        return min(outbox.head[STARTED] / 1e9, time.monotonic())

    # Its end

    def kill(self) -> None:
        self.child.kill()

    def retire(self) -> None:
        if not self._ready:
            self.child.kill()
            return
        try:
            self._channel.hang_up()
        except OSError:  # it has died already
            return
        self._plan_farewell()

    def _plan_farewell(self) -> None:
        if self._farewell is None:
            self._farewell = self._loop.call_later(_FAREWELL_SECONDS, self.kill)

    def is_idle(self) -> bool:
        """Whether it has no calls."""
        return not (self._unfinished or self._early)

    def _on_exit(self) -> None:
        """It is dead: read what it left in the socket and in the outbox, then count what never started."""
        if self._farewell is not None:
            self._farewell.cancel()
        self._channel.read_rest()
        self._channel.close()
        self.look()
        unclaimed = self._unclaimed()
        if not 0 <= unclaimed <= self._unfinished:  # the crash wrote over it: any of them may have started
            unclaimed = 0
        unstarted = unclaimed + sum(map(len, self._early))
        self.loans.close()
        if self._settling is not None:
            self._settling.cancel()
        exitcode, signal = self.child.reap()
        if self._records is not None:
            self._records.finish()
        self._forget(self)
        self._events.on_exit(Exit(unstarted, exitcode, signal, self._ready, self._error))


def _in_line(blob: bytes, tail: list[Piece]) -> bytes | int:
    if len(blob) <= frames.OUT_OF_LINE:
        return blob
    tail.append(blob)
    return len(blob)


def _counted(shipment: Shipment, references: dict[Segment, int]) -> list[tuple[int, int, int, Any]]:
    """Count a call's references to shared memory; return them."""
    parts = []
    for content, mode in shipment.parts:
        segment = content.segment
        references[segment] = references.get(segment, 0) + 1
        parts.append((segment.number, content.offset, content.nbytes, mode))
    return parts
