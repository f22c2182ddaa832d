"""A worker's outcomes on their way to the parent."""

from __future__ import annotations

from _pickle import dumps
from time import monotonic_ns

from aparallel._wire import descriptors, frames
from aparallel._wire.outbox import COUNT, FIRST, STARTED, VERSION, marshalled

TYPE_CHECKING = False  # as in aparallel/__init__.py
if TYPE_CHECKING:
    from _socket import socket
    from collections.abc import Sequence
    from typing import Any

    from aparallel._transfer.segments import Segment
    from aparallel._wire.outbox import Outbox

# Outcomes wait at most this long for company while calls keep finishing.
PATIENCE_NS = 1_000_000

# An outcome larger than this goes into the ring, or travels in a frame of its own.
LARGE_BYTES = 32 * 1024

# What an outcome is: a plain value (see ``_wire/outbox.py``), the pickle of one, that in pieces, which took a moment or
# long to make, the pickle of one whose large buffers are in a segment, or the pickled description of an exception.
PLAIN, PICKLED, LARGE, SLOW, IN_SEGMENT, FAILURE = range(6)


class Outgoing:
    """Outcomes on their way to the parent. Every moment is in monotonic nanoseconds.

    Invariant: an outcome is in the outbox from the moment its call has finished until it is
    in the socket, so the parent finds it in one of them whenever this process dies.

    Attributes:
        count: outcomes in the outbox.
        flushed_at: when all that waited there had been sent, last.
    """

    def __init__(self, connection: socket, outbox: Outbox) -> None:
        self.connection = connection
        self.outbox = outbox
        self.head = outbox.head
        self.first = 0
        self.count = 0
        self.flushed_at = 0
        self._is_plain = True
        self._ring: Any = outbox.to_parent
        # From when the calls of the next frame count as busy.
        self._busy_since = 0

    def begin(self) -> int:
        """Calls follow; return the moment, as all do that take outcomes."""
        self._busy_since = now = monotonic_ns()
        return now

    def put(self, kind: int, outcome: Any) -> int:
        """Add one outcome; send what waits if it has waited long enough."""
        if kind == PLAIN:
            data = marshalled(outcome, VERSION)
            if len(data) > LARGE_BYTES:  # an int may have a million digits
                return self._send_large(frames.LARGE_VALUE, [dumps(outcome, 5)])
        elif kind == IN_SEGMENT:
            return self._send_large(frames.VALUE_IN_SEGMENT, [outcome])
        elif kind in (LARGE, SLOW):
            size = sum(map(len, outcome))
            position = None if self._ring is None else self._ring.put(outcome, size)
            if position is None:
                return self._send_large(frames.LARGE_VALUE, outcome)
            if kind == SLOW:
                return self._send_large(frames.VALUE_IN_RING, [dumps((position, size), 5)])
            data = marshalled((position, size), VERSION)
            self._is_plain = False
        elif len(outcome) > LARGE_BYTES:
            return self._send_large(frames.LARGE_FAILURE if kind == FAILURE else frames.LARGE_VALUE, [outcome])
        else:
            data = marshalled((outcome, kind == FAILURE), VERSION)
            self._is_plain = False
        try:
            self.outbox.write(data)
        except ValueError:  # there is no room
            self.flush(self.head[STARTED])
            self._is_plain = kind == PLAIN
            self.outbox.write(data)
        self.count = self.head[COUNT] = self.count + 1
        now = monotonic_ns()
        is_due = now - self.flushed_at > PATIENCE_NS or (kind == LARGE and self._ring.is_filling())
        return self.flush(now) if is_due else now

    def _send_large(self, kind: int, pieces: Sequence[bytes | memoryview]) -> int:
        now, started = monotonic_ns(), self.head[STARTED]
        self.flush(started)
        self.send(kind, pieces, 1, now - started)
        self.first += 1
        self.head[FIRST] = self.first
        return self.begin()

    def flush(self, until: int) -> int:
        """Send what waits, all of which had come at the moment *until*."""
        if self.count:
            kind = frames.PLAIN_OUTCOMES if self._is_plain else frames.OUTCOMES
            self.send(kind, [self.outbox.written()], self.count, until - self._busy_since)
            # The count falls before the position rises: a reader in between finds nothing, not garbage.
            self.head[COUNT] = 0
            self.first += self.count
            self.head[FIRST] = self.first
            self.outbox.clear()
            self.count = 0
            self._is_plain = True
            self._busy_since = monotonic_ns()
        self.flushed_at = now = monotonic_ns()
        return now

    def introduce(self, segment: Segment) -> None:
        """Tell the parent of a segment; its descriptors go along with the first byte."""
        body = dumps((segment.number, segment.parts.sizes), 5)
        frame = frames.TO_PARENT.pack(frames.SEGMENT, 0, self.first, 0, len(body)) + body
        sent = self.connection.sendmsg([frame], descriptors.outgoing(segment.parts.fds))
        self.connection.sendall(frame[sent:])

    def send(self, kind: int, pieces: Sequence[bytes | memoryview], count: int = 0, busy: int = 0) -> None:
        """Send a frame, which has *count* outcomes that took *busy* nanoseconds."""
        size = sum(map(len, pieces))
        header = frames.TO_PARENT.pack(kind, count, self.first, busy, size)
        if size <= LARGE_BYTES:
            self.connection.sendall(b"".join((header, *pieces)))
            return
        self.connection.sendall(header)
        for piece in pieces:
            self.connection.sendall(piece)
