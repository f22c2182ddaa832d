"""The work of one thread done by two, for as long as it takes: the caller from the front, a helper from the back."""

from __future__ import annotations

from aparallel._ground.helping import Helper

TYPE_CHECKING = False  # loaded in workers
if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable
    from typing import TypeVar

    J = TypeVar("J")


def go_on() -> None:
    """Give way to nobody: for whoever does alone what two could do."""


def from_both_ends(fn: Callable[[J, Callable[[], object]], object], jobs: deque[J]) -> None:
    """Call *fn* with each of *jobs*, which are emptied; return when all is done and the helper is gone.

    Whoever is slower, as others have its core, does less. Without a second thread, the caller does it all. *fn* is also
    given what it is to call every 0.1 ms or so, to give way to an event loop: two threads that are busy may leave it no
    core, and it would wait for the end of a time slice, of some milliseconds.

    Raises:
        BaseException: the first one that *fn* raised. What had not begun by then is left undone.
    """
    failures: list[BaseException] = []
    helper = Helper(_work, fn, jobs, jobs.pop, failures)
    try:
        _work(helper.give_way, fn, jobs, jobs.popleft, failures)
    finally:
        jobs.clear()
        helper.wait()  # what it works with is the caller's
    try:
        if failures:
            raise failures[0]
    finally:
        failures.clear()  # an error's traceback has this frame


def _work(
    give_way: Callable[[], object],
    fn: Callable[[J, Callable[[], object]], object],
    jobs: deque[J],
    take: Callable[[], J],
    failures: list[BaseException],
) -> None:
    try:
        while jobs:
            try:
                job = take()
            except IndexError:  # the other one was quicker
                break
            fn(job, give_way)
    except BaseException as error:
        failures.append(error)
        jobs.clear()
