"""What a running dump or load tells the user: a bar, or counts of bytes for a function. On the event loop."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aparallel._ground.bars import checked_progress, load_tqdm
from aparallel._ground.hop import in_thread

if TYPE_CHECKING:
    from collections.abc import Callable

    from aparallel._ground.bars import Bar, ProgressOption


class Meter:
    """How far a thread is, in bytes.

    Attributes:
        of: tells the bytes done; set by the thread, called on the loop.
        total: how many there are, or None while nobody knows.
    """

    __slots__ = ("of", "total")

    def __init__(self, total: int | None = None) -> None:
        self.of: Callable[[], int] = lambda: 0
        self.total = total

    @property
    def done(self) -> int:
        return self.of()


class Progress:
    """Tells one run's progress.

    What the user's function raises, :meth:`advance` and :meth:`finish` raise. It is never given the same counts twice,
    and as the last ones, if the run succeeds, ``(n, n)``.
    """

    def __init__(self, fn: Callable[[int, int | None], object] | None, bar: Bar | None) -> None:
        self._fn = fn
        self._bar = bar
        self._given: tuple[int, int | None] = (0, None)

    @classmethod
    async def opened(cls, progress: ProgressOption, name: str) -> Progress:
        """Open what ``progress=`` asks for.

        Raises:
            ModuleNotFoundError: ``progress=True`` and tqdm is not installed.
            TypeError: it can be none.
        """
        if not isinstance(checked_progress(progress), bool):
            return cls(progress, None)  # type: ignore[arg-type]
        return cls(None, (await in_thread(load_tqdm))(desc=name, unit="B", unit_scale=True) if progress else None)

    def watching(self, meter: Meter) -> Callable[[], None] | None:
        """Return a function that advances to where *meter* is, or None if nobody wants to know."""
        if self._fn is None and self._bar is None:
            return None
        return lambda: self.advance(meter.done, meter.total)

    def advance(self, done: int, total: int | None = None) -> None:
        """Take note that *done* bytes of *total* are done."""
        before, _ = self._given
        if done <= before:
            return
        self._given = (done, total)
        if self._bar is not None:
            self._bar.total = total
            self._bar.update(done - before)
        if self._fn is not None:
            self._fn(done, total)

    def finish(self, total: int) -> None:
        """Take note that all is done."""
        before, known = self._given
        if (before, known) == (total, total):
            return
        self._given = (total, total)
        if self._bar is not None:
            self._bar.total = total
            self._bar.update(total - before)
        if self._fn is not None:
            self._fn(total, total)

    def close(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.close()
