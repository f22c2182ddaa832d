"""What stands for a single call that is on its way."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from aparallel._ground.shield import outlast

if TYPE_CHECKING:
    from collections.abc import Generator

    from aparallel._parallel.runs import Runs

T = TypeVar("T")


class Home(Protocol):
    """Who is answerable for calls."""

    def stop(self, future: CallFuture[Any]) -> list[asyncio.Future[Any]]:
        """Stop its call, which nobody wants any more; return what to wait for until it has stopped."""

    def forget(self, future: CallFuture[Any]) -> None:
        """It has ended, and not by an outcome."""


class CallFuture(asyncio.Future[T]):
    """The outcome of a single call, and the way to cancel it.

    Cancellation: who waits for a call goes on when that has stopped. Who holds the future, as ``asyncio.gather`` does,
    sees it cancelled then.

    Attributes:
        is_awaited: a task awaits it, is to be woken at once when it is cancelled, and then awaits :meth:`stopped`.
            There the scopes of anyio, which cancel again at every step, are shielded off.
        place: whose call it is, and its index there; None until it waits for a worker.
    """

    # What is set for each call. The rest, which few need, is in the dict that a future has, and takes 0.3 µs to make.
    __slots__ = ("home", "is_awaited", "place")

    home: Home
    place: tuple[Runs, int] | None
    is_awaited: bool
    # What is waited for since it was cancelled; None before.
    _stopping: list[asyncio.Future[Any]] | None = None

    @property
    def is_wanted(self) -> bool:
        """Whether anyone waits for its outcome."""
        return self._stopping is None and not self.done()

    def cancel(self, msg: Any | None = None) -> bool:
        if self.done():
            return False
        if self._stopping is None:
            self._stopping = self.home.stop(self)
            for stopping in self._stopping:
                stopping.add_done_callback(lambda _: self._check_stopped(msg))
        if self.is_awaited:
            super().cancel(msg)
        self._check_stopped(msg)
        return True

    def _check_stopped(self, msg: Any | None) -> None:
        if all(stopping.done() for stopping in self._stopping or ()):
            super().cancel(msg)
            self.home.forget(self)

    async def stopped(self) -> None:
        """Wait until its call has stopped, if it was cancelled, whoever cancels this task meanwhile."""
        if self._stopping:
            await outlast(self._stopping)


class AwaitedFuture(CallFuture[T]):
    """One that knows by itself that a task awaits it. That takes a generator, 0.5 µs each time."""

    __slots__ = ()

    def __await__(self) -> Generator[Any, None, T]:
        self.is_awaited = True
        try:
            return (yield from super().__await__())
        except asyncio.CancelledError:
            yield from self.stopped().__await__()
            raise
        finally:
            del self  # an error that it holds refers to this frame

    __iter__ = __await__
