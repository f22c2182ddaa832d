"""Worker processes as a backend: how they are set up, started and ended."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from aparallel._backends.child import Child, Spare, check_platform
from aparallel._backends.initializer import Initializer
from aparallel._backends.logs import LogRelay
from aparallel._backends.process_worker import ProcessWorker
from aparallel._backends.tending import Tending
from aparallel._ground.hop import in_thread
from aparallel._ground.nesting import nesting_level
from aparallel._transfer.encoding import ProcessEncoder
from aparallel._transfer.functions import Functions
from aparallel._transfer.pickling import load_by_value, pickle
from aparallel.abc import Backend, WorkerEvents

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Sequence
    from contextvars import ContextVar

    from aparallel._ground.sharing import MmapMode, Shared
    from aparallel.abc import Moments, OnCancel, Sharing

_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMBA_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)


class ProcessBackend(Backend):
    """Starts worker processes, and keeps a spare to replace a killed one."""

    name = "process"
    can_kill = True
    can_time = True
    on_cancel: OnCancel = "kill"
    shares_memory = False
    start_holds_loop = True  # for a millisecond or, on busy cores, for ten

    def __init__(
        self,
        *,
        executable: str | os.PathLike[str] | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        context_vars: Sequence[ContextVar[Any]] = (),
        logs: bool = True,
        nice: int = 0,
    ) -> None:
        self.executable = check_platform(executable)
        self._initializer = Initializer(initializer, initargs) if initializer is not None else None
        self._variables = [(pickle(variable), variable) for variable in context_vars]
        self._relay = LogRelay(dict(self._variables)) if logs else None
        self._functions = Functions()
        # How many threads BLAS and OpenMP may use in each worker, and whether the environment has no say in that.
        self._inner_threads = 1, False
        self._nice = nice
        self._workers: set[ProcessWorker] = set()
        self._closed = False
        self._spare = Spare(self._new_child, lambda: bool(self._workers) and not self._closed)
        self._tending = Tending(self._workers)

    def describe(self) -> str:
        return self.executable

    def encoder(self, sharing: Sharing, moments: Moments) -> ProcessEncoder:
        return ProcessEncoder(self._functions, self._variables, self._tending.memory, sharing, moments)

    async def share(self, value: Any, mode: MmapMode, sharing: Sharing) -> Shared[Any]:
        return await self._tending.share(value, mode, sharing.temp_folder)

    def start(self, loop: asyncio.AbstractEventLoop, events: WorkerEvents) -> ProcessWorker:
        child = self._spare.take() or self._new_child()
        worker = ProcessWorker(
            loop,
            child,
            events,
            self._workers.discard,
            self._tending.plan,
            self._tending.relieve,
            self._relay,
        )
        self._workers.add(worker)
        self._tending.begin(loop)
        if self._initializer is None:
            worker.set_up(self._setup())
        else:
            self._initializer.give(lambda pieces: worker.set_up(self._setup(), pieces), worker.give_up)
        self._spare.start_later(loop)
        return worker

    def _new_child(self) -> Child:
        return Child(self.executable, logs=self._relay is not None)

    def limit_threads(self, count: int, forced: bool) -> bool:
        before, self._inner_threads = self._inner_threads, (count, forced)
        return self._inner_threads != before

    def start_spare(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start the spare now instead of a little later."""
        self._spare.start(loop)

    async def warm_up(self) -> None:
        """Import what pickling by value takes: on the loop, as ``submit`` has to do it, it would hold that for 5 ms."""
        await in_thread(load_by_value)

    def rest(self) -> None:
        self._spare.drop()

    @property
    def is_unsettled(self) -> bool:
        return self._relay is not None and self._relay.is_unsettled

    async def settle(self) -> None:
        if self._relay is not None:
            await self._relay.settle()

    async def aclose(self) -> None:
        self._closed = True
        self._spare.drop()
        self._tending.close()
        await self._spare.wait_until_gone()
        if self._relay is not None:
            await self._relay.aclose()

    def kill_all(self) -> None:
        self._closed = True
        self._tending.close()
        children = [worker.child for worker in self._workers] + self._spare.give_up()
        self._workers.clear()
        for child in children:
            child.kill()
        for child in children:
            child.reap()
        if self._relay is not None:
            self._relay.close_now()

    def _setup(self) -> dict[str, Any]:
        threads, forced = self._inner_threads
        return {
            "argv": sys.argv[:] if hasattr(sys, "argv") else [],
            "environ": {name: str(threads) for name in _THREAD_VARIABLES if forced or name not in os.environ},
            "level": nesting_level() + 1,
            "nice": self._nice,
        }
