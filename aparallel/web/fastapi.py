"""For FastAPI: the pool as a dependency, and routes whose work stops with the client.

Responses that stream are those of :mod:`aparallel.web.starlette`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from fastapi import Depends
from fastapi.requests import HTTPConnection
from fastapi.routing import APIRoute

from aparallel._parallel.pool import Pool
from aparallel.web._disconnect import CancelOnDisconnect
from aparallel.web._finding import get_pool
from aparallel.web._handlers import add_error_handlers
from aparallel.web._serving import lifespan
from aparallel.web.starlette import ChunksResponse, NDJSONResponse, ServerSentEventsResponse

if TYPE_CHECKING:
    from aparallel.web._protocol import Receive, Scope, Send

__all__ = [
    "CancellableRoute",
    "ChunksResponse",
    "NDJSONResponse",
    "PoolDep",
    "ServerSentEventsResponse",
    "add_error_handlers",
    "lifespan",
    "provide_pool",
]


async def provide_pool(connection: HTTPConnection) -> Pool:
    """Return the app's pool: the dependency behind :data:`PoolDep`, and the key to override it in tests.

    Raises:
        MissingPoolError: the app has none, or its lifespan did not run.
    """
    return get_pool(connection)


#: The type of a parameter that is to be the app's pool: ``async def render(pool: PoolDep): ...``
PoolDep = Annotated[Pool, Depends(provide_pool)]


class CancellableRoute(APIRoute):
    """A route whose handler is cancelled when its client leaves, as by :class:`aparallel.web.CancelOnDisconnect`.

    ::

        router = APIRouter(route_class=CancellableRoute)
    """

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        await CancelOnDisconnect(super().handle)(scope, receive, send)
