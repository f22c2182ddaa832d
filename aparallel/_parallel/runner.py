"""Runs calls on the workers of a pool, one by one and many at a time."""

from __future__ import annotations

import asyncio
import contextvars
from typing import TYPE_CHECKING, Any, Final, TypeVar

from aparallel._ground.loops import running_loop
from aparallel._ground.nesting import call_context
from aparallel._parallel.flow import Flow, GatherFlow, Source, prepare
from aparallel._parallel.futures import CallFuture
from aparallel._parallel.options import Unset
from aparallel._parallel.parsing import parse_patience, parse_retries
from aparallel._parallel.stream import StreamFlow
from aparallel.errors import WrongLoopError

if TYPE_CHECKING:
    from collections.abc import Callable

    from aparallel._ground.call import Call
    from aparallel._parallel.engine import Bound, Engine
    from aparallel._parallel.options import Options
    from aparallel._parallel.runs import RunQueue
    from aparallel._parallel.scheduler import Scheduler
    from aparallel.abc import Function, OnCancel

    # The context that a call runs in, its timeout, what stops it, and how often it is run again.
    _How = tuple[contextvars.Context, float | None, OnCancel, int]

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

    def begin(
        self,
        kind: type[CallFuture[Any]],
        call: Call[Any],
        timeout: float | None,
        on_cancel: OnCancel | None,
        queue_timeout: float | Unset | None,
        retries: int,
    ) -> CallFuture[Any]:
        """Begin one call: see :meth:`aparallel.Pool.submit`."""
        engine, runs = self.engine, self._runs
        try:
            bound = engine.use()
            policy = engine.policy.usual
            if on_cancel is not None or timeout is not None:
                policy = engine.policy.of_call(on_cancel, timeout)
            if retries != 0:
                retries = parse_retries(retries)
            patience = engine.patience if queue_timeout is _UNSET else parse_patience("queue_timeout", queue_timeout)
            if engine.admission.max_queued is not None or patience == 0 or runs.quota is not None:
                engine.admission.check_room(bound.scheduler, runs, patience)
            encoded = bound.encoder.encode(call)
        except WrongLoopError:
            raise
        except Exception as error:
            return _failed(kind, error)  # a future of this frame's, which the traceback holds, would be a cycle
        future = kind(loop=bound.loop)
        future.home = admitted = engine.admitted
        future.place = None
        future.is_awaited = False
        admitted.runs.add(future)
        context = call_context() if engine.shares_context else _NO_CONTEXT
        if engine.runs_on_loop:
            place = engine.place_for_nested(context, runs.quota)
            place.__enter__()
            future.add_done_callback(lambda _: place.__exit__(None, None, None))
        how = context, timeout, policy, retries
        if encoded is not None:
            self._enter(future, bound.scheduler, encoded, how, patience)
            return future
        # Meanwhile it counts as waiting: many at a time would fill the memory.
        runs.add_to_coming(1)
        entering = self._enter_large(future, bound, call, how, patience)
        admitted.encoding[future] = task = bound.loop.create_task(entering, name="aparallel-encode")
        task.add_done_callback(lambda task: self._on_encoded(future, task))
        return future

    def _enter(
        self,
        future: CallFuture[Any],
        scheduler: Scheduler,
        encoded: tuple[Function, Any],
        how: _How,
        patience: float | None,
    ) -> None:
        """Have a call wait for a worker, and send it if one is free."""
        runs = self._runs
        function, payload = encoded
        context, timeout, policy, retries = how
        if not runs.count:  # else it has its place
            scheduler.admit(runs)
        future.place = runs.enter(function, payload, future, context, timeout, policy, retries)
        scheduler.dispatch_soon()
        if patience is not None:
            expiry = scheduler.withdraw_after(patience, *future.place)
            future.add_done_callback(lambda _: expiry.cancel())

    async def _enter_large(
        self, future: CallFuture[Any], bound: Bound, call: Call[Any], how: _How, patience: float | None
    ) -> None:
        """Encode a call off the loop, then do the same."""
        try:
            function, payload, _ = await bound.encoder.encode_large(call, None)
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # nobody else awaits this task
            self._end_encoding(future)
            self.engine.admitted.tell([future], [error], [0])
            del future  # an error that it holds refers to this frame
            return
        self._end_encoding(future)
        if future.is_wanted:  # neither cancelled nor ended with the pool meanwhile
            self._enter(future, bound.scheduler, (function, payload), how, patience)

    def _end_encoding(self, future: CallFuture[Any]) -> None:
        if self.engine.admitted.encoding.pop(future, None) is not None:
            self._runs.add_to_coming(-1)

    def _on_encoded(self, future: CallFuture[Any], task: asyncio.Task[None]) -> None:
        self._end_encoding(future)  # it may have been cancelled before it had begun
        if task.cancelled():  # perhaps by whoever cancels all tasks of the loop
            future.cancel()

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


def _failed(kind: type[CallFuture[Any]], error: Exception) -> CallFuture[Any]:
    """What stands for a call that cannot begin."""
    future = kind(loop=running_loop())
    future.is_awaited = False
    future.set_exception(error)
    return future
