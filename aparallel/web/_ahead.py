"""What a client sends, read ahead of the app: so one that leaves is noticed whatever the app does meanwhile."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from aparallel._ground.shield import outlast

if TYPE_CHECKING:
    from collections.abc import Callable

    from aparallel.web._protocol import Message, Receive

# Bytes of a body that are held for an app that does not take them; no further message is read then.
MOST_AHEAD = 1024 * 1024

# What a message takes besides its part of the body, as there may be very many that have next to none.
_MESSAGE_BYTES = 512


class ReadAhead:
    """The messages of one request, in order, for an app that takes them when it likes.

    From the loop's next turn on they are read until the client has left, or until ``MOST_AHEAD`` bytes wait to be
    taken: what is larger is held back by the server, as ever. A client's leave comes behind all that it has sent, so it
    is not seen then.

    Args:
        receive: the server's.
        on_disconnect: called when the client has left.
        holds_body: do not read before the app does.
    """

    def __init__(self, receive: Receive, on_disconnect: Callable[[], None], *, holds_body: bool) -> None:
        self._receive = receive
        self._on_disconnect = on_disconnect
        # Read and not taken, and how much that is.
        self._waiting: deque[Message] = deque()
        self._ahead = 0
        # What there is after all of these: the disconnect, or what the server's receive raised.
        self._last: Message | Exception | None = None
        self._arrived = asyncio.Event()
        self._taken = asyncio.Event()
        self._reader: asyncio.Task[None] | None = None
        # Most requests are answered before the loop has its next turn: they need no task.
        self._start = None if holds_body else asyncio.get_running_loop().call_soon(self._begin)
        self._starts_when_taken = holds_body

    async def take(self) -> Message:
        """Return the next message, as a server's ``receive`` does."""
        if self._starts_when_taken:
            self._begin()
        while not self._waiting:
            if isinstance(self._last, Exception):
                raise self._last
            if self._last is not None:
                return self._last
            self._arrived.clear()
            await self._arrived.wait()
        message = self._waiting.popleft()
        self._ahead -= _weight(message)
        self._taken.set()
        return message

    async def stop(self) -> None:
        """Read no more. What reads has ended then, whoever cancels this task meanwhile.

        Who still asks, in a task that outlives the request, is told what servers tell then: that the client is gone.
        """
        if self._last is None:
            self._last = {"type": "http.disconnect"}
            self._arrived.set()
        self._starts_when_taken = False
        if self._start is not None:
            self._start.cancel()
        if self._reader is not None:
            self._reader.cancel()
            try:
                await asyncio.sleep(0)  # enough for a receive that just waits
            finally:
                await outlast([self._reader])

    def _begin(self) -> None:
        self._starts_when_taken = False
        self._reader = asyncio.create_task(self._read(), name="aparallel-disconnect")

    async def _read(self) -> None:
        """Read until the client has left."""
        is_whole = False  # the end of the body was read
        try:
            while (message := await self._receive())["type"] != "http.disconnect":
                self._waiting.append(message)
                self._ahead += _weight(message)
                self._arrived.set()
                if is_whole:
                    # There can be no message but the disconnect. Receivers that repeat themselves are not followed.
                    await self._until(0)
                elif message.get("more_body", False):
                    await self._until(MOST_AHEAD)
                else:
                    is_whole = True
        except Exception as error:
            self._last = error
        else:
            self._last = message
            self._on_disconnect()
        self._arrived.set()

    async def _until(self, most: int) -> None:
        """Wait until no more than so much waits to be taken."""
        while self._ahead > most:
            self._taken.clear()
            await self._taken.wait()


def _weight(message: Message) -> int:
    return len(message.get("body", b"")) + _MESSAGE_BYTES
