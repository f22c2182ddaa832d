"""The seams for those who extend aparallel: backends and their workers, compressors of files, stores of results.

A pool drives any backend through these classes, on its event loop's thread and without waiting:
every method returns at once and what happens is told through :class:`WorkerEvents`.
``aparallel.testing`` has a suite that a new backend should pass.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from aparallel._ground.call import name_of
from aparallel._ground.encoding import DirectEncoder, Drawn, Encoder, Function, Moments
from aparallel._ground.outcomes import run_call
from aparallel._ground.sharing import Shared
from aparallel._ground.timings import Timing, Timings

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable
    from contextvars import Context

    from aparallel._ground.sharing import MmapMode
    from aparallel._ground.store import Limits, Listed, Place, Record, Store, Totals

__all__ = [
    "Backend",
    "Batch",
    "Compressor",
    "DirectEncoder",
    "Drawn",
    "Encoder",
    "Exit",
    "Function",
    "Later",
    "Limits",
    "Listed",
    "Moments",
    "OnCancel",
    "Owner",
    "Place",
    "Record",
    "Sharing",
    "Store",
    "Timing",
    "Timings",
    "Totals",
    "Worker",
    "WorkerEvents",
    "name_of",
    "run_call",
]

OnCancel = Literal["kill", "wait", "abandon"]

_OF_STORES = frozenset({"Limits", "Listed", "Place", "Record", "Store", "Totals"})

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """Load what stores need when it is asked for: calls need none of it."""
        if name not in _OF_STORES:
            raise AttributeError(f"module 'aparallel.abc' has no attribute {name!r}")
        from aparallel._ground import store

        return getattr(store, name)


class Sharing(NamedTuple):
    """How large buffers travel to workers that do not share the caller's memory, and back.

    Attributes:
        max_nbytes: buffers of more bytes go through shared memory; None for none.
        mmap_mode: how workers map arguments.
        temp_folder: where files without a name are made if memory is short; None for the system's own folder.
    """

    max_nbytes: int | None = 1024 * 1024
    mmap_mode: MmapMode = "r"
    temp_folder: str | None = None


class Owner(Protocol):
    """Who asked for calls and gets their outcomes."""

    context: Context
    """The context that the calls run in, where workers share the caller's memory. Copied for each call."""
    sharing: Sharing
    """How large buffers in the results travel, where workers do not."""


class Batch:
    """Calls of one owner and one function that travel together. They are split freely.

    Attributes:
        first: the index of the first one among the owner's calls; the others follow.
        payloads: a call each, as the backend's encoder made it.
        size: about how many bytes of them a message has to carry, where that is known and not little.
    """

    __slots__ = ("first", "function", "owner", "payloads", "size")

    def __init__(self, owner: Any, function: Function, first: int, payloads: list[Any], size: int = 0) -> None:
        self.owner = owner
        self.function = function
        self.first = first
        self.payloads = payloads
        self.size = size

    def __len__(self) -> int:
        return len(self.payloads)

    @property
    def last(self) -> int:
        """The index of the last one."""
        return self.first + len(self.payloads) - 1

    def split(self, count: int) -> tuple[Batch, Batch]:
        """Return the first *count* calls and the rest."""
        head, rest = self.part(0, count), self.part(count, len(self.payloads))
        rest.size = self.size - head.size  # nothing is lost by rounding
        return head, rest

    def part(self, start: int, end: int) -> Batch:
        """Return the calls from position *start* up to *end*."""
        payloads = self.payloads[start:end]
        size = self.size * len(payloads) // len(self.payloads) if self.size else 0
        return Batch(self.owner, self.function, self.first + start, payloads, size)


class Later:
    """An outcome still to be decoded off the loop: ``await later.get()`` gives it or raises. It is told alone."""

    __slots__ = ("get",)

    def __init__(self, get: Callable[[], Awaitable[Any]]) -> None:
        self.get = get


class Exit(NamedTuple):
    """How a worker ended.

    Attributes:
        unstarted: how many of the calls sent last never started.
        exitcode: None if a signal ended it or nobody knows.
        signal: the signal's number, or None.
        ready: whether it ever could run calls.
        error: why it could not, such as what its initializer raised.
    """

    unstarted: int = 0
    exitcode: int | None = None
    signal: int | None = None
    ready: bool = True
    error: BaseException | None = None

    def __str__(self) -> str:
        if self.signal is not None:
            import signal as signals

            try:
                name = signals.Signals(self.signal).name
            except ValueError:
                name = f"signal {self.signal}"
            return f"killed by {name}"
        return "vanished" if self.exitcode is None else f"exit code {self.exitcode}"


class WorkerEvents(Protocol):
    """What a worker tells its pool, always on the loop's thread.

    Never from inside a call to the worker, but for what ``look`` and ``recall`` bring about.
    """

    def on_ready(self) -> None:
        """It can run calls now. It may have been sent some before."""

    def on_outcomes(self, values: list[Any], failed: Sequence[int], seconds: float) -> None:
        """The next calls, in the order sent, have finished; together they ran for *seconds*.

        *values* holds an exception at each position in *failed*. A :class:`Later` is the only one, of either.
        """

    def on_recalled(self, count: int) -> None:
        """The *count* calls sent last were taken back: they have not started and never will."""

    def on_exit(self, exit: Exit) -> None:
        """It has ended and everything it held is released. Nothing follows."""


class Worker(ABC):
    """Runs calls one after another, in the order sent."""

    @abstractmethod
    def send(self, batches: Sequence[Batch]) -> None:
        """Give it calls to run after those that it has."""

    @abstractmethod
    def recall(self) -> None:
        """Take back every call that has not started; ``on_recalled`` follows, perhaps before this returns.

        Nothing is sent until then.
        """

    @abstractmethod
    def look(self) -> None:
        """Tell outcomes that exist but were kept back to travel with others."""

    @abstractmethod
    def running_since(self) -> float | None:
        """When the current call started, on ``time.monotonic``'s clock; None if no call runs.

        Now, for a call whose function is still being imported: that is not counted in its timeout.
        """

    @abstractmethod
    def kill(self) -> None:
        """End it now, whatever it runs; ``on_exit`` follows. Only where ``Backend.can_kill``."""

    @abstractmethod
    def retire(self) -> None:
        """End it when it is idle, cleanly; ``on_exit`` follows."""


class Backend(ABC):
    """Starts workers of one kind, for one pool on one loop.

    Attributes:
        name: for people.
        can_kill: a running call can be stopped.
        can_time: it can be stopped at any moment, so calls can have a timeout.
        on_cancel: what cancellation does unless the user says otherwise.
        shares_memory: calls get the caller's own objects. They run in a copy of ``Owner.context``, then; for
            workers elsewhere nobody makes a context.
        runs_on_loop: calls run on the pool's event loop. One that waits for other calls of the same pool has a place
            beside its own for them, then.
        start_holds_loop: to start a worker takes a moment, of the loop's time. One is started in each tick, then.
        max_outstanding: calls at most that a worker is given before it has told their outcomes.
    """

    name: str
    can_kill: bool
    can_time: bool
    on_cancel: OnCancel
    shares_memory: bool = True
    runs_on_loop: bool = False
    start_holds_loop: bool = False
    max_outstanding: int = 2048

    def describe(self) -> str:
        """Return what is started for a worker, for the message that says that it did not start."""
        return f"a worker of the backend {self.name!r}"

    @abstractmethod
    def encoder(self, sharing: Sharing, moments: Moments) -> Encoder:
        """Return a new encoder for calls of this pool, which are made in these *moments*."""

    async def share(self, value: Any, mode: MmapMode, sharing: Sharing) -> Shared[Any]:
        """Share *value* with all workers until it is closed. Workers that share the caller's memory need nothing."""
        return Shared(value, mode, array=value if hasattr(value, "__array_interface__") else None, release=None)

    @abstractmethod
    def start(self, loop: asyncio.AbstractEventLoop, events: WorkerEvents) -> Worker:
        """Start a worker and return at once; calls may be sent before it is ready.

        Raises:
            Exception: none can be had. If there is no other, the calls that wait end with this.
        """

    def limit_threads(self, count: int, forced: bool) -> bool:
        """Set how many threads libraries may use in each worker started from now on.

        *forced*: also where the environment says otherwise. Returns whether the present workers differ, and are to be
        replaced.
        """
        return False

    def start_spare(self, loop: asyncio.AbstractEventLoop) -> None:  # noqa: B027
        """Prepare what makes the next start fast, if anything does."""

    async def warm_up(self) -> None:  # noqa: B027
        """Load, off the loop, what calls may need here. Workers start meanwhile."""

    def rest(self) -> None:  # noqa: B027
        """Let go of what :meth:`start_spare` prepared: the last worker has left and no calls wait."""

    @property
    def is_unsettled(self) -> bool:
        """Whether callers must wait for :meth:`settle` before they get outcomes that have been told."""
        return False

    async def settle(self) -> None:  # noqa: B027
        """Wait for what belongs before those outcomes, such as log records of their calls; not for long."""

    async def aclose(self) -> None:  # noqa: B027
        """Release what the backend holds besides its workers, which have ended."""

    def kill_all(self) -> None:  # noqa: B027
        """End all workers at once, without a loop: the loop has closed, or the interpreter exits."""


class Compressor(ABC):
    """Compresses the chunks of a dumped file: ``dump(..., compress=Mine())``, ``load(..., compressors=[Mine()])``.

    Its methods are called from several threads at once. They should release the GIL.

    Attributes:
        name: what files say they are compressed with; 1 to 16 ASCII characters, and not one of aparallel's own.
    """

    name: str

    @abstractmethod
    def compress(self, data: memoryview, itemsize: int) -> bytes:
        """Compress a chunk of up to 4 MiB. *itemsize* is its numbers' size, or 1.

        What it returns has at least 1 byte and at most 5 MiB. What it raises, the dump raises.
        """

    @abstractmethod
    def decompress(self, data: memoryview, size: int) -> bytes:
        """Return the *size* bytes that *data* was made from. What comes in may be hostile: never give more.

        Raises:
            Exception: *data* is none of ours.
        """
