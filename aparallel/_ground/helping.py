"""A second thread that takes part in what its caller does, for as long as that takes.

Threads share work in three ways here, as the work is of three kinds. Blocks of memory may be written in any order, so
two threads begin at the two ends and meet somewhere (``both_ends.py``). An array is read from a file in pieces by up to
four threads, which stay for the file's next array; what is done with the pieces is done in their order, by whoever
finds one due (``_persist/filling.py``). A file takes one writer at a time, so a second thread does something else with
the same bytes: it sums them up (``_persist/summing.py``). The first and the last need one thread for some milliseconds,
which is this one.
"""

from __future__ import annotations

import _thread

TYPE_CHECKING = False  # loaded in workers
if TYPE_CHECKING:
    from collections.abc import Callable

    from aparallel._ground.cores import Helped


class Helper:
    """Runs ``fn(give_way, *args)``, which must not raise, in a thread that ends with it. :meth:`wait` must follow.

    A bare thread: a ``threading.Thread`` takes three times as long to start, and everybody would see it in their lists.
    Its priority is no lower: preempted with the GIL in its hands, it would keep an event loop waiting for longer. It
    runs on any core but its caller's, if there are several. Both give way to other threads every 0.1 ms or so, by the
    function that *fn* is given and by :meth:`give_way`: two threads that are busy may leave an event loop no core.

    Attributes:
        is_there: whether a thread could be had. Without one, the caller does it all.
        give_way: to be called by the caller.
    """

    __slots__ = ("_gone", "give_way", "is_there")

    def __init__(self, fn: Callable[..., object], *args: object) -> None:
        from aparallel._ground.cores import Helped  # and ctypes with it, which a worker loads only for arrays

        helped = Helped()
        self.give_way = helped.give_way
        self._gone = _thread.allocate_lock()
        self._gone.acquire()
        self.is_there = True
        try:
            # In a list, to be emptied: a thread refers to its arguments until its very end.
            _thread.start_new_thread(_run, ([fn, args], self._gone, helped))
        except RuntimeError:  # no more threads, or the interpreter is ending
            self.is_there = False
            self._gone.release()

    def wait(self) -> None:
        """Return when it is done, and refers to nothing of the caller's any more."""
        self._gone.acquire()


def _run(work: list[object], gone: _thread.LockType, helped: Helped) -> None:
    try:
        _do(work, helped.by_this_thread())
    finally:
        gone.release()


def _do(work: list[object], give_way: Callable[[], None]) -> None:
    fn: Callable[..., object]
    args: tuple[object, ...]
    fn, args = work  # type: ignore[assignment]
    work.clear()
    fn(give_way, *args)
