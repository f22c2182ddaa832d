"""For aiohttp's server: the pool of an app, answers to its errors, and responses that stream.

aiohttp cancels the handler of a client that left if it is asked to: ``web.run_app(app, handler_cancellation=True)``,
or ``web.AppRunner(app, handler_cancellation=True)``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

from aiohttp import web

from aparallel._parallel.pool import Pool
from aparallel.errors import MissingPoolError
from aparallel.web._errors import ANSWERED, problem_of
from aparallel.web._serving import PoolSettings, PoolSource

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from aiohttp.typedefs import Handler

    from aparallel.web._streaming import Chunks

__all__ = ["POOL", "error_middleware", "get_pool", "pool_ctx", "stream_chunks"]

#: Where an app keeps its pool: ``app[POOL]``, ``request.app[POOL]``.
POOL: web.AppKey[Pool] = web.AppKey("aparallel_pool", Pool)


def pool_ctx(
    *,
    pool: Pool | Callable[[], Pool] | None = None,
    shutdown_timeout: float | str | None = 10.0,
    **settings: Unpack[PoolSettings],
) -> Callable[[web.Application], AsyncIterator[None]]:
    """Make a clean-up context that gives an app a pool.

    ::

        app.cleanup_ctx.append(pool_ctx(n_jobs=4))

    Arguments and what they promise are those of :func:`aparallel.web.lifespan`. Contexts that are appended
    later end earlier, and may use the pool until then.
    """
    source = PoolSource(pool, shutdown_timeout, settings)

    async def context(app: web.Application) -> AsyncIterator[None]:
        async with source.opened_for(app) as pool:
            app[POOL] = pool
            yield

    return context


def get_pool(request: web.Request) -> Pool:
    """Return the pool of the app that serves *request*, or of the one that this is a sub-app of.

    Raises:
        MissingPoolError: neither has one.
    """
    pool = request.config_dict.get(POOL)
    if pool is None:
        raise MissingPoolError(
            "There is no pool for this request's app. Give it one where it is made: app.cleanup_ctx.append(pool_ctx())."
        )
    return pool


@web.middleware
async def error_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer a saturated or closed pool with 503, and a call that took too long with 504.

    ::

        app = web.Application(middlewares=[error_middleware])

    The answers are those of :func:`aparallel.web.problem_of`.
    """
    try:
        return await handler(request)
    except ANSWERED as error:
        problem = problem_of(error)
        if problem is None:
            raise
        return web.Response(body=problem.body(), status=problem.status, headers=problem.headers)


async def stream_chunks(
    request: web.Request, chunks: Chunks, *, status: int = 200, headers: Mapping[str, str] | None = None
) -> web.StreamResponse:
    """Answer *request* with *chunks*, of ``ndjson(...)`` or ``server_sent_events(...)``, and return the response.

    The results begin before the status is sent, so that a saturated pool is a 503. They are drawn as fast as the
    client takes them. A client that leaves closes them: at once with ``handler_cancellation=True``, else with the
    next chunk.

    Raises:
        Exception: what the results raise at their beginning.
        ConnectionResetError: the client has left; aiohttp takes it as such.
    """
    try:
        if request.method == "HEAD":  # there is nobody to compute them for, and aiohttp would send them all the same
            await chunks.aclose()
        await chunks.begin()
        response = web.StreamResponse(status=status, headers={**chunks.headers, **(headers or {})})
        response.content_type = chunks.media_type
        await response.prepare(request)
        async for chunk in chunks:
            await response.write(chunk)
        await response.write_eof()
        return response
    finally:
        await chunks.aclose()
