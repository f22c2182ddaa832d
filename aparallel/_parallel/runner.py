"""Runs calls on the workers of a pool, one by one and many at a time."""

from __future__ import annotations

import asyncio
import contextvars
from typing import TYPE_CHECKING, Any, Final, TypeVar

from aparallel._ground.nesting import call_context
from aparallel._ground.shield import outlast
from aparallel._parallel.flow import Flow, GatherFlow, Source, prepare
from aparallel._parallel.options import Unset
from aparallel._parallel.parsing import parse_patience, parse_retries
from aparallel._parallel.stream import StreamFlow

if TYPE_CHECKING:
    from collections.abc import Callable

    from aparallel._ground.call import Call
    from aparallel._parallel.engine import Bound, Engine
    from aparallel._parallel.options import Options
    from aparallel._parallel.runs import RunQueue, Runs
    from aparallel.abc import Function, OnCancel

F = TypeVar("F", bound=Flow)

# Looked up once: in Python 3.11 each look at a member of an enum takes 0.3 µs.
_UNSET: Final = Unset.UNSET

# Calls in other processes see none of the caller's context but what travels with them.
_NO_CONTEXT = contextvars.Context()


class Runner:
    """Runs calls on the workers of *engine*: all calls of a pool, or those of one key, whose *runs* these are."""

    def __init__(self, engine: Engine, runs: RunQueue) -> None:
        self.engine = engine
        self._runs = runs

    async def run(
        self,
        call: Call[Any],
        timeout: float | None,
        on_cancel: OnCancel | None,
        queue_timeout: float | Unset | None,
        retries: int,
    ) -> Any:
        """Run one call: see :meth:`aparallel.Pool.run`."""
        engine, runs = self.engine, self._runs
        bound = engine.use()
        scheduler, admitted = bound.scheduler, engine.admitted
        policy = engine.policy.usual
        if on_cancel is not None or timeout is not None:
            policy = engine.policy.of_call(on_cancel, timeout)
        if retries != 0:
            retries = parse_retries(retries)
        patience = engine.patience if queue_timeout is _UNSET else parse_patience("queue_timeout", queue_timeout)
        if engine.admission.max_queued is not None or patience == 0 or runs.quota is not None:
            engine.admission.check_room(scheduler, runs, patience)
        context = call_context() if engine.shares_context else _NO_CONTEXT
        future: asyncio.Future[Any] = scheduler.loop.create_future()
        place: tuple[Runs, int] | None = None
        expiry: asyncio.Handle | None = None
        try:
            encoded = bound.encoder.encode(call)
            if encoded is None:
                admitted.runs[future] = None
                encoded = await self._encode_large(bound, call)
            if not future.done():  # the pool may have been closed meanwhile
                scheduler.admit(runs)
                place = admitted.runs[future] = runs.enter(*encoded, future, context, timeout, policy, retries)
                scheduler.dispatch_soon()
                if patience is not None:
                    expiry = scheduler.withdraw_after(patience, *place)
            del encoded  # its memory is the scheduler's from here on
            if not engine.runs_on_loop:
                try:
                    return await future
                finally:
                    if engine.backend.is_unsettled and not future.cancelled():
                        await engine.backend.settle()
            with engine.place_for_nested(context, runs.quota):
                return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                future.exception()  # it came in the same moment, and nobody else will look at it
            if place is not None:
                await outlast(scheduler.cancel_run(*place))
            raise
        finally:
            if expiry is not None:
                expiry.cancel()
            admitted.runs.pop(future, None)
            if admitted.is_awaited:
                admitted.tell_if_quiet()
            del future  # an error that it holds refers to this frame

    async def _encode_large(self, bound: Bound, call: Call[Any]) -> tuple[Function, Any]:
        """Encode a call off the loop. Meanwhile it counts as waiting: many at a time would fill the memory."""
        runs = self._runs
        runs.add_to_coming(1)
        try:
            function, payload, _ = await bound.encoder.encode_large(call, None)
        finally:
            runs.add_to_coming(-1)
        return function, payload

    async def gather(
        self, source: Source, options: Options, return_exceptions: bool, workers: int | None = None
    ) -> Any:
        """Run a whole gather; *workers*, if given, is what the pool that belongs to the loop is to have."""
        engine = self.engine
        await prepare(options)
        flow = self._begin(GatherFlow, source, options, return_exceptions, "gather_parallel", workers)
        try:
            with engine.place_for_nested(flow.context, flow.quota):
                if hasattr(source, "__aiter__"):
                    flow.draw_in_background()
                else:
                    await flow.draw()
                await flow.finished
        finally:
            try:
                await flow.end()
            finally:
                engine.admitted.end_flow(flow)
        if engine.backend.is_unsettled:
            await engine.backend.settle()
        if flow.error is not None:
            try:
                raise flow.error
            finally:
                del flow  # the error's traceback refers to this frame
        return flow.results

    def begin_stream(
        self, source: Source, options: Options, ordered: bool, return_exceptions: bool, workers: int | None = None
    ) -> tuple[StreamFlow, Callable[[], None]]:
        """Begin a stream; return it, and what is to be called when it has ended."""
        flow = self._begin(StreamFlow, source, options, return_exceptions, "stream_parallel", workers, ordered=ordered)
        return flow, lambda: self.engine.admitted.end_flow(flow)

    def _begin(
        self,
        kind: type[F],
        source: Source,
        options: Options,
        return_exceptions: bool,
        name: str,
        workers: int | None,
        **more: Any,
    ) -> F:
        engine, runs = self.engine, self._runs
        scheduler = engine.use().scheduler
        policy = engine.policy.of_call(options.on_cancel, options.timeout)
        if engine.admission.max_queued is not None or runs.quota is not None:
            engine.admission.check_room(scheduler, runs, None)
        if workers is None:
            workers = engine.n_jobs if options.n_jobs is None else min(options.workers(), engine.n_jobs)
        sharing = options.sharing(engine.sharing)
        flow = kind(
            scheduler,
            engine.backend.encoder(sharing, at_once=type(source) in (list, tuple)),
            source,
            options,
            workers,
            sharing=sharing,
            on_cancel=policy,
            return_exceptions=return_exceptions,
            name=name,
            quota=runs.quota,
            **more,
        )
        engine.admitted.flows[flow] = workers
        return flow
