"""A worker's socket: frames out and in, on the loop and without waiting. ``_wire/frames.py`` has their format."""

from __future__ import annotations

import mmap
import os
import pickle
import socket
from collections import deque
from itertools import islice
from time import monotonic
from typing import TYPE_CHECKING

from aparallel._wire import descriptors, frames

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Sequence

    Header = tuple[int, int, int, int, int]
    Piece = bytes | memoryview

_RECEIVE_BYTES = 256 * 1024
_SEND_PARTS = 64

# To clear more memory than this would hold the loop.
_CLEARED_BYTES = 4 * 1024 * 1024
# From this size on memory comes straight from the kernel, which has huge pages for it: to fill it takes half the time.
# Below, memory that is used again is the faster one.
_MAPPED_BYTES = 32 * 1024 * 1024

# Frames are taken in for so long, then the loop has its turn: each may tell of megabytes in a ring.
_AT_ONCE_SECONDS = 0.0005


class Channel:
    """One worker's frames.

    Args:
        sock: the parent's end, non-blocking. It stays its owner's to close.
        on_frame: called with each frame's header and body.
        on_end: called once the worker has closed its end.
        on_defect: called when *on_frame* has raised, or what came is no frame, and nothing more is read then; or when
            something could not be sent.

    Attributes:
        descriptors: those that came with each frame and have not been taken; fewer than were sent if some found no
            room.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        on_frame: Callable[[Header, memoryview], object],
        on_end: Callable[[], object],
        on_defect: Callable[[], object],
    ) -> None:
        self._loop = loop
        self._socket = sock
        self._fd = sock.fileno()
        self._on_frame = on_frame
        self._on_end = on_end
        self._on_defect = on_defect
        self.descriptors: deque[list[int]] = deque()
        self._unsent: deque[memoryview] = deque()
        # The descriptors that go with some of these.
        self._passing: deque[tuple[memoryview, Sequence[int]]] = deque()
        self._buffer = bytearray(_RECEIVE_BYTES)
        self._filled = 0
        # Something came that is no frame of ours: nothing behind it makes sense.
        self._is_defect = False
        # The loop is about to go on with frames that are in the buffer.
        self._going_on: asyncio.Handle | None = None
        # A frame too large for the buffer: its header, its body so far.
        self._large: tuple[Header, bytearray | mmap.mmap, int] | None = None
        loop.add_reader(self._fd, self._on_readable)

    def close(self) -> None:
        """Stop. Nothing is sent any more, and descriptors that nobody took are closed."""
        self._loop.remove_reader(self._fd)
        self._loop.remove_writer(self._fd)
        self._stop_going_on()
        self._drop_unsent()
        while self.descriptors:
            for fd in self.descriptors.popleft():
                os.close(fd)

    def hang_up(self) -> None:
        """Tell the worker that there is no more to come.

        Raises:
            OSError: it has died already.
        """
        self._socket.shutdown(socket.SHUT_WR)

    # Out

    def write(
        self, kind: int, control: object, *, first: int = 0, tail: Sequence[Piece] = (), fds: Sequence[int] = ()
    ) -> None:
        """Send a frame, and with its first byte descriptors, which must stay open until the worker has them."""
        body = pickle.dumps(control, 5)
        header = frames.TO_WORKER.pack(kind, len(body), sum(map(len, tail)), first)
        idle = not self._unsent
        frame = memoryview(header + body)
        self._unsent.append(frame)
        if fds:
            self._passing.append((frame, fds))
        self._unsent.extend(map(memoryview, tail))
        if idle:
            self._flush()
            if self._unsent:
                self._loop.add_writer(self._fd, self._on_writable)

    def _on_writable(self) -> None:
        self._flush()
        if not self._unsent:
            self._loop.remove_writer(self._fd)

    def _flush(self) -> None:
        """Send what the socket takes at once: about 200 KB, which holds the loop for some 50 µs."""
        try:
            sent = self._send_some()
        except BlockingIOError:
            return
        except (BrokenPipeError, ConnectionResetError):  # it has died; its exit is about to be told
            self._drop_unsent()
            return
        except OSError:  # for want of memory, for instance: it would wait for what is lost
            self._drop_unsent()
            self._on_defect()
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

    def _send_some(self) -> int:
        parts = list(islice(self._unsent, _SEND_PARTS))
        if not self._passing:
            return self._socket.sendmsg(parts)
        frame, fds = self._passing[0]
        if parts[0] is frame:
            sent = self._socket.sendmsg([frame], descriptors.outgoing(fds))
            self._passing.popleft()
            return sent
        before = next((position for position, part in enumerate(parts) if part is frame), len(parts))
        return self._socket.sendmsg(parts[:before])

    def _drop_unsent(self) -> None:
        self._unsent.clear()
        self._passing.clear()

    # In

    def _on_readable(self) -> None:
        try:
            received = self._receive()
        except Exception:
            self._is_defect = True
            self._loop.remove_reader(self._fd)
            self._on_defect()
            raise
        if received == 0:
            self._loop.remove_reader(self._fd)
            self._on_end()

    def read_rest(self) -> None:
        """Take in what a dead worker has left, as far as it makes sense."""
        try:
            while not self._is_defect and self._receive():
                pass
        except Exception as error:
            self._is_defect = True
            self._loop.call_exception_handler({"message": "A dead worker left what cannot be read", "exception": error})

    def _receive(self) -> int | None:
        """Read once, or go on with what has been read; return how many bytes came or were there.

        0 at the end of the stream, None if there are none yet.
        """
        if self._going_on is not None:
            self._stop_going_on()
            there = self._filled
            self._take_frames()
            return there
        try:
            received = self._fill_buffer() if self._large is None else self._fill_large()
        except BlockingIOError:
            return None
        except OSError:
            return 0
        if self._large is None:
            self._take_frames()
        else:
            self._take_large()
        return received

    def _fill_buffer(self) -> int:
        with memoryview(self._buffer) as view:
            received, ancillary, flags, _ = self._socket.recvmsg_into(
                [view[self._filled :]], descriptors.ROOM, descriptors.RECEIVE_FLAGS
            )
        if ancillary or flags & descriptors.TRUNCATED:
            self.descriptors.append(descriptors.incoming(ancillary))
        self._filled += received
        return received

    def _fill_large(self) -> int:
        assert self._large is not None
        header, body, filled = self._large
        with memoryview(body) as view:
            received = self._socket.recv_into(view[filled:])
        self._large = header, body, filled + received
        return received

    def _take_large(self) -> None:
        assert self._large is not None
        header, body, filled = self._large
        if filled == len(body):
            self._large = None
            self._on_frame(header, memoryview(body))

    def _take_frames(self) -> None:
        start, size, until = 0, frames.TO_PARENT.size, monotonic() + _AT_ONCE_SECONDS
        data = bytes(memoryview(self._buffer)[: self._filled])
        while self._filled - start >= size:
            header = frames.TO_PARENT.unpack_from(data, start)
            length = header[4]
            begin = start + size
            if begin + length > self._filled:
                if size + length > len(self._buffer):
                    body = _room_for(length)
                    held = self._filled - begin
                    body[:held] = data[begin : self._filled]
                    self._large = header, body, held
                    start = self._filled
                break
            start = begin + length
            self._on_frame(header, memoryview(data)[begin:start])
            if start < self._filled and monotonic() > until:
                self._going_on = self._loop.call_soon(self._on_readable)
                break
        rest = self._filled - start
        if start and rest:
            self._buffer[:rest] = data[start : self._filled]
        self._filled = rest

    def _stop_going_on(self) -> None:
        if self._going_on is not None:
            self._going_on.cancel()
            self._going_on = None


def _room_for(size: int) -> bytearray | mmap.mmap:
    if size < _CLEARED_BYTES:
        return bytearray(size)
    if size < _MAPPED_BYTES:
        from aparallel._ground.uncleared import uncleared_bytearray  # and ctypes with it

        return uncleared_bytearray(size)
    return mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
