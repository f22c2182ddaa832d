"""What a running gather or stream tells the user: lines, a bar, or counts for a function."""

from __future__ import annotations

import math
import sys
import time
from typing import TYPE_CHECKING

from aparallel._ground.bars import load_tqdm

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TextIO

    from aparallel._ground.bars import ProgressOption

# Above this, verbose= prints a line for every slice of completions; see next_line_at for what is below.
EVERY_SLICE = 10
# Above this, verbose= prints to stdout instead of stderr, as joblib does.
TO_STDOUT = 50


class Reporter:
    """Tells the user how far a run is.

    It lives on the event loop and belongs to one run. Counts only grow: *done* is always the number
    of calls that ended since the start, so a slice that is reported late or twice does no harm.

    Args:
        n_jobs: workers of this run, for the lines.
        verbose: 0 and less prints nothing; the higher, the more lines; see :func:`next_line_at`.
        progress: True for tqdm's bar, or a function that is given ``(done, total)`` after each slice
            of completions, total being None while it is unknown. A run that succeeds gives it
            ``(n, n)`` once, as the last. What the function raises, :meth:`advance` raises.
        total: number of calls, or None while it is unknown.
        stream: where lines and bar go instead of stderr.
        name: what runs, for the lines.
        clock: a monotonic clock, in seconds.

    Raises:
        ModuleNotFoundError: ``progress=True`` and tqdm is not installed.
    """

    def __init__(
        self,
        n_jobs: int,
        verbose: int,
        progress: ProgressOption,
        total: int | None,
        stream: TextIO | None = None,
        *,
        name: str = "gather_parallel",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._done = 0
        self._total = total
        self._lines = _Lines(name, n_jobs, verbose, stream, clock) if verbose > 0 else None
        has_console = stream is not None or sys.stderr is not None
        self._bar = load_tqdm()(desc=name, total=total, file=stream) if progress is True and has_console else None
        self._function = _Function(progress) if callable(progress) else None
        # Compared with None: a bar without a total has no truth value.
        self._silent = self._lines is None and self._bar is None and self._function is None

    def total_known(self, total: int) -> None:
        """Take note of how many calls there are, once the last one was drawn."""
        self._total = total
        if self._bar is not None:
            self._bar.total = total
            self._bar.refresh()

    def advance(self, done: int) -> None:
        """Take note that *done* calls of this run have ended by now."""
        if self._silent or done <= self._done:
            return
        newly, self._done = done - self._done, done
        if self._lines is not None:
            self._lines.advance(done, self._total)
        if self._bar is not None:
            self._bar.update(newly)
        if self._function is not None:
            self._function(done, self._total)

    def close(self, failed: bool) -> None:
        """Say how the run ended; *failed* also when it was cancelled or its stream left early."""
        if self._silent:
            return
        if self._bar is not None:
            self._bar.close()
        if self._lines is not None:
            self._lines.close(self._done, self._total, failed=failed)
        if self._function is not None and not failed:
            self._function(self._done, self._done)


class _Function:
    """The user's function, never given the same counts twice."""

    def __init__(self, fn: Callable[[int, int | None], object]) -> None:
        self._fn = fn
        self._given: tuple[int, int | None] | None = None

    def __call__(self, done: int, total: int | None) -> None:
        if self._given != (done, total):
            self._given = (done, total)
            self._fn(done, total)


class _Lines:
    def __init__(self, name: str, n_jobs: int, verbose: int, stream: TextIO | None, clock: Callable[[], float]) -> None:
        self._prefix = f"[{name}(n_jobs={n_jobs})]: "
        self._verbose = verbose
        self._stream = stream
        self._clock = clock
        self._start = clock()
        self._next = 1

    def advance(self, done: int, total: int | None) -> None:
        if done < self._next or done == total:  # the last one is close()'s to tell
            return
        self._next = next_line_at(done, total, self._verbose)
        elapsed = self._clock() - self._start
        if total is None:
            self._print(f"Done {done:3d} tasks      | elapsed: {format_span(elapsed)}")
        else:
            remaining = format_span(elapsed / done * (total - done))
            self._print(f"Done {done:3d} out of {total:3d} | elapsed: {format_span(elapsed)} remaining: {remaining}")

    def close(self, done: int, total: int | None, *, failed: bool) -> None:
        elapsed = format_span(self._clock() - self._start)
        if not failed:
            self._print(f"Done {done:3d} out of {done:3d} | elapsed: {elapsed} finished")
        elif total is None:
            self._print(f"Done {done:3d} tasks      | elapsed: {elapsed} stopped")
        else:
            self._print(f"Done {done:3d} out of {total:3d} | elapsed: {elapsed} stopped")

    def _print(self, text: str) -> None:
        # The standard streams are looked up for each line: tests, notebooks and servers replace them.
        # They are None where a program has no console.
        stream = self._stream or (sys.stdout if self._verbose > TO_STDOUT else sys.stderr)
        if stream is not None:
            stream.write(f"{self._prefix}{text}\n")
            stream.flush()


def next_line_at(done: int, total: int | None, verbose: int) -> int:
    """Return the count at which the next progress line is due, after one at *done*.

    With a known total about *verbose* lines are spread evenly over it. Without one, lines grow apart,
    so that a long run prints few and a short one some: the k-th is due at ``k² (11 - verbose)² / 2``
    calls, which is joblib's cadence. Above :data:`EVERY_SLICE` every slice of completions has its line.
    """
    if verbose > EVERY_SLICE:
        return done + 1
    if total is not None:
        step = total // (verbose + 1) + 1
        return (done // step + 1) * step
    scale = (EVERY_SLICE + 1 - verbose) ** 2 / 2
    lines = math.isqrt(int(done / scale))
    return max(math.ceil((lines + 1) ** 2 * scale), done + 1)


def format_span(seconds: float) -> str:
    """Return a time span in seven characters or a few more, with one decimal: ``0.1s``, ``1.5min``, ``2.0h``."""
    if seconds < 60:
        return f"{seconds:6.1f}s"
    if seconds < 3600:
        return f"{seconds / 60:4.1f}min"
    return f"{seconds / 3600:6.1f}h"
