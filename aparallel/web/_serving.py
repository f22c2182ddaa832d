"""A pool that lives as long as its app is served."""

from __future__ import annotations

import contextlib
import inspect
from typing import TYPE_CHECKING, Any, Unpack

from aparallel._ground.units import parse_seconds
from aparallel._parallel.pool import Pool
from aparallel._parallel.typed import PoolSettings
from aparallel.web._finding import STATE_KEY, found_at

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager

__all__ = ["Lifespan", "PoolSettings", "PoolSource", "lifespan"]


def lifespan(
    inner: Callable[[Any], AbstractAsyncContextManager[Any]] | None = None,
    *,
    pool: Pool | Callable[[], Pool] | None = None,
    shutdown_timeout: float | str | None = 10.0,
    **settings: Unpack[PoolSettings],
) -> Lifespan:
    """Make the lifespan of an app that has a pool: for FastAPI, Starlette, and others that take such a callable.

    ::

        app = FastAPI(lifespan=lifespan(n_jobs=4))

    The pool starts on the server's loop, and all of its workers are ready before the app is. Requests find it
    with :func:`get_pool`. At the end the app's own shutdown comes first and may still use the pool. Then the
    pool admits no more calls, and those that it has may finish for *shutdown_timeout* before they are killed.

    Args:
        inner: the app's own lifespan, which runs inside and finds the pool with ``get_pool(app)``. What it
            yields is part of the state of the requests, as without us.
        pool: a pool to use instead of a new one, which is left open, as it is its maker's to close; or a
            function that makes one, each time that the lifespan begins, and which is closed.
        shutdown_timeout: seconds, a number or text such as ``"30s"``; None to wait for as long as calls take.
        settings: those of the new :class:`aparallel.Pool`.

    The result may be entered many times, also at once: by several apps, loops, or test clients.

    Cancellation and errors, of the server's startup or of *inner*, end the pool at once.

    Raises:
        TypeError, ValueError: a bad argument. Values of *settings* are checked where the pool is made: at startup.
    """
    if isinstance(inner, Pool):
        raise TypeError(f"{inner!r} is no lifespan of the app. Hand a pool of your own over as lifespan(pool=...).")
    if inner is not None and not callable(inner):
        raise TypeError(f"The lifespan inside is {inner!r}, not a function of the app that gives a context manager.")
    return Lifespan(inner, PoolSource(pool, shutdown_timeout, settings))


class Lifespan:
    """What :func:`lifespan` returns: called with an app, it gives the context manager of the app's life."""

    def __init__(self, inner: Callable[[Any], AbstractAsyncContextManager[Any]] | None, source: PoolSource) -> None:
        self._inner = contextlib.asynccontextmanager(inner) if inspect.isasyncgenfunction(inner) else inner
        self._source = source

    @contextlib.asynccontextmanager
    async def __call__(self, app: Any) -> AsyncIterator[dict[str, Any]]:
        """Start the pool, then the app's own lifespan; yield the state of both."""
        async with self._source.opened_for(app) as pool:
            if self._inner is None:
                yield {STATE_KEY: pool}
                return
            async with self._inner(app) as state:
                yield {**(state or {}), STATE_KEY: pool}


class PoolSource:
    """Where the pool of an app comes from, and how it ends. The arguments are those of :func:`lifespan`."""

    def __init__(
        self, pool: Pool | Callable[[], Pool] | None, shutdown_timeout: float | str | None, settings: PoolSettings
    ) -> None:
        if pool is not None and settings:
            raise TypeError(
                f"pool= is given, so {', '.join(settings)} would be for no pool. Say it where the pool is made."
            )
        if pool is not None and not isinstance(pool, Pool) and not callable(pool):
            raise TypeError(f"pool={pool!r} is neither a Pool nor a function that makes one.")
        # Values are checked by each new pool; in a worker that imports the app's module a pool could not be made.
        inspect.signature(Pool).bind(**settings)
        self._pool = pool
        self._settings = settings
        self._shutdown_timeout = None if shutdown_timeout is None else parse_seconds(shutdown_timeout)

    @contextlib.asynccontextmanager
    async def opened_for(self, app: object) -> AsyncIterator[Pool]:
        """Yield a pool whose workers are ready, and which :func:`get_pool` finds for *app*.

        No cancel scope is held meanwhile: it may end in another task.
        """
        async with self._opened() as pool:
            with found_at(app, pool):
                yield pool

    @contextlib.asynccontextmanager
    async def _opened(self) -> AsyncIterator[Pool]:
        if isinstance(self._pool, Pool):
            await self._pool.warm_up()
            yield self._pool
            return
        pool = self._pool() if self._pool is not None else Pool(**self._settings)
        async with pool:
            await pool.warm_up()
            yield pool
            await pool.aclose(self._shutdown_timeout)
