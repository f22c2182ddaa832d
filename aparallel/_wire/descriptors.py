"""File descriptors that go along with a frame, both ends: all of them with the frame's first byte (unix(7))."""

from __future__ import annotations

import _socket
import os
import sys

TYPE_CHECKING = False  # as in aparallel/__init__.py
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

MOST = 2
"""So many go along with one frame at most."""

# Windows has none of this; there, starting a worker is refused.
ROOM = _socket.CMSG_SPACE(4 * MOST) if hasattr(_socket, "CMSG_SPACE") else 0
"""What ``recvmsg`` is to be given for the descriptors."""

RECEIVE_FLAGS: int = getattr(_socket, "MSG_CMSG_CLOEXEC", 0)

# A plain number: socket's is a member of an enum, and to look at a bit of one takes a microsecond.
TRUNCATED: int = getattr(_socket, "MSG_CTRUNC", 0)


def outgoing(fds: Sequence[int]) -> list[tuple[int, int, bytes]]:
    """Return what ``sendmsg`` takes along for *fds*."""
    return [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, b"".join(fd.to_bytes(4, sys.byteorder) for fd in fds))]


def incoming(ancillary: list[tuple[int, int, Any]]) -> list[int]:
    """Return the descriptors that came along, closed on exec: fewer than were sent if some found no room."""
    fds = []
    for level, kind, data in ancillary:
        if level == _socket.SOL_SOCKET and kind == _socket.SCM_RIGHTS:
            for start in range(0, len(data) - 3, 4):
                fds.append(int.from_bytes(data[start : start + 4], sys.byteorder))
                os.set_inheritable(fds[-1], False)  # where there is no flag for it
    return fds
