"""A worker's outcomes on their way to the parent."""

from __future__ import annotations

from _pickle import dumps
from time import monotonic_ns

from aparallel._wire import descriptors, frames
from aparallel._wire.outbox import CAPACITY, COUNT, FIRST, ROOM, read_plain

TYPE_CHECKING = False  # as in aparallel/__init__.py
if TYPE_CHECKING:
    from _socket import socket

    from aparallel._transfer.lending import Segment
    from aparallel._wire.outbox import Outbox

# Outcomes wait at most this long for company while calls keep finishing.
PATIENCE_NS = 1_000_000

# An outcome larger than this travels in a frame of its own.
_LARGE = 32 * 1024

# The flags of an outcome whose large buffers are in a segment: no outcome is a pickle and a failure.
IN_SEGMENT = frames.FAILURE | frames.PICKLED


class Outgoing:
    """Outcomes on their way to the parent.

    Invariant: an outcome is in the outbox from the moment its call has finished until it is
    in the socket, so the parent finds it in one of them whenever this process dies.
    """

    def __init__(self, connection: socket, outbox: Outbox) -> None:
        self.connection = connection
        self.head, self.lengths, self.data = outbox.head, outbox.lengths, outbox.data
        self.first = 0
        self.count = 0
        self.used = 0
        # Monotonic nanoseconds: the last outcome, the last frame, and from when a frame's calls count as busy.
        self.now = self.flushed_at = self.busy_since = 0

    def put(self, flags: int, data: bytes) -> None:
        """Add one outcome; send what waits if it has waited long enough."""
        size = len(data)
        count = self.count
        end = self.used + size
        if size > _LARGE or count == CAPACITY or end > ROOM or flags == IN_SEGMENT:
            self._make_room(flags, data)
            return
        self.data[self.used : end] = data
        self.lengths[count] = size | flags
        self.used = end
        self.count = self.head[COUNT] = count + 1
        self.now = now = monotonic_ns()
        if now - self.flushed_at > PATIENCE_NS:
            self.flush()

    def _make_room(self, flags: int, data: bytes) -> None:
        self.flush()
        kind = frames.LARGE_FAILURE if flags & frames.FAILURE else frames.LARGE_VALUE
        if flags == IN_SEGMENT:
            kind = frames.VALUE_IN_SEGMENT
        elif len(data) <= _LARGE:
            self.put(flags, data)
            return
        if not flags:  # an int may have a million digits
            data = dumps(read_plain(data, 1)[0], 5)
        self.now = monotonic_ns()
        self.send(kind, data, count=1)
        self.first += 1
        self.head[FIRST] = self.first

    def flush(self) -> None:
        if self.count:
            body = b"".join((self.lengths[: self.count], self.data[: self.used]))
            self.send(frames.OUTCOMES, body, count=self.count)
            # The count falls before the position rises: a reader in between finds nothing, not garbage.
            self.head[COUNT] = 0
            self.first += self.count
            self.head[FIRST] = self.first
            self.count = self.used = 0
        self.flushed_at = monotonic_ns()

    def tell(self, kind: int, news: object, fd: int | None = None) -> None:
        """Send what is no outcome, and a descriptor with its first byte."""
        body = dumps(news, 5)
        frame = frames.TO_PARENT.pack(kind, 0, 0, 0, len(body)) + body
        if fd is None:
            self.connection.sendall(frame)
            return
        sent = self.connection.sendmsg([frame], descriptors.outgoing(fd))
        self.connection.sendall(frame[sent:])

    def introduce(self, segment: Segment) -> None:
        self.tell(frames.SEGMENT, (segment.number, segment.size), segment.fd)

    def send(self, kind: int, body: bytes, count: int = 0) -> None:
        header = frames.TO_PARENT.pack(kind, count, self.first, self.now - self.busy_since, len(body))
        if len(body) <= _LARGE:
            self.connection.sendall(header + body)
        else:
            self.connection.sendall(header)
            self.connection.sendall(body)
        self.now = self.busy_since = monotonic_ns()
