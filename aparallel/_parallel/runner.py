"""Runs calls on the workers of a pool, one by one and many at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from aparallel._ground.call import MappedCalls
from aparallel._parallel.flow import Flow, GatherFlow, Source, prepare
from aparallel._parallel.singles import Singles
from aparallel._parallel.stream import StreamFlow
from aparallel.abc import Moments

if TYPE_CHECKING:
    from aparallel._parallel.engine import Engine
    from aparallel._parallel.options import Options
    from aparallel._parallel.single_queue import SingleQueue

F = TypeVar("F", bound=Flow)


class Runner:
    """Runs calls on the workers of *engine*: all calls of a pool, or those of one key. Single ones wait in *queue*.

    Attributes:
        singles: begins single ones.
    """

    def __init__(self, engine: Engine, queue: SingleQueue) -> None:
        self.engine = engine
        self.singles = Singles(engine, queue)
        self._queue = queue

    async def gather(
        self, source: Source, options: Options, return_exceptions: bool, workers: int | None = None
    ) -> Any:
        """Run a whole gather; *workers*, if given, is what the pool that belongs to the loop is to have."""
        engine = self.engine
        await prepare(options)
        flow = self._begin(GatherFlow, source, options, return_exceptions, workers)
        try:
            if hasattr(source, "__aiter__"):
                flow.draw_in_background()
            else:
                await flow.draw()
            await flow.finished
        finally:
            await flow.end()
        if engine.backend.is_unsettled:
            await engine.backend.settle()
        error, flow.error = flow.error, None  # its traceback may have frames of the flow's
        if error is not None:
            try:
                raise error
            finally:
                del error  # and will have this one
        return flow.results

    def begin_stream(
        self, source: Source, options: Options, ordered: bool, return_exceptions: bool, workers: int | None = None
    ) -> StreamFlow:
        """Begin a stream, which draws nothing yet."""
        return self._begin(StreamFlow, source, options, return_exceptions, workers, ordered=ordered)

    def _begin(
        self,
        kind: type[F],
        source: Source,
        options: Options,
        return_exceptions: bool,
        workers: int | None,
        **more: Any,
    ) -> F:
        engine, queue = self.engine, self._queue
        scheduler = engine.use().scheduler
        policy = engine.policy.of_call(options.on_cancel, options.timeout)
        if engine.max_queued is not None or queue.quota is not None:
            scheduler.refusing.check_room(queue, engine.max_queued, None)
        if workers is None:
            workers = engine.n_jobs if options.n_jobs is None else min(options.workers(), engine.n_jobs)
        sharing = options.sharing(engine.sharing)
        is_given = type(source) in (list, tuple) or (type(source) is MappedCalls and source.is_quiet)
        moments = Moments.ONE if is_given else Moments.SUCCESSIVE
        flow = kind(
            scheduler,
            engine.backend.encoder(sharing, moments),
            source,
            options,
            workers,
            sharing=sharing,
            on_cancel=policy,
            return_exceptions=return_exceptions,
            quota=queue.quota,
            **more,
        )
        engine.admitted.flows[flow] = workers
        flow.ending.callback(engine.admitted.end_flow, flow)
        flow.ending.enter_context(engine.place_for_nested(flow.context, flow.quota))
        return flow
