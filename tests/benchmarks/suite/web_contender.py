"""What every way to compute inside a request has to be."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from suite.web_calls import crash, work

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

Endpoint = Callable[["Request"], Any]
"""A handler, async or not, as Starlette and FastAPI take it."""


class WebContender(ABC):
    """One way to run CPU-bound functions in the handlers of an ASGI app, as its documentation shows it.

    The app runs under uvicorn in a process of its own (``python -m suite.web_server``). ``/light`` answers at once;
    ``/heavy?steps=`` and ``/crash`` do what :mod:`suite.web_calls` says.
    """

    n_jobs: int = 1

    def app(self, n_jobs: int) -> Starlette:
        """The app, with *n_jobs* workers if it has any."""
        from starlette.applications import Starlette

        self.n_jobs = n_jobs
        return Starlette(routes=self.routes(), lifespan=self.lifespan)

    def routes(self) -> list[Any]:
        from starlette.routing import Route

        return [
            Route("/light", light),
            Route("/heavy", self.endpoint(work)),
            Route("/crash", self.endpoint(crash)),
        ]

    @asynccontextmanager
    async def lifespan(self, app: object) -> AsyncIterator[None]:
        """What lives as long as the server. Workers are to be up before it is entered."""
        yield

    @abstractmethod
    def endpoint(self, fn: Callable[[int], int]) -> Endpoint:
        """A handler that runs ``fn(steps)``, with the *steps* of the query, and answers with :func:`answer`."""


async def light(request: Request) -> Response:
    """What has nothing to compute and should never wait."""
    return answer(1)


def steps_of(request: Request) -> int:
    return int(request.query_params.get("steps", "0"))


def answer(number: int) -> Response:
    from starlette.responses import PlainTextResponse

    return PlainTextResponse(str(number))
