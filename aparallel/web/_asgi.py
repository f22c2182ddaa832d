"""A pool for an app of any kind that speaks ASGI."""

from __future__ import annotations

import contextlib
import traceback
from typing import TYPE_CHECKING, Unpack

from aparallel.errors import MissingPoolError
from aparallel.web._finding import STATE_KEY, get_pool
from aparallel.web._serving import PoolSettings, PoolSource

if TYPE_CHECKING:
    from collections.abc import Callable

    from aparallel._parallel.pool import Pool
    from aparallel.web._protocol import ASGIApp, Message, Receive, Scope, Send


class PoolMiddleware:
    """ASGI middleware: gives the app inside a pool, for apps whose framework has no lifespan to hand it to.

    ::

        app = PoolMiddleware(app, n_jobs=4)

    It is the outermost, and speaks the lifespan protocol with the server; an app that speaks it too
    has its turn inside: its startup finds the pool ready, and its shutdown finds it open.

    Args:
        app: the app inside.
        pool, shutdown_timeout, settings: as of :func:`aparallel.web.lifespan`.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        pool: Pool | Callable[[], Pool] | None = None,
        shutdown_timeout: float | str | None = 10.0,
        **settings: Unpack[PoolSettings],
    ) -> None:
        self._app = app
        self._source = PoolSource(pool, shutdown_timeout, settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Live with the app, or pass on what is not about its life."""
        if scope["type"] == "lifespan":
            await self._live(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        if STATE_KEY not in state:
            # Without a pool the app runs all the same: get_pool says what is missing where it is asked.
            with contextlib.suppress(MissingPoolError):
                state[STATE_KEY] = get_pool(self)
        await self._app(scope, receive, send)

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        inner = _Inner(await receive(), receive, send)
        try:
            async with self._source.opened_for(self) as pool:
                scope.setdefault("state", {})[STATE_KEY] = pool
                await inner.live(self._app, scope)
        except Exception:
            inner.fail(traceback.format_exc())
        await send(inner.last_word)


class _Inner:
    """The lifespan of the app inside, between the startup of the pool and its end."""

    def __init__(self, startup: Message, receive: Receive, send: Send) -> None:
        self._startup: Message | None = startup
        self._receive = receive
        self._send = send
        # The app has started, as it said, or as was said for one that knows no lifespan.
        self._started = False
        # It waits for the shutdown, or has been asked for it.
        self._asked_to_stop = False
        # What the server is told when the pool has ended, such as that a stage has failed.
        self.last_word: Message = {"type": "lifespan.shutdown.complete"}

    @property
    def _failed(self) -> bool:
        return str(self.last_word["type"]).endswith(".failed")

    async def live(self, app: ASGIApp, scope: Scope) -> None:
        try:
            await app(scope, self._take, self._pass_on)
        except Exception:
            # An app that knows no lifespan says so by raising. One that does, and fails, has begun.
            if self._started or self._failed:
                raise
        if self._failed:
            return
        if not self._started:
            await self._pass_on({"type": "lifespan.startup.complete"})
        if not self._asked_to_stop:
            await self._receive()

    def fail(self, message: str) -> None:
        """Have the server told that the startup failed, or the shutdown, unless it will be told so."""
        if not self._failed:
            stage = "shutdown" if self._started else "startup"
            self.last_word = {"type": f"lifespan.{stage}.failed", "message": message}

    async def _take(self) -> Message:
        if self._startup is not None:
            startup, self._startup = self._startup, None
            return startup
        self._asked_to_stop = True
        return await self._receive()

    async def _pass_on(self, message: Message) -> None:
        if message["type"] == "lifespan.startup.complete":
            self._started = True
            await self._send(message)
        else:
            self.last_word = message
