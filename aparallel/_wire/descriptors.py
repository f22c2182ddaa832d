"""File descriptors that go along with a frame, both ends: one at a time, with the frame's first byte (unix(7))."""

from __future__ import annotations

import _socket
import os
import sys

TYPE_CHECKING = False  # as in aparallel/__init__.py
if TYPE_CHECKING:
    from typing import Any

# Windows has none of this; there, starting a worker is refused.
ROOM = _socket.CMSG_SPACE(4) if hasattr(_socket, "CMSG_SPACE") else 0
"""What ``recvmsg`` is to be given for the descriptor."""

RECEIVE_FLAGS: int = getattr(_socket, "MSG_CMSG_CLOEXEC", 0)

# A plain number: socket's is a member of an enum, and to look at a bit of one takes a microsecond.
TRUNCATED: int = getattr(_socket, "MSG_CTRUNC", 0)


def outgoing(fd: int) -> list[tuple[int, int, bytes]]:
    """Return what ``sendmsg`` takes along for *fd*."""
    return [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, fd.to_bytes(4, sys.byteorder))]


def incoming(ancillary: list[tuple[int, int, Any]]) -> int | None:
    """Return the descriptor that came along, closed on exec; None if there is none, or it was lost for want of room."""
    for level, kind, data in ancillary:
        if level == _socket.SOL_SOCKET and kind == _socket.SCM_RIGHTS and len(data) >= 4:
            fd = int.from_bytes(data[:4], sys.byteorder)
            os.set_inheritable(fd, False)  # where there is no flag for it
            return fd
    return None
