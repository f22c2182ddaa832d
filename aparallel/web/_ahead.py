"""What a client sends, read ahead of the app: so one that leaves is noticed whatever the app does meanwhile."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from aparallel.web._protocol import Message, Receive

# Bytes of a body that are held for an app that does not take them; no further message is read then.
MOST_AHEAD = 1024 * 1024

# What a message takes besides its part of the body, as there may be very many that have next to none.
_MESSAGE_BYTES = 512


class ReadAhead:
    """The messages of one request, in order, for an app that takes them when it likes.

    They are read until the client has left, or until ``MOST_AHEAD`` bytes wait to be taken: what is larger is held back
    by the server, as ever. A client's leave comes behind all that it has sent, so it is not seen then.

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
        # The end of the body was read.
        self._is_whole = False
        # What there is after all of these: the disconnect, or what the server's receive raised.
        self._last: Message | Exception | None = None
        self._arrived = asyncio.Event()
        self._taken = asyncio.Event()
        self._may_read = asyncio.Event()
        if not holds_body:
            self._may_read.set()

    async def take(self) -> Message:
        """Return the next message, as a server's ``receive`` does."""
        self._may_read.set()
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

    async def run(self) -> None:
        """Read until the client has left."""
        await self._may_read.wait()
        try:
            while (message := await self._receive())["type"] != "http.disconnect":
                self._waiting.append(message)
                self._ahead += _weight(message)
                self._arrived.set()
                if self._is_whole:
                    # There can be no message but the disconnect. Receivers that repeat themselves are not followed.
                    await self._until(0)
                elif message.get("more_body", False):
                    await self._until(MOST_AHEAD)
                else:
                    self._is_whole = True
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
