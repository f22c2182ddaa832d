"""What may be given as ``progress=``: tqdm's bar, of which here is what we use and how it is loaded, or a function."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, cast

from aparallel._ground.awaiting import is_coroutine_function

if TYPE_CHECKING:
    from collections.abc import Callable

    ProgressOption = bool | Callable[[int, int | None], object]


def checked_progress(progress: ProgressOption) -> ProgressOption:
    """Return *progress* if it can be one.

    Raises:
        TypeError: it is neither a bool nor a function, or one that would have to be awaited.
    """
    if not (isinstance(progress, bool) or callable(progress)):
        raise TypeError(f"progress={progress!r} is not True, False or a function of (done, total).")
    if is_coroutine_function(progress):
        raise TypeError(f"progress={progress!r} is a coroutine function, and nobody would await it.")
    return progress


class Bar(Protocol):
    """What we use of tqdm's bar, which ships no types."""

    total: int | None

    def update(self, n: int) -> object: ...
    def refresh(self) -> object: ...
    def close(self) -> object: ...


def load_tqdm() -> Callable[..., Bar]:
    """Import tqdm's bar for this surrounding, a terminal or a notebook.

    The first time takes about 100 ms, and from Python 3.14 on starts a process: not on the event loop.

    Raises:
        ModuleNotFoundError: it is not installed; the message says how to.
    """
    try:
        import tqdm.auto
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "progress=True shows tqdm's bar, and tqdm is not installed. "
            "Run pip install 'aparallel[progress]', or pass a function of (done, total) as progress=.",
            name=error.name,
        ) from error
    bar = tqdm.auto.tqdm
    bar.get_lock()  # else the first bar makes it: a lock of multiprocessing, which may have to start its tracker
    return cast("Callable[..., Bar]", bar)
