"""A client that leaves cancels the handler of its request."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from typing import TYPE_CHECKING, Any

from aparallel._ground.loops import running_loop
from aparallel.web._ahead import ReadAhead
from aparallel.web._protocol import Ending

if TYPE_CHECKING:
    from collections.abc import Callable

    from aparallel.web._protocol import ASGIApp, Message, Receive, Scope, Send

# In the scope of a request that is watched already: by the app, and again by a route or a response of it.
_EXCHANGE = "aparallel.cancel_on_disconnect"

# Middleware that is looked at on the way to the router. More can only be a circle.
_MOST_MIDDLEWARE = 100

# Seconds that an app whose cancellation somebody else has asked for may take to end.
_MOMENT = 0.05

# The versions of ASGI with which apps listen for the disconnect beside a response that they stream.
_LISTENING_VERSIONS = ("2.0", "2.1", "2.2", "2.3")

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

    It may stand anywhere among other middleware. Starlette's BaseHTTPMiddleware runs what is inside it in a task
    of its own; that task is the one that is cancelled then. A BaseHTTPMiddleware of a route, a mount or a mounted
    app cannot be seen from outside: put this inside of it, too.

    To see the client leave, its messages are read ahead of the app: a megabyte of its body at most. A larger
    upload is held back as without us, and a client that leaves in the middle of it is seen when the app
    reads on. A client that waits to be told to send its body (``Expect: 100-continue``) is watched from the app's
    first read.

    Args:
        app: the app inside.
        include: told the scope of a request, says whether to watch it. All by default.

    Raises:
        TypeError: *include* is not a function.
    """

    def __init__(self, app: ASGIApp, *, include: Callable[[Scope], bool] | None = None) -> None:
        if include is not None and not callable(include):
            raise TypeError(
                f"include={include!r} is not a function of a request's scope: lambda scope: scope['path'] == '/render'"
            )
        self._app = app
        self._include = include

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the app, and watch its client if this is a request to be watched."""
        if scope["type"] != "http" or not (self._include is None or self._include(scope)):
            await self._app(scope, receive, send)
            return
        running_loop()  # on anything but asyncio, say so
        _watch_inner_tasks(self._app)
        exchange: _Exchange | None = scope.get(_EXCHANGE)
        if exchange is not None:
            await exchange.watch(self._app, scope, receive, send)
        else:
            await _Exchange(receive, holds_body=_holds_body(scope)).run(self._app, scope, send)


class _InnerTask:
    """Stands in a task that other middleware has started: if the request is watched, that task is."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange: _Exchange | None = scope.get(_EXCHANGE)
        if exchange is None:
            await self._app(scope, receive, send)
        else:
            await exchange.watch(self._app, scope, receive, send)


def _watch_inner_tasks(app: Any) -> None:
    """Stand behind each BaseHTTPMiddleware of *app*, down to its router, unless we do.

    What is inside of one runs in an anyio task group. A cancellation from outside would reach it by the group's scope,
    which cancels every ``await``, also those of clean-up.
    """
    starlette = sys.modules.get("starlette.middleware.base")
    if starlette is None:
        return
    for _ in range(_MOST_MIDDLEWARE):
        inner = getattr(app, "middleware_stack", None) or getattr(app, "app", None)
        if inner is None:
            return
        if isinstance(app, starlette.BaseHTTPMiddleware) and not isinstance(inner, _InnerTask):
            app.app = _InnerTask(inner)
        app = inner._app if isinstance(inner, _InnerTask) else inner


class _Exchange:
    """One request that is watched."""

    def __init__(self, receive: Receive, *, holds_body: bool) -> None:
        # What runs for it, from the outside in. The innermost is what a client that leaves cancels.
        self._layers: list[_Layer] = []
        self._client_left = False
        self._messages = ReadAhead(receive, self._on_disconnect, holds_body=holds_body)

    async def run(self, app: ASGIApp, scope: Scope, send: Send) -> None:
        """Run all that there is, and watch the client meanwhile."""
        asgi = scope.get("asgi", {})
        scope[_EXCHANGE] = self
        scope["asgi"] = _streaming_plainly(asgi)
        try:
            await self.watch(app, scope, self._messages.take, send)
        finally:
            scope["asgi"] = asgi
            await self._messages.stop()

    async def watch(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        """Run *app*, which is from now on what a client that leaves cancels."""
        layer = _Layer(send)
        self._layers.append(layer)
        try:
            await layer.run(app, scope, receive)
        finally:
            self._layers.remove(layer)
        if self._client_left:
            await layer.tell_the_front()

    def _on_disconnect(self) -> None:
        self._client_left = True
        if self._layers:
            self._layers[-1].cancel()


class _Layer:
    """An app and the task that runs it.

    The task is cancelled at most once, and only while ``_ending`` has not ended and the app runs.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self._ending = Ending()
        # What is in front has taken the beginning of the response.
        self._was_heard = False
        self._runs = True
        self._cancelled = False
        # How often others had cancelled the task before we do.
        self._others = 0

    async def run(self, app: ASGIApp, scope: Scope, receive: Receive) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._others = task.cancelling()
        try:
            await app(scope, receive, self._pass_on)
        except asyncio.CancelledError:
            if not self._take_back():
                raise
        finally:
            self._take_back()

    def cancel(self) -> None:
        """Cancel the app, unless its response is whole.

        If somebody else does so already, it has a moment to end. If it goes on, nobody does: before Python 3.13, a task
        counts as cancelled for ever after an asyncio.TaskGroup of it had a task that failed.
        """
        if self._task.cancelling() > self._others:
            self._task.get_loop().call_later(_MOMENT, self._cancel)
        else:
            self._cancel()

    def _cancel(self) -> None:
        if self._runs and not self._ending.ended:
            self._cancelled = True
            self._others = self._task.cancelling()
            self._task.cancel("The client disconnected.")

    def _take_back(self) -> bool:
        """The app has ended: take our cancellation back, if it is there; return whether it was the only one."""
        self._runs = False
        ours, self._cancelled = self._cancelled, False
        return ours and self._task.uncancel() <= self._others

    async def tell_the_front(self) -> None:
        """Answer, to nobody: middleware in front takes a request without an answer for a mistake.

        That the app has begun one is not enough. Middleware between may still hold its beginning back, to compress it,
        and the cancellation may have come while it was being sent.
        """
        if not self._was_heard:
            with contextlib.suppress(OSError):
                await self._send({"type": "http.response.start", "status": _CLIENT_LEFT, "headers": []})
                await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _pass_on(self, message: Message) -> None:
        # Before it is sent: while the server still sends it, the client may leave.
        self._ending.note(message)
        await self._send(message)
        self._was_heard = self._ending.started


def _streaming_plainly(asgi: dict[str, Any]) -> dict[str, Any]:
    """Return *asgi* of a scope so that it tells the app not to listen for the disconnect beside a response it streams.

    That is what apps make of ASGI 2.4. With an older one, Starlette streams in a task group that a disconnect cancels:
    clean-up of the stream could not await.
    """
    if asgi.get("spec_version", "2.0") not in _LISTENING_VERSIONS:
        return asgi
    return {**asgi, "spec_version": "2.4"}


def _holds_body(scope: Scope) -> bool:
    """Whether the client sends its body only when it is told to, which a server does when it is first read."""
    return any(name == b"expect" and value.lower() == b"100-continue" for name, value in scope.get("headers", ()))
