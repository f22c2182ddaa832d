"""tqdm's progress bar: what we use of it, and how it is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, cast

if TYPE_CHECKING:
    from collections.abc import Callable


class Bar(Protocol):
    """What we use of tqdm's bar, which ships no types."""

    total: int | None

    def update(self, n: int) -> object: ...
    def refresh(self) -> object: ...
    def close(self) -> object: ...


def load_tqdm() -> Callable[..., Bar]:
    """Import tqdm's bar for this surrounding, a terminal or a notebook.

    The first time takes about 100 ms: not on the event loop.

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
    return cast("Callable[..., Bar]", tqdm.auto.tqdm)
