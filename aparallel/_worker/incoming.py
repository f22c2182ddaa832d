"""A worker's frames on their way in."""

from __future__ import annotations

from _pickle import loads
from _socket import MSG_WAITALL
from collections import deque
from select import POLLIN, poll
from time import monotonic_ns

from aparallel._wire import descriptors, frames

TYPE_CHECKING = False  # as in aparallel/__init__.py
if TYPE_CHECKING:
    from _socket import socket
    from collections.abc import Callable
    from typing import Any

    from aparallel._transfer.borrowing import Loan

_HEADER_FLAGS = MSG_WAITALL | descriptors.RECEIVE_FLAGS

# Later than any call.
_NEVER = 1 << 62

# Who makes one call after the other sends the next one some 80 µs after an outcome, or 200 on a slow machine. A worker
# that sleeps by then costs 30 to 150 µs, until a core has woken up and for the parent that wakes it: as long as the
# rest of such a call.
_AWAKE_NS = 250_000

# A sleeper that was woken so soon would have seen the frame within that time, had it stayed awake.
_SOON_NS = 300_000


class Frame:
    """What the parent has sent: see ``_wire/frames.py``.

    Attributes:
        tail: what of it was not taken yet.
        loans: the shared memory that its calls refer to, until they are done.
    """

    __slots__ = ("control", "first", "kind", "loans", "tail")

    def __init__(self, kind: int, first: int, control: Any, tail: memoryview) -> None:
        self.kind = kind
        self.first = first
        self.control = control
        self.tail = tail
        self.loans: dict[int, Loan] = {}

    def take(self, size: int) -> memoryview:
        """Return the next bytes of the tail."""
        taken, self.tail = self.tail[:size], self.tail[size:]
        return taken


class Incoming:
    """Frames on their way in, in the order sent. Those that come before one that is awaited wait for their turn.

    Args:
        take_news: is given what is told of shared memory, which waits for no turn: kind, content and descriptors.
        learn: takes in the functions of a frame whose calls were taken back.

    Attributes:
        verdicts: how many have come. A verdict says which calls the parent has taken back.
        void_from: the lowest call that was taken back since the last frame was given out.
    """

    def __init__(
        self,
        connection: socket,
        take_news: Callable[[int, Any, list[int]], object],
        learn: Callable[[Frame], object],
    ) -> None:
        self._connection = connection
        self._arrival = Arrival(connection)
        self._take_news = take_news
        self._learn = learn
        self._waiting: deque[Frame] = deque()
        self.verdicts = 0
        self.void_from = _NEVER

    def next(self) -> Frame | None:
        """Return the next frame; None when the parent has hung up."""
        self.void_from = _NEVER
        return self._waiting.popleft() if self._waiting else self._read()

    def read_ahead(self) -> int:
        """Read a frame though the calls of another one are not done; return its kind.

        Raises:
            ConnectionResetError: the parent has hung up.
        """
        frame = self._read()
        if frame is None:
            raise ConnectionResetError
        if frame.kind == frames.VERDICT:
            self.void_from = min(self.void_from, frame.control)
            # The parent has taken back the calls of all frames that came before and wait here. Their functions stay:
            # it counts them as sent.
            for _ in range(len(self._waiting)):
                before = self._waiting.popleft()
                if before.kind == frames.CALLS:
                    self._learn(before)
                else:
                    self._waiting.append(before)
        elif frame.kind != frames.RELIEVED:
            self._waiting.append(frame)
        return frame.kind

    def _read(self) -> Frame | None:
        while True:
            header = bytearray(frames.TO_WORKER.size)
            self._arrival.wait()
            received, ancillary, _, _ = self._connection.recvmsg_into([header], descriptors.ROOM, _HEADER_FLAGS)
            if not received or not self._receive_into(memoryview(header)[received:]):
                return None
            kind, control_size, tail_size, first = frames.TO_WORKER.unpack(header)
            control = loads(self._receive(control_size))
            if kind not in (frames.SEGMENT, frames.MEMORY):
                break
            self._take_news(kind, control, descriptors.incoming(ancillary))
        if kind == frames.VERDICT:
            self.verdicts += 1
        return Frame(kind, first, control, memoryview(self._receive(tail_size)))

    def _receive(self, size: int) -> bytearray:
        data = bytearray(size)
        if not self._receive_into(data):
            raise ConnectionResetError
        return data

    def _receive_into(self, data: bytearray | memoryview) -> bool:
        view = memoryview(data)
        while view:
            received = self._connection.recv_into(view, len(view), MSG_WAITALL)
            if not received:
                return False
            view = view[received:]
        return True


class Arrival:
    """Waits until *connection* has something to read, or its end: awake for a moment where frames come soon."""

    def __init__(self, connection: socket) -> None:
        self._poll = poll()
        self._poll.register(connection, POLLIN)
        # The last frame came soon, so the next one may. While they are rare nothing is spent on them.
        self._is_soon = False

    def wait(self) -> None:
        begun = monotonic_ns()
        while not self._poll.poll(0):  # each look lets go of the GIL: threads of the user's run on
            if not self._is_soon:
                self._poll.poll()
                self._is_soon = monotonic_ns() - begun < _SOON_NS
                return
            self._is_soon = monotonic_ns() - begun < _AWAKE_NS
