"""Worker processes as a backend: how they are set up, and the shared memory that they have together."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any

from aparallel._backends.child import Child, check_platform
from aparallel._backends.logs import LogRelay
from aparallel._backends.process_worker import ProcessWorker
from aparallel._backends.spare import Spare
from aparallel._ground.call import name_of
from aparallel._ground.cpus import cpu_count
from aparallel._ground.hop import in_thread
from aparallel._ground.nesting import nesting_level
from aparallel._transfer.diagnosis import unpicklable_call
from aparallel._transfer.encoding import ProcessEncoder
from aparallel._transfer.functions import Functions
from aparallel._transfer.pickling import pickle
from aparallel._transfer.shipment import LazyMemory
from aparallel._wire.frames import MAX_OUTSTANDING
from aparallel.abc import Backend, WorkerEvents

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextvars import ContextVar

    from aparallel._ground.sharing import MmapMode, Shared
    from aparallel.abc import OnCancel, Sharing

# Shared memory that was used is kept so long for the next use: new memory costs ten times what copying does.
_UNUSED_SECONDS = 0.5

# Workers that are asked to free memory are waited for so long at most: one that runs a call hears of it afterwards.
_FREEING_SECONDS = 0.25

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
    """Starts worker processes, and keeps a spare to replace a killed one.

    Attributes:
        inner_threads: threads that BLAS and OpenMP may use in each worker started from now on.
    """

    name = "process"
    can_kill = True
    can_time = True
    on_cancel: OnCancel = "kill"
    shares_memory = False
    max_outstanding = MAX_OUTSTANDING

    def __init__(
        self,
        *,
        executable: str | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        context_vars: Sequence[ContextVar[Any]] = (),
        inner_threads: int = 1,
        inner_threads_forced: bool = False,
        logs: bool = True,
        nice: int = 0,
    ) -> None:
        self.executable = check_platform(executable)
        self._initializer = _pickle_initializer(initializer, initargs) if initializer is not None else None
        self._variables = [(pickle(variable), variable) for variable in context_vars]
        self._relay = LogRelay(dict(self._variables)) if logs else None
        self._functions = Functions()
        self.inner_threads = inner_threads
        self._inner_threads_forced = inner_threads_forced
        self._nice = nice
        self._workers: set[ProcessWorker] = set()
        self._spare = Spare(self._new_child, lambda: bool(self._workers) and not self._closed)
        # Memory of arguments, and what was shared by name of the user.
        self._memory = LazyMemory()
        self._memory.has_spare_core = self._has_spare_core
        self._shared: weakref.WeakSet[Shared[Any]] = weakref.WeakSet()
        self._tending: asyncio.TimerHandle | None = None
        # For workers that wait for room.
        self._relieving: set[asyncio.Task[None]] = set()
        self._closed = False

    def describe(self) -> str:
        return self.executable

    def encoder(self, sharing: Sharing, *, single: bool = False, at_once: bool = False) -> ProcessEncoder:
        return ProcessEncoder(self._functions, self._variables, self._memory, sharing, single=single, at_once=at_once)

    async def share(self, value: Any, mode: MmapMode, sharing: Sharing) -> Shared[Any]:
        shared = await in_thread(lambda: self._memory.get().share(value, mode, sharing.temp_folder))
        self._shared.add(shared)
        return shared

    def start(self, loop: asyncio.AbstractEventLoop, events: WorkerEvents) -> ProcessWorker:
        child = self._spare.take() or self._new_child()
        worker = ProcessWorker(
            loop,
            child,
            events,
            self._workers.discard,
            lambda: self._plan_tending(loop),
            lambda worker: self._relieve(loop, worker),
            self._relay,
        )
        self._workers.add(worker)
        self._memory.on_unused = lambda: self._on_unused(loop)
        self._memory.on_shortage = lambda: self._on_shortage(loop)
        if self._memory.is_made:  # the first call's arguments may have been written before there was a loop to tell
            self._plan_tending(loop)
        worker.set_up(self._setup())
        self._spare.start_later(loop)
        return worker

    def _new_child(self) -> Child:
        return Child(self.executable, logs=self._relay is not None)

    def limit_threads(self, count: int, forced: bool) -> bool:
        wanted = count, forced
        changed = wanted != (self.inner_threads, self._inner_threads_forced)
        self.inner_threads, self._inner_threads_forced = wanted
        return changed

    def start_spare(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start the spare now instead of a little later."""
        self._spare.start(loop)

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
        self._close_memory()
        await self._spare.wait_until_gone()
        if self._relay is not None:
            await self._relay.aclose()

    def kill_all(self) -> None:
        self._closed = True
        self._close_memory()
        children = [worker.child for worker in self._workers] + self._spare.give_up()
        self._workers.clear()
        for child in children:
            child.kill()
        for child in children:
            child.reap()
        if self._relay is not None:
            self._relay.close_now()

    # Shared memory

    def _has_spare_core(self) -> bool:
        """Whether a core is left besides that of the thread that asks, any one, and those of workers with calls."""
        busy = sum(not worker.is_idle() for worker in self._workers.copy())
        return busy + 2 <= cpu_count()

    def _plan_tending(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._tending is None and not self._closed:
            self._tending = loop.call_later(_UNUSED_SECONDS / 2, self._tend, loop)

    def _tend(self, loop: asyncio.AbstractEventLoop) -> None:
        """Give memory back that nobody has used for a while; look again if there is some that was used lately."""
        self._tending = None
        unused, remains = self._memory.trim(time.monotonic() - _UNUSED_SECONDS)
        for worker in self._workers:
            worker.loans.discard(unused)
            if worker.is_idle():
                worker.loans.free_unused()
            remains = remains or worker.loans.has_unused
        if remains:
            self._plan_tending(loop)

    def _on_unused(self, loop: asyncio.AbstractEventLoop) -> None:
        """Memory of arguments has become free. Called in any thread, by finalisers."""
        if self._tending is None:
            with contextlib.suppress(RuntimeError):  # the loop has closed
                loop.call_soon_threadsafe(self._plan_tending, loop)

    def _on_shortage(self, loop: asyncio.AbstractEventLoop) -> None:
        """Have workers free what they keep for results. Called in a thread, which waits for it."""
        deadline = time.monotonic() + _FREEING_SECONDS
        asked = threading.Event()

        def ask() -> None:
            for worker in self._workers:
                worker.loans.free_unused_now()
            asked.set()

        with contextlib.suppress(RuntimeError):  # the loop has closed
            loop.call_soon_threadsafe(ask)
            asked.wait(_FREEING_SECONDS)
        while self._are_freeing() and time.monotonic() < deadline:
            time.sleep(0.001)

    def _are_freeing(self) -> bool:
        return any(worker.loans.is_freeing for worker in self._workers.copy())

    def _relieve(self, loop: asyncio.AbstractEventLoop, worker: ProcessWorker) -> None:
        """*worker* finds no room for a result: keep nothing for later, then tell it."""

        async def relieve() -> None:
            try:
                await in_thread(self._memory.give_back)
                if self._tending is not None:
                    self._tending.cancel()
                self._tend(loop)
            finally:
                worker.loans.tell_relieved()

        task = loop.create_task(relieve())
        self._relieving.add(task)
        task.add_done_callback(self._relieving.discard)

    def _close_memory(self) -> None:
        if self._tending is not None:
            self._tending.cancel()
            self._tending = None
        for shared in list(self._shared):
            shared.close()
        self._memory.close()

    def _setup(self) -> dict[str, Any]:
        threads = str(self.inner_threads)
        return {
            "argv": sys.argv[:] if hasattr(sys, "argv") else [],
            "environ": {
                name: threads for name in _THREAD_VARIABLES if self._inner_threads_forced or name not in os.environ
            },
            "level": nesting_level() + 1,
            "nice": self._nice,
            "initializer": self._initializer,
        }


def _pickle_initializer(initializer: Callable[..., object], initargs: tuple[Any, ...]) -> bytes:
    try:
        return pickle((initializer, initargs))
    except Exception as error:
        raise unpicklable_call(initializer, initargs, {}, name_of(initializer), None, error) from error
