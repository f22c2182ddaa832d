"""Waiting for the parent's next frame: awake for a moment where frames follow each other soon."""

from __future__ import annotations

from select import POLLIN, poll
from time import monotonic_ns

TYPE_CHECKING = False  # as in aparallel/__init__.py
if TYPE_CHECKING:
    from _socket import socket

# Who makes one call after the other sends the next one some 80 µs after an outcome, or 200 on a slow machine. A worker
# that sleeps by then costs 30 to 150 µs, until a core has woken up and for the parent that wakes it: as long as the
# rest of such a call.
_AWAKE_NS = 250_000

# A sleeper that was woken so soon would have seen the frame within that time, had it stayed awake.
_SOON_NS = 300_000


class Arrival:
    """Waits until *connection* has something to read, or its end."""

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
