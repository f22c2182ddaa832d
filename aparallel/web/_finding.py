"""Where code that handles a request finds the pool of its app."""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING

from aparallel._ground.loops import running_loop
from aparallel._parallel.pool import Pool
from aparallel.errors import MissingPoolError

if TYPE_CHECKING:
    from collections.abc import Iterator

# The name of the pool in the state of a lifespan, which servers copy to the scope of each request.
STATE_KEY = "aparallel_pool"

# The apps whose lifespan runs on a loop, oldest first, each with its pool. An app may be there twice,
# as when two test clients run it; the newest counts.
_serving: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, list[tuple[object, Pool]]] = weakref.WeakKeyDictionary()


def get_pool(where: object = None, /) -> Pool:
    """Return the pool of the app that *where* belongs to.

    Args:
        where: a request, websocket or other connection, an ASGI scope, or the app itself. Without it,
            the only pool that an app of the running loop has.

    A handler that its framework runs in a thread may ask, too, and hand back a stream of the pool's results. FastAPI's
    ``Depends`` wants ``provide_pool`` of :mod:`aparallel.web.fastapi`, or ``PoolDep``.

    Raises:
        MissingPoolError: there is none, most often because the app's lifespan did not run; or *where* was
            left out and several apps on this loop have pools.
    """
    if where is None:
        return _only(_entries())
    match_info = getattr(where, "match_info", None)  # aiohttp's requests have it: mappings, and no scopes
    if match_info is not None:
        return _of_app(match_info.apps[::-1], where)
    scope = where if isinstance(where, Mapping) else getattr(where, "scope", None)
    if not isinstance(scope, Mapping):
        return _of_app((where,), where)
    state = scope.get("state")
    pool = state.get(STATE_KEY) if isinstance(state, Mapping) else None
    if isinstance(pool, Pool):
        return pool
    # Litestar has no state of the lifespan in its scopes, and some servers have not.
    # aiohttp's apps are mappings, too.
    return _of_app((where, scope.get("app"), scope.get("litestar_app")), where)


@contextlib.contextmanager
def found_at(app: object, pool: Pool) -> Iterator[None]:
    """Have :func:`get_pool` find *pool* for *app*, on the running loop."""
    entry = (app, pool)
    here = _serving.setdefault(running_loop(), [])
    here.append(entry)
    try:
        yield
    finally:
        here.remove(entry)


def _entries() -> list[tuple[object, Pool]]:
    """The apps of the running loop; in a thread that runs a handler, where there is none, of every loop."""
    try:
        return _serving.get(asyncio.get_running_loop(), [])
    except RuntimeError:
        return [entry for entries in list(_serving.values()) for entry in entries]


def _only(here: list[tuple[object, Pool]]) -> Pool:
    pools = {id(pool): pool for _, pool in here}
    if len(pools) == 1:
        return pools.popitem()[1]
    if pools:
        raise MissingPoolError(
            f"{len(pools)} apps with a pool run on this loop, and nothing says whose is meant. "
            f"Pass the request, its scope or the app: get_pool(request)."
        )
    raise MissingPoolError(f"No app with a pool runs on this loop. {_ADVICE}")


def _of_app(apps: tuple[object, ...], where: object) -> Pool:
    here = _entries()
    for app in apps:
        for one, pool in reversed(here):
            if one is app and app is not None:
                return pool
    raise MissingPoolError(f"There is no pool for this {type(where).__name__}. {_ADVICE}")


_ADVICE = (
    "A pool starts with its app's lifespan: give the app lifespan=aparallel.web.lifespan(), and have the lifespan run. "
    "uvicorn's --lifespan off prevents that, and so do test clients that do not run it: write `with TestClient(app)`, "
    "or, around httpx's ASGITransport, `async with app.router.lifespan_context(app)`."
)
