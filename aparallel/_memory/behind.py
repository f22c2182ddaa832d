"""Work that nobody waits for: recency, sweeping. One thread does it, which ends when there is none."""

from __future__ import annotations

import _thread
import atexit
import heapq
import itertools
import logging
import threading
import time
from typing import TYPE_CHECKING

from aparallel._ground.forks import renew_after_fork

if TYPE_CHECKING:
    from collections.abc import Callable

_logger = logging.getLogger("aparallel.memory")


class Behind:
    """Runs functions later, in a thread of its own that lives while any are due."""

    def __init__(self) -> None:
        self.after_fork()
        renew_after_fork(self)
        atexit.register(self.run_all)

    def after_fork(self) -> None:
        """Leave to the parent what it has to do."""
        self._changed = threading.Condition()
        # Due times with their work; guarded by _changed. A thread runs while this is not empty.
        self._due: list[tuple[float, int, Callable[[], object]]] = []
        self._order = itertools.count()
        self._has_thread = False

    def call_later(self, seconds: float, work: Callable[[], object]) -> None:
        """Run *work* in *seconds*, or when the interpreter exits. What it raises is logged."""
        with self._changed:
            heapq.heappush(self._due, (time.monotonic() + seconds, next(self._order), work))
            self._changed.notify()
            if self._has_thread:
                return
            self._has_thread = True
        try:
            # threading.Thread.start waits until the thread runs, which the loop cannot afford.
            _thread.start_new_thread(self._run, ())
        except RuntimeError:  # there are too many, or the interpreter is shutting down: atexit does the work
            self._has_thread = False

    def run_all(self) -> None:
        """Run now what is due later."""
        while True:
            with self._changed:
                if not self._due:
                    return
                _, _, work = heapq.heappop(self._due)
            _run_logged(work)

    def _run(self) -> None:
        while True:
            with self._changed:
                while self._due and (wait := self._due[0][0] - time.monotonic()) > 0:
                    self._changed.wait(wait)
                if not self._due:
                    self._has_thread = False
                    return
                _, _, work = heapq.heappop(self._due)
            _run_logged(work)


def _run_logged(work: Callable[[], object]) -> None:
    try:
        work()
    except Exception:
        _logger.exception("Keeping a memory's directory in order failed; the next attempt may succeed.")


behind = Behind()
