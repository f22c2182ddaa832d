"""One worker process as the pool sees it: frames out, outcomes in, and an exact account of its end."""

from __future__ import annotations

import pickle
import sys
from collections import OrderedDict, deque
from itertools import islice
from typing import TYPE_CHECKING, Any

from aparallel._ground.hop import in_thread, pause
from aparallel._transfer.failures import LOADING, RETURNING, RUNNING, rebuild_failure
from aparallel._transfer.unpickling import unpickle_in_slices
from aparallel._wire import frames
from aparallel._wire.outbox import CLAIMED, RECALLS, are_plain, read_plain
from aparallel.abc import Batch, Exit, Later, Worker, WorkerEvents
from aparallel.errors import AparallelError, UnpicklableCallError, UnpicklableResultError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Sequence

    from aparallel._backends.child import Child

_RECEIVE_BYTES = 256 * 1024
_SEND_PARTS = 64

# Functions that a worker remembers. More would be a leak in a server that makes closures per request.
_MANY_FUNCTIONS = 256

# Pickles up to this size are read on the loop (a fraction of a millisecond); larger ones in a thread.
_ON_LOOP_BYTES = 32 * 1024

# What is larger than this is sent from where it lies, not copied into a frame's pickle.
_OUT_OF_LINE = 16 * 1024

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
    ) -> None:
        self.child = child
        self._loop = loop
        self._events = events
        self._forget = forget
        self._ready = False
        self._error: BaseException | None = None
        self._farewell: asyncio.TimerHandle | None = None
        self._path: list[str] = []

        # Which functions the worker knows, by key, least recently used first, with their numbers there.
        self._known: OrderedDict[Any, int] = OrderedDict()
        self._next_number = 0

        # Calls sent whose outcomes have not arrived, and not been taken back.
        self._unfinished = 0
        # Calls are numbered as they are sent. Those below *_void_to* that the worker has not claimed were taken back.
        self._sent = 0
        self._void_to = 0
        self._settling: asyncio.TimerHandle | None = None
        # Outcomes received so far: the position of the next one in all that this worker gives.
        self._received = 0

        self._unsent: deque[memoryview] = deque()
        self._buffer = bytearray(_RECEIVE_BYTES)
        self._filled = 0
        # A frame too large for the buffer: its header, its body so far.
        self._large: tuple[tuple[Any, ...], bytearray, int] | None = None

        loop.add_reader(child.socket.fileno(), self._on_readable)
        child.watch(loop, self._on_exit)

    # Out

    def set_up(self, setup: dict[str, Any]) -> None:
        """Give the bare child its settings; ``on_ready`` follows."""
        self._path = setup["path"]
        self._write(frames.SETUP, 0, setup, [])

    def send(self, batches: Sequence[Batch]) -> None:
        if sys.path != self._path:
            self._path = sys.path[:]
            self._write(frames.SETUP, 0, {"path": self._path}, [])
        functions: list[tuple[int, bytes | int]] = []
        tail: list[bytes] = []
        contents = []
        count = 0
        for batch in batches:
            number = self._known.get(batch.function.key)
            if number is None:
                number = self._next_number
                self._next_number += 1
                self._known[batch.function.key] = number
                functions.append((number, _in_line(batch.function.blob, tail)))
            else:
                self._known.move_to_end(batch.function.key)
            contents.append((number, batch.payloads))
            count += len(batch.payloads)
        sent = [(number, _all_in_line(payloads, tail)) for number, payloads in contents]
        forget = self._forget_functions(len(batches))
        self._write(frames.CALLS, self._sent, (functions, forget, sent), tail)
        self._sent += count
        self._unfinished += count

    def _forget_functions(self, in_use: int) -> list[int]:
        forget = []
        while len(self._known) > _MANY_FUNCTIONS + in_use:
            forget.append(self._known.popitem(last=False)[1])
        return forget

    def _write(self, kind: int, first: int, control: object, tail: list[bytes]) -> None:
        body = pickle.dumps(control, 5)
        header = frames.TO_WORKER.pack(kind, len(body), sum(map(len, tail)), first)
        idle = not self._unsent
        self._unsent.append(memoryview(header + body))
        self._unsent.extend(map(memoryview, tail))
        if idle:
            self._flush()
            if self._unsent:
                self._loop.add_writer(self.child.socket.fileno(), self._on_writable)

    def _on_writable(self) -> None:
        self._flush()
        if not self._unsent:
            self._loop.remove_writer(self.child.socket.fileno())

    def _flush(self) -> None:
        """Send what the socket takes at once: about 200 KB, which holds the loop for some 50 µs."""
        try:
            sent = self.child.socket.sendmsg(list(islice(self._unsent, _SEND_PARTS)))
        except BlockingIOError:
            return
        except OSError:  # it has died; its exit is about to be told
            self._unsent.clear()
            return
        while sent:
            part = self._unsent[0]
            if len(part) > sent:
                self._unsent[0] = part[sent:]
                return
            sent -= len(part)
            self._unsent.popleft()
        while self._unsent and not self._unsent[0]:
            self._unsent.popleft()

    # In

    def _on_readable(self) -> None:
        try:
            if self._receive():
                return
        except Exception:
            # A defect of ours, or of code that runs while an outcome is read. The loop reports it; the worker's
            # other calls must not wait for ever for outcomes that were lost.
            self.child.kill()
            raise
        # It closed its end: it is exiting, or has closed descriptors that were not its own.
        self._loop.remove_reader(self.child.socket.fileno())
        if self._farewell is None:
            self._farewell = self._loop.call_later(_FAREWELL_SECONDS, self.kill)

    def _receive(self) -> bool:
        """Read once; return False at the end of the stream."""
        try:
            if self._large is not None:
                return self._receive_large()
            with memoryview(self._buffer) as view:
                received = self.child.socket.recv_into(view[self._filled :])
        except BlockingIOError:
            return True
        except OSError:
            return False
        self._filled += received
        self._take_frames()
        return received > 0

    def _receive_large(self) -> bool:
        assert self._large is not None
        header, body, filled = self._large
        with memoryview(body) as view:
            received = self.child.socket.recv_into(view[filled:])
        filled += received
        if filled == len(body):
            self._large = None
            self._take_frame(header, memoryview(body))
        else:
            self._large = header, body, filled
        return received > 0

    def _take_frames(self) -> None:
        start, size = 0, frames.TO_PARENT.size
        data = bytes(memoryview(self._buffer)[: self._filled])
        while self._filled - start >= size:
            header = frames.TO_PARENT.unpack_from(data, start)
            length = header[4]
            begin = start + size
            if begin + length > self._filled:
                if size + length > len(self._buffer):
                    body = bytearray(length)
                    held = self._filled - begin
                    body[:held] = data[begin : self._filled]
                    self._large = header, body, held
                    start = self._filled
                break
            start = begin + length
            self._take_frame(header, memoryview(data)[begin:start])
        rest = self._filled - start
        if start and rest:
            self._buffer[:rest] = data[start : self._filled]
        self._filled = rest

    def _take_frame(self, header: tuple[Any, ...], body: memoryview) -> None:
        kind, count, first, busy, _ = header
        if kind == frames.OUTCOMES:
            lengths = body[: 4 * count].cast("I").tolist()
            self._take_outcomes(first, lengths, body[4 * count :], busy / 1e9)
        elif kind in (frames.LARGE_VALUE, frames.LARGE_FAILURE):
            self._take_large(body, kind == frames.LARGE_FAILURE, busy / 1e9)
        elif kind == frames.READY:
            self._ready = True
            self._events.on_ready()
        else:
            self._error = rebuild_failure(body)[1]
            self.child.kill()

    def _take_outcomes(self, first: int, lengths: list[int], data: memoryview, seconds: float) -> None:
        known = self._received - first  # outcomes that were already read from the outbox
        if known:
            skipped = sum(length & frames.LENGTH for length in lengths[:known])
            lengths, data = lengths[known:], data[skipped:]
            if not lengths:
                return
        failed: list[int] = []
        values = read_plain(data, len(lengths)) if are_plain(lengths) else self._read_each(lengths, data, failed)
        self._tell(values, failed, seconds)

    def _read_each(self, lengths: list[int], data: memoryview, failed: list[int]) -> list[Any]:
        values: list[Any] = []
        start = 0
        for position, length in enumerate(lengths):
            size = length & frames.LENGTH
            piece = data[start : start + size]
            start += size
            if length & frames.FAILURE:
                failed.append(position)
                values.append(_failure(piece))
            elif length & frames.PICKLED:
                try:
                    values.append(pickle.loads(piece))
                except BaseException as error:  # sys.exit in someone's __setstate__ must not end this program
                    failed.append(position)
                    values.append(_unreadable(error))
            else:
                values.append(read_plain(piece, 1)[0])
        return values

    def _take_large(self, body: memoryview, failure: bool, seconds: float) -> None:
        if failure:
            self._tell([_failure(body)], [0], seconds)
        elif len(body) <= _ON_LOOP_BYTES:
            failed: list[int] = []
            self._tell(self._read_each([len(body) | frames.PICKLED], body, failed), failed, seconds)
        else:
            self._tell([Later(lambda: _read_in_thread(body))], [], seconds)

    def _tell(self, values: list[Any], failed: list[int], seconds: float) -> None:
        self._received += len(values)
        self._unfinished -= len(values)
        self._events.on_outcomes(values, failed, seconds)

    # The calls it has

    def recall(self) -> None:
        if self._settling is not None:
            return
        outbox = self.child.outbox
        if outbox is None or not self._unclaimed():
            self._events.on_recalled(0)
            return
        outbox.head[RECALLS] += 1
        self._settling = self._loop.call_later(frames.SETTLE_SECONDS, self._settle)

    def _settle(self) -> None:
        """Every look at the count of recalls has seen it by now, so what is unclaimed will stay so."""
        self._settling = None
        taken = self._unclaimed()
        self._void_to = self._sent
        self._unfinished -= taken
        self._write(frames.VERDICT, 0, self._sent - taken, [])
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
        lengths, data = outbox.read_from(self._received)
        if lengths:
            self._take_outcomes(self._received, lengths, memoryview(data), 0.0)

    def running_since(self) -> float | None:
        outbox = self.child.outbox
        if outbox is None or self._unfinished <= self._unclaimed():
            return None
        return outbox.started_ns / 1e9

    # Its end

    def kill(self) -> None:
        self.child.kill()

    def retire(self) -> None:
        if not self._ready:
            self.child.kill()
            return
        import socket

        try:
            self.child.socket.shutdown(socket.SHUT_WR)
        except OSError:  # it has died already
            return
        if self._farewell is None:
            self._farewell = self._loop.call_later(_FAREWELL_SECONDS, self.kill)

    def _on_exit(self) -> None:
        """It is dead: read what it left in the socket and in the outbox, then count what never started."""
        fd = self.child.socket.fileno()
        self._loop.remove_reader(fd)
        self._loop.remove_writer(fd)
        if self._farewell is not None:
            self._farewell.cancel()
        while True:
            before = self._filled, self._received, self._large
            if not self._receive() or before == (self._filled, self._received, self._large):
                break
        self.look()
        unstarted = self._unclaimed()
        if self._settling is not None:
            self._settling.cancel()
        exitcode, signal = self.child.reap()
        self._forget(self)
        self._events.on_exit(Exit(unstarted, exitcode, signal, self._ready, self._error))


def _in_line(blob: bytes, tail: list[bytes]) -> bytes | int:
    if len(blob) <= _OUT_OF_LINE:
        return blob
    tail.append(blob)
    return len(blob)


def _all_in_line(payloads: list[Any], tail: list[bytes]) -> list[Any]:
    if max(map(len, payloads)) <= _OUT_OF_LINE:  # tuples of arguments have a length too, a small one
        return payloads
    return [_in_line(payload, tail) if type(payload) is bytes else payload for payload in payloads]


def _failure(data: memoryview) -> BaseException:
    try:
        stage, error = rebuild_failure(data)
    except Exception as reason:  # an error that refuses whatever is done to it
        return _unreadable(reason)
    if stage == RUNNING:
        return error
    wrapped: AparallelError
    if stage == LOADING:
        wrapped = UnpicklableCallError(
            f"A call could not be rebuilt in its worker: {type(error).__name__}: {error}\n"
            f"Workers import what they need by name, with this program's sys.path; what they cannot import can travel "
            f"by value (cloudpickle.register_pickle_by_value)."
        )
    else:
        assert stage == RETURNING
        wrapped = UnpicklableResultError(
            f"A call ran, but its result could not be pickled: {type(error).__name__}: {error}\n"
            f"Return plain data or picklable objects, or use backend='thread'."
        )
    wrapped.__cause__ = error
    return wrapped


def _unreadable(error: BaseException) -> UnpicklableResultError:
    wrapped = UnpicklableResultError(
        f"A call ran, but its result could not be rebuilt here: {type(error).__name__}: {error}\n"
        f"Return plain data or objects whose pickles can be read in this process."
    )
    wrapped.__cause__ = error
    return wrapped


async def _read_in_thread(data: memoryview) -> Any:
    try:
        return await in_thread(_read_guarded, data)
    except Exception as error:
        raise _unreadable(error.__cause__ or error) from error.__cause__


def _read_guarded(data: memoryview) -> Any:
    try:
        return unpickle_in_slices(data, pause)
    except BaseException as error:  # as in _read_each; a bare SystemExit would also end the thread
        raise RuntimeError from error
