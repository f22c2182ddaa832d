"""For Litestar: a plugin that gives the app a pool, and responses that stream."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, TypeAlias, Unpack

from litestar import Litestar, Request, Response
from litestar.di import NamedDependency, Provide
from litestar.exceptions.responses import create_debug_response, create_exception_response
from litestar.plugins import InitPlugin
from litestar.response.streaming import Stream
from litestar.status_codes import HTTP_500_INTERNAL_SERVER_ERROR
from litestar.types import Scope

from aparallel._parallel.pool import Pool
from aparallel.web._errors import ANSWERED, problem_of
from aparallel.web._events import server_sent_events
from aparallel.web._finding import get_pool
from aparallel.web._serving import PoolSettings, lifespan
from aparallel.web._streaming import ndjson, respond

if TYPE_CHECKING:
    from collections.abc import Callable

    from litestar.config.app import AppConfig

    from aparallel.web._encoding import Dumps
    from aparallel.web._streaming import Chunks, Results


__all__ = [
    "NDJSON",
    "ChunksStream",
    "PoolDep",
    "PoolPlugin",
    "ServerSentEvents",
    "exception_handlers",
    "provide_pool",
]


class PoolPlugin(InitPlugin):
    """A plugin: the app has a pool, handlers get it as an argument, and its errors have their answers.

    ::

        @get("/render")
        async def render(pool: PoolDep) -> str: ...

        app = Litestar([render], plugins=[PoolPlugin(n_jobs=4)])

    Exception handlers and dependencies of the app win over those of the plugin.

    Args:
        dependency: the name of the argument; None for none, and :func:`aparallel.web.get_pool` where it is needed.
        pool, shutdown_timeout, settings: as of :func:`aparallel.web.lifespan`.
    """

    def __init__(
        self,
        *,
        dependency: str | None = "pool",
        pool: Pool | Callable[[], Pool] | None = None,
        shutdown_timeout: float | str | None = 10.0,
        **settings: Unpack[PoolSettings],
    ) -> None:
        self._dependency = dependency
        self._lifespan = lifespan(pool=pool, shutdown_timeout=shutdown_timeout, **settings)

    def on_app_init(self, app_config: AppConfig) -> AppConfig:
        """Add the pool to the app."""
        # Entered before the app's own, and so left after them: they may use the pool.
        app_config.lifespan = [self._lifespan, *app_config.lifespan]
        if self._dependency is not None:
            app_config.dependencies.setdefault(self._dependency, Provide(provide_pool))
        app_config.exception_handlers = {**exception_handlers, **app_config.exception_handlers}
        return app_config


async def provide_pool(scope: Scope) -> Pool:
    """Return the app's pool: the dependency that :class:`PoolPlugin` provides to requests and websockets.

    Raises:
        MissingPoolError: the app has none, or its lifespan did not run.
    """
    return get_pool(scope)


#: The type of a handler's argument that is to be the app's pool: ``async def render(pool: PoolDep): ...``
PoolDep: TypeAlias = NamedDependency[Pool]


def _answer(request: Request[Any, Any, Any], error: Exception) -> Response[Any]:
    """Answer *request*, whose handler failed with *error* of a pool: an exception handler of Litestar's."""
    problem = problem_of(error)
    if problem is None:
        return _usual_answer(request, error)
    headers = dict(problem.headers)
    return Response(problem.body(), media_type=headers.pop("content-type"), status_code=problem.status, headers=headers)


def _usual_answer(request: Request[Any, Any, Any], error: Exception) -> Response[Any]:
    """Answer a group that holds other errors, too, as the app would without us.

    Litestar asks one exception handler. What that raises it answers with nothing, so it cannot be passed on.
    """
    handlers = request.route_handler.resolve_exception_handlers()
    kinds: tuple[int | type[Exception], ...] = (*type(error).__mro__, HTTP_500_INTERNAL_SERVER_ERROR)
    for kind in kinds:
        handler = handlers.get(kind)
        if handler is not None and handler is not _answer:
            return handler(request, error)
    respond_usually = create_debug_response if request.app.debug else create_exception_response
    return respond_usually(request, error)


#: What :class:`PoolPlugin` adds to the app's exception handlers; for apps without the plugin.
exception_handlers: dict[int | type[Exception], Any] = dict.fromkeys(ANSWERED, _answer)


class ChunksStream(Stream):
    """A response whose body is *chunks*, of :func:`ndjson` or :func:`server_sent_events`.

    The results begin before the status is sent, so that a saturated pool is a 503. A client that leaves
    closes them at once.
    """

    __slots__ = ("_chunks",)

    def __init__(
        self, chunks: Chunks, *, status_code: int | None = None, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(
            chunks,
            media_type=chunks.media_type,
            status_code=status_code,
            headers={**chunks.headers, **(headers or {})},
        )
        self._chunks = chunks

    def to_asgi_response(self, app: Litestar | None, request: Request[Any, Any, Any], **more: Any) -> Any:
        """Return what sends the response, with the head of Litestar's own.

        Litestar would send the chunks in a task group that a disconnect cancels: their clean-up could not await.
        """
        response = super().to_asgi_response(app, request, **more)

        async def send_all(scope: Any, receive: Any, send: Any) -> None:
            await response.start_response(send)
            if not response.is_head_response:
                async for chunk in self._chunks:
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            await response.after_response()

        return functools.partial(respond, self._chunks, send_all)


class NDJSON(ChunksStream):
    """Results as lines of JSON, as they come: see :func:`aparallel.web.ndjson` and :class:`ChunksStream`."""

    __slots__ = ()

    def __init__(
        self,
        results: Results,
        *,
        dumps: Dumps | None = None,
        status_code: int | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(ndjson(results, dumps=dumps), status_code=status_code, headers=headers)


class ServerSentEvents(ChunksStream):
    """Results as events, as they come: see :func:`aparallel.web.server_sent_events` and :class:`ChunksStream`."""

    __slots__ = ()

    def __init__(
        self,
        results: Results,
        *,
        ping: float | str | None = 15.0,
        retry: int | None = None,
        dumps: Dumps | None = None,
        status_code: int | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        chunks = server_sent_events(results, ping=ping, retry=retry, dumps=dumps)
        super().__init__(chunks, status_code=status_code, headers=headers)
