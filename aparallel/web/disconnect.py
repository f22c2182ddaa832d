"""A client that leaves cancels the handler of its request."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import TYPE_CHECKING

from aparallel._ground.shield import outlast
from aparallel._parallel.lifetime import running_loop
from aparallel.web.protocol import Ending

if TYPE_CHECKING:
    from collections.abc import Callable

    from aparallel.web.protocol import ASGIApp, Message, Receive, Scope, Send

# In the scope of a request that is watched already: by the app, and again by a route or a response of it.
_WATCHED = "aparallel.cancel_on_disconnect"

# What the middleware in front is told of a client that left before the answer began; nobody else can see it.
# nginx's status for this, which no standard has.
_CLIENT_LEFT = 499


class CancelOnDisconnect:
    """ASGI middleware: a client that leaves before it has the whole response cancels what makes it.

    ::

        app.add_middleware(CancelOnDisconnect)                       # for the app
        app.add_middleware(CancelOnDisconnect, include=is_heavy)     # for some of its requests
        Route("/render", render, middleware=[Middleware(CancelOnDisconnect)])

    The handler's task is cancelled once, natively, so that its clean-up may await. Calls that it awaits are
    treated as their ``on_cancel`` says: a process worker is killed and replaced. The server sees a request
    that ended without an error.

    Nothing is cancelled once the last part of the response is on its way: background tasks live on. Websockets
    pass through: they learn of a client that left by themselves.

    To see the client leave, its messages are read ahead of the app: one at most, and past the end of the body,
    where only the disconnect can follow. While a part of the body is not taken by the app, no other is
    read, so an upload is held back as without us; then a client that leaves is seen when the app reads on. A
    client that waits to be told to send its body (``Expect: 100-continue``) is watched from the app's first read.

    Args:
        app: the app inside.
        include: told the scope of a request, says whether to watch it. All by default.
    """

    def __init__(self, app: ASGIApp, *, include: Callable[[Scope], bool] | None = None) -> None:
        self._app = app
        self._include = include

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the app, and watch its client if this is a request to be watched."""
        if scope["type"] != "http" or _WATCHED in scope or not (self._include is None or self._include(scope)):
            await self._app(scope, receive, send)
            return
        running_loop()  # on anything but asyncio, say so
        scope[_WATCHED] = True
        await _Exchange(receive, send, holds_body=_holds_body(scope)).run(self._app, scope)


class _Exchange:
    """One request and its response.

    The task of the app is cancelled at most once, and only while ``_ending`` has not ended and the app runs.
    """

    def __init__(self, receive: Receive, send: Send, *, holds_body: bool) -> None:
        self._receive = receive
        self._send = send
        self._ending = Ending()
        self._runs = True
        self._cancelled = False
        # Read ahead and not taken by the app, in order: a message, and one after the end of the body at most.
        self._read: deque[Message] = deque()
        # What there is after all of these: the disconnect, or what the server's receive raised.
        self._last: Message | Exception | None = None
        self._arrived = asyncio.Event()
        self._taken = asyncio.Event()
        self._may_read = asyncio.Event()
        if not holds_body:
            self._may_read.set()

    async def run(self, app: ASGIApp, scope: Scope) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        before = task.cancelling()
        reader = asyncio.create_task(self._read_ahead(), name="aparallel-disconnect")
        try:
            await app(scope, self._take, self._pass_on)
        except asyncio.CancelledError:
            if not self._was_ours(before):
                raise
            await self._tell_the_front()
        except BaseException:
            self._was_ours(before)
            raise
        else:
            self._was_ours(before)
        finally:
            self._runs = False
            reader.cancel()
            await _ended(reader)

    def _was_ours(self, before: int) -> bool:
        """Whether the task was cancelled by us and by nobody else; from here on it is not by us any more."""
        self._runs = False
        return self._cancelled and self._task.uncancel() <= before

    async def _tell_the_front(self) -> None:
        """Answer, to nobody: middleware in front takes a request without an answer for a mistake."""
        if not self._ending.started:
            with contextlib.suppress(OSError):
                await self._send({"type": "http.response.start", "status": _CLIENT_LEFT, "headers": []})
                await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _pass_on(self, message: Message) -> None:
        # Before it is sent: while the server still sends it, the client may leave.
        self._ending.note(message)
        await self._send(message)

    async def _take(self) -> Message:
        self._may_read.set()
        while not self._read:
            if isinstance(self._last, Exception):
                raise self._last
            if self._last is not None:
                return self._last
            self._arrived.clear()
            await self._arrived.wait()
        message = self._read.popleft()
        self._taken.set()
        return message

    async def _read_ahead(self) -> None:
        await self._may_read.wait()
        try:
            while (message := await self._receive())["type"] != "http.disconnect":
                self._read.append(message)
                self._arrived.set()
                # After the end of the body there can be no message but the disconnect. Receivers that
                # repeat themselves are not followed.
                while self._read and (message.get("more_body", False) or len(self._read) > 1):
                    self._taken.clear()
                    await self._taken.wait()
        except Exception as error:
            self._last = error
        else:
            self._last = message
            self._on_disconnect()
        self._arrived.set()

    def _on_disconnect(self) -> None:
        if self._runs and not self._ending.ended:
            self._cancelled = True
            self._task.cancel("The client disconnected.")


async def _ended(reader: asyncio.Task[None]) -> None:
    """Wait until *reader*, which is cancelled, has ended, whoever cancels this task meanwhile."""
    try:
        await asyncio.sleep(0)  # enough for a receive that just waits
    finally:
        if not reader.done():
            await outlast([reader])


def _holds_body(scope: Scope) -> bool:
    """Whether the client sends its body only when it is told to, which a server does when it is first read."""
    return any(name == b"expect" and value.lower() == b"100-continue" for name, value in scope.get("headers", ()))
