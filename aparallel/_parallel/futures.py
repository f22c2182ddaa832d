"""What stands for a single call that is on its way, or is to begin."""

from __future__ import annotations

import asyncio
import warnings
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from aparallel._ground.shield import outlast
from aparallel._parallel.options import UNSET, Unset

if TYPE_CHECKING:
    from collections.abc import Generator
    from types import FrameType

    from aparallel._ground.call import Call
    from aparallel._parallel.single_queue import JointOwner
    from aparallel.abc import OnCancel

T = TypeVar("T")


class RunOptions(NamedTuple):
    """What the caller of a single call asks for."""

    timeout: float | None = None
    on_cancel: OnCancel | None = None
    queue_timeout: float | Unset | None = UNSET
    retries: int = 0


# What is given for a call that asks for nothing. It is recognised by its identity, as to look at each option would take
# longer than all else that is decided by them.
USUAL = RunOptions()


class Beginner(Protocol):
    """Who begins calls."""

    def begin(self, future: CallFuture[Any]) -> None:
        """Begin the call that *future* requests."""

    def begin_soon(self, future: CallFuture[Any]) -> None:
        """Begin it when it has its turn, in the next ticks."""


class Home(Protocol):
    """Who stops a call and must be told of its end: the queue that it is to begin from, and then what its pool owes."""

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
        request: the call, and what is asked for; gone once it has begun.
    """

    # What is set for each call. The rest, which few need, is in the dict that a future has, and takes 0.3 µs to make.
    __slots__ = ("beginner", "home", "is_awaited", "place", "request")

    home: Home
    place: tuple[JointOwner, int] | None
    request: tuple[Call[T], RunOptions]
    is_awaited: bool
    # What has to end before it counts as cancelled; None as long as nobody has cancelled it.
    _stopping: list[asyncio.Future[Any]] | None = None

    def move(self, loop: asyncio.AbstractEventLoop) -> None:
        """Have it belong to *loop*. It has not begun, and nobody waits for it yet.

        A coroutine may be made in one loop and handed to another, as ``run_coroutine_threadsafe`` does.
        """
        asyncio.Future.__init__(self, loop=loop)

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

    def close(self) -> None:
        """Stop it, as one closes a coroutine, which this may have been: nothing happens once it has ended."""
        self.cancel()


class SteppedFuture(AwaitedFuture[T]):
    """A call that has begun and is the coroutine of a task, which steps through it.

    Other tasks may await it, as they may any future. But as a coroutine it is that one task's, as coroutines are: a
    second one, whose steps would come between, is refused.
    """

    __slots__ = ()

    __name__ = "Pool.run"  # in the repr of such a task

    # What waits for the outcome: a generator.
    _steps: Any

    def send(self, value: Any) -> Any:
        try:
            self._check_step()
            if not self.done():  # else its task is not woken
                raise RuntimeError(f"coroutine {self.__name__!r} is being awaited already")
            return self._steps.send(value)
        finally:
            del self  # an error that it holds refers to this frame

    def throw(self, *error: Any) -> Any:
        try:
            self._check_step()
            return self._steps.throw(*error)
        finally:
            del self, error

    def _check_step(self) -> None:
        if not self._steps.gi_suspended:
            raise RuntimeError(f"cannot reuse already awaited coroutine {self.__name__!r}")

    def close(self) -> None:
        self._steps.close()
        self.cancel()

    # Where it is, for those who look into a task.

    @property
    def cr_frame(self) -> FrameType | None:
        frame: FrameType | None = self._steps.gi_frame
        return frame

    @property
    def cr_running(self) -> bool:
        return bool(self._steps.gi_running)

    @property
    def cr_suspended(self) -> bool:
        return bool(self._steps.gi_suspended)


class RunCoroutine(SteppedFuture[T]):
    """A call of ``Pool.run`` that has not begun: a coroutine, which becomes a future when it is asked for one.

    ``asyncio.gather``, ``wait_for`` and ``shield`` ask, and would make a task of what is no future: half of the time
    that a small call takes. ``create_task`` and task groups do not ask, and take nothing but coroutines. So its class
    says what it is. When somebody asks, or awaits it, it begins and is an :class:`AwaitedFuture` from then on, no
    coroutine any more, for ``asyncio.wait`` refuses those. When a task takes a first step through it, it begins and is
    a :class:`SteppedFuture`.

    Attributes:
        beginner: who begins the call.
    """

    __slots__ = ()

    beginner: Beginner

    cr_frame = None
    cr_running = cr_suspended = False

    @property
    def _asyncio_future_blocking(self) -> bool:  # type: ignore[override]
        """What tells asyncio whether something is a future: that it is there and not None."""
        self.__class__ = AwaitedFuture  # type: ignore[assignment]
        try:
            self.beginner.begin_soon(self)
        except BaseException:
            asyncio.Future.cancel(self)
            raise
        return False  # as of any future that nobody awaits

    def _begin(self, kind: type[AwaitedFuture[Any]]) -> None:
        self.__class__ = kind  # type: ignore[assignment]
        try:
            self.beginner.begin(self)
        except BaseException:
            asyncio.Future.cancel(self)
            raise
        finally:
            del self  # an error that it holds refers to this frame

    def _become(self, kind: type[AwaitedFuture[Any]]) -> None:
        self.__class__ = kind  # type: ignore[assignment]
        del self.request

    def __await__(self) -> Generator[Any, None, T]:
        self._begin(AwaitedFuture)
        try:
            return (yield from self.__await__())  # of what it is now
        finally:
            del self

    # Coroutines have none, and a call that is unpacked by mistake is not to begin.
    __iter__ = None  # type: ignore[assignment]

    def add_done_callback(self, *args: Any, **kwargs: Any) -> None:
        self._asyncio_future_blocking  # noqa: B018 (to ask for it is what begins it)
        self.add_done_callback(*args, **kwargs)

    def send(self, value: Any) -> Any:
        self._begin(SteppedFuture)
        self._steps = self.__await__()
        try:
            return self._steps.send(value)
        finally:
            del self

    def throw(self, *error: Any) -> Any:
        self._become(SteppedFuture)
        asyncio.Future.cancel(self)
        self._steps = self.__await__()
        try:
            return self._steps.throw(*error)
        finally:
            del self, error

    def close(self) -> None:
        self.cancel()

    def cancel(self, msg: Any | None = None) -> bool:
        self._become(AwaitedFuture)
        return asyncio.Future.cancel(self, msg)

    def __del__(self) -> None:
        message = f"coroutine {self.__name__!r} was never awaited"
        origin = getattr(self, "_source_traceback", None)
        if origin is not None:  # in debug mode, where other coroutines say so, too
            message += "\nCoroutine created at (most recent call last)\n" + "".join(origin.format()).rstrip()
        warnings.warn(message, RuntimeWarning, source=self, stacklevel=2)
