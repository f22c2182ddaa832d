"""Ways to compute inside a request: on the loop, in threads, in processes, and with aparallel."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from suite.calls import nap
from suite.web_contender import Endpoint, WebContender, answer, steps_of

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response


class Blocking(WebContender):
    """``async def`` and a plain call in it: the mistake that everyone makes once."""

    def endpoint(self, fn: Callable[[int], int]) -> Endpoint:
        async def handle(request: Request) -> Response:
            return answer(fn(steps_of(request)))

        return handle


class ThreadPool(WebContender):
    """``def`` instead of ``async def``: Starlette and FastAPI run the handler in a thread, of which there are 40."""

    def endpoint(self, fn: Callable[[int], int]) -> Endpoint:
        def handle(request: Request) -> Response:
            return answer(fn(steps_of(request)))

        return handle


class RunInExecutor(WebContender):
    """One ProcessPoolExecutor for the life of the server, and ``run_in_executor``."""

    executor: ProcessPoolExecutor

    @asynccontextmanager
    async def lifespan(self, app: object) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        with ProcessPoolExecutor(self.n_jobs) as self.executor:
            await asyncio.gather(*(loop.run_in_executor(self.executor, nap, 0.05) for _ in range(2 * self.n_jobs)))
            yield

    def endpoint(self, fn: Callable[[int], int]) -> Endpoint:
        async def handle(request: Request) -> Response:
            loop = asyncio.get_running_loop()
            return answer(await loop.run_in_executor(self.executor, fn, steps_of(request)))

        return handle


class AnyioToProcess(WebContender):
    """``anyio.to_process.run_sync``, with a limiter for the number of processes."""

    @asynccontextmanager
    async def lifespan(self, app: object) -> AsyncIterator[None]:
        from anyio import CapacityLimiter, to_process

        self.limiter = CapacityLimiter(self.n_jobs)
        await asyncio.gather(*(to_process.run_sync(nap, 0.05, limiter=self.limiter) for _ in range(2 * self.n_jobs)))
        yield

    def endpoint(self, fn: Callable[[int], int]) -> Endpoint:
        async def handle(request: Request) -> Response:
            from anyio import to_process

            # Cancellable as its documentation allows; but no framework cancels a handler whose client has left.
            return answer(await to_process.run_sync(fn, steps_of(request), cancellable=True, limiter=self.limiter))

        return handle


class Aparallel(WebContender):
    """aparallel.web, with the queue bounded as its documentation advises."""

    # The pool's own default.
    nice: int | None = None

    def app(self, n_jobs: int) -> Starlette:
        from starlette.applications import Starlette
        from starlette.middleware import Middleware

        from aparallel.web import CancelOnDisconnect, add_error_handlers, lifespan

        # Eight waiting calls per worker, and none that waits for so long that its visitor has given up. A second is in
        # time: what is left of it is for the call itself.
        app = Starlette(
            routes=self.routes(),
            lifespan=lifespan(n_jobs=n_jobs, max_queued=8 * n_jobs, queue_timeout=0.7, nice=self.nice),
            middleware=[Middleware(CancelOnDisconnect)],
        )
        add_error_handlers(app)
        return app

    def endpoint(self, fn: Callable[[int], int]) -> Endpoint:
        async def handle(request: Request) -> Response:
            from aparallel.web import get_pool

            return answer(await get_pool(request).run(fn, steps_of(request)))

        return handle


class AparallelNotNice(Aparallel):
    """The same, with workers at the server's own priority: on saturated cores the loop waits for its turn."""

    nice = 0
