"""What ASGI calls its parts. See the ASGI specification 3.0, "HTTP & WebSocket" and "Lifespan", version 2.5."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

# Both are mappings from names to anything. Frameworks type them as such, or as typed dictionaries of their own,
# which are no mappings to a type checker; an app or middleware of ours must fit all of them.
Scope: TypeAlias = Any
Message: TypeAlias = Any
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
ASGIApp: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]


class Ending:
    """Tells the last part of a response from the others."""

    __slots__ = ("ended", "started", "trailers")

    def __init__(self) -> None:
        self.started = False
        self.ended = False
        self.trailers = False

    def note(self, message: Message) -> None:
        """Take in a message that the app sends."""
        kind = message["type"]
        if kind == "http.response.start":
            self.started = True
            self.trailers = message.get("trailers", False)
        elif kind in ("http.response.body", "http.response.zerocopysend"):
            self.ended = not (message.get("more_body", False) or self.trailers)
        elif kind == "http.response.pathsend":
            self.ended = not self.trailers
        elif kind == "http.response.trailers":
            self.ended = not message.get("more_trailers", False)
