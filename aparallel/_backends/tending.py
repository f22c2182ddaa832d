"""The shared memory that a pool has for arguments, and its care: what is kept for later goes back in time."""

from __future__ import annotations

import contextlib
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any

from aparallel._ground.cpus import cpu_count
from aparallel._ground.hop import in_thread
from aparallel._transfer.shipment import LazyMemory

if TYPE_CHECKING:
    import asyncio

    from aparallel._backends.process_worker import ProcessWorker
    from aparallel._ground.sharing import MmapMode, Shared

# Shared memory that was used is kept so long for the next use: new memory costs ten times what copying does.
_UNUSED_SECONDS = 0.5

# Workers that are asked to free memory are waited for so long at most: one that runs a call hears of it afterwards.
_FREEING_SECONDS = 0.25


class Tending:
    """Gives memory back that nobody uses, here and in the workers, after a while or when memory is short.

    Invariant: while something is kept that may go back later, ``_timer`` is set, or is about to be.

    Args:
        workers: those of the pool, as they come and go.

    Attributes:
        memory: what arguments are written into.
    """

    def __init__(self, workers: set[ProcessWorker]) -> None:
        self.memory = LazyMemory(self._on_unused, self._has_spare_core, self._on_shortage)
        # What the user shares by pool.share(): closed with the pool.
        self._shared: weakref.WeakSet[Shared[Any]] = weakref.WeakSet()
        self._workers = workers
        # The pool's, from its first worker on.
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        # For workers that wait for room.
        self._relieving: set[asyncio.Task[None]] = set()
        self._is_closed = False

    def begin(self, loop: asyncio.AbstractEventLoop) -> None:
        """Tend on *loop* from now on. The first call's arguments may have been written before there was one."""
        self._loop = loop
        if self.memory.is_made:
            self.plan()

    async def share(self, value: Any, mode: MmapMode, folder: str | None) -> Shared[Any]:
        """Write *value* into shared memory, in a thread, until it is closed."""
        shared = await in_thread(lambda: self.memory.get().share(value, mode, folder))
        self._shared.add(shared)
        return shared

    def plan(self) -> None:
        """Look in a while whether there is something to give back."""
        if self._timer is None and not self._is_closed and self._loop is not None:
            self._timer = self._loop.call_later(_UNUSED_SECONDS / 2, self._tend)

    def _tend(self) -> None:
        """Give memory back that nobody has used for a while; look again if there is some that was used lately."""
        self._timer = None
        unused, remains = self.memory.trim(time.monotonic() - _UNUSED_SECONDS)
        for worker in self._workers:
            worker.loans.discard(unused)
            if worker.is_idle():
                worker.loans.free_unused()
            remains = remains or worker.loans.has_unused
        if remains:
            self.plan()

    def close(self) -> None:
        """Close what is shared, and the memory: at once, or when it is made."""
        self._is_closed = True
        self._stop_timer()
        for shared in list(self._shared):
            shared.close()
        self.memory.close()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # What the memory asks and tells, in any thread

    def _has_spare_core(self) -> bool:
        """Whether a core is left besides that of the thread that asks, any one, and those of workers with calls."""
        busy = sum(not worker.is_idle() for worker in self._workers.copy())
        return busy + 2 <= cpu_count()

    def _on_unused(self) -> None:
        """Memory of arguments has become free. Called by finalisers."""
        if self._timer is None and self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has closed
                self._loop.call_soon_threadsafe(self.plan)

    def _on_shortage(self) -> None:
        """Have workers free what they keep for results. Called by a thread that waits for it."""
        if self._loop is None:
            return
        deadline = time.monotonic() + _FREEING_SECONDS
        asked = threading.Event()

        def ask() -> None:
            for worker in self._workers:
                worker.loans.free_unused_now()
            asked.set()

        with contextlib.suppress(RuntimeError):  # the loop has closed
            self._loop.call_soon_threadsafe(ask)
            asked.wait(_FREEING_SECONDS)
        while self._are_freeing() and time.monotonic() < deadline:
            time.sleep(0.001)

    def _are_freeing(self) -> bool:
        return any(worker.loans.is_freeing for worker in self._workers.copy())

    # What workers ask

    def relieve(self, worker: ProcessWorker) -> None:
        """*worker* finds no room for a result, and waits: keep nothing for later, then tell it."""
        assert self._loop is not None
        task = self._loop.create_task(self._relieve())
        self._relieving.add(task)
        task.add_done_callback(self._relieving.discard)
        # Whatever comes of it, be it cancelled before its first step.
        task.add_done_callback(lambda _: worker.loans.tell_relieved())

    async def _relieve(self) -> None:
        await in_thread(self.memory.give_back)
        self._stop_timer()
        self._tend()
