"""aparallel behind a web server: a pool that lives with the app, and requests that stop their work.

Names are loaded on first use, and no framework is imported but by the module that is named after it:
``aparallel.web.starlette``, ``.fastapi``, ``.litestar`` and ``.aiohttp``.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aparallel.web.asgi import PoolMiddleware
    from aparallel.web.disconnect import CancelOnDisconnect
    from aparallel.web.errors import PoolErrors, Problem, problem_of
    from aparallel.web.events import Event, server_sent_events
    from aparallel.web.finding import get_pool
    from aparallel.web.handlers import add_error_handlers
    from aparallel.web.serving import Lifespan, PoolSettings, lifespan
    from aparallel.web.streaming import Chunks, ndjson

__all__ = [
    "CancelOnDisconnect",
    "Chunks",
    "Event",
    "Lifespan",
    "PoolErrors",
    "PoolMiddleware",
    "PoolSettings",
    "Problem",
    "add_error_handlers",
    "get_pool",
    "lifespan",
    "ndjson",
    "problem_of",
    "server_sent_events",
]

_HOMES = {
    "CancelOnDisconnect": "aparallel.web.disconnect",
    "Chunks": "aparallel.web.streaming",
    "Event": "aparallel.web.events",
    "Lifespan": "aparallel.web.serving",
    "PoolErrors": "aparallel.web.errors",
    "PoolMiddleware": "aparallel.web.asgi",
    "PoolSettings": "aparallel.web.serving",
    "Problem": "aparallel.web.errors",
    "add_error_handlers": "aparallel.web.handlers",
    "get_pool": "aparallel.web.finding",
    "lifespan": "aparallel.web.serving",
    "ndjson": "aparallel.web.streaming",
    "problem_of": "aparallel.web.errors",
    "server_sent_events": "aparallel.web.events",
}


if not TYPE_CHECKING:  # to a checker, a module with this has any name

    def __getattr__(name: str) -> object:
        from importlib import import_module

        home = _HOMES.get(name)
        if home is None:
            raise AttributeError(f"module 'aparallel.web' has no attribute {name!r}")
        value = getattr(import_module(home), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted(__all__)
