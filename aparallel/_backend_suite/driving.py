"""Calls that run until a test lets them go on, and one worker driven by a test as a pool would."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from contextvars import Context
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from aparallel._backend_suite import calls
from aparallel._ground.call import delayed
from aparallel.abc import Batch, Exit, Later, Moments, Sharing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence

    from aparallel._ground.call import Call
    from aparallel.abc import Backend, Encoder

E = TypeVar("E", bound=Exception)

# What takes longer than this has failed. It is long, for machines that have much else to do.
PATIENCE_SECONDS = 30.0


async def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"waited {PATIENCE_SECONDS:g} seconds and still not: {what}"
        await asyncio.sleep(0.001)


async def error_of(kind: type[E], attempt: Awaitable[object]) -> E:
    """Return the error of this *kind* that *attempt* ends with; what else it raises is raised."""
    try:
        value = await attempt
    except kind as error:
        return error
    raise AssertionError(f"a {kind.__name__} was due, and there is {value!r}")


class Held:
    """A call that runs until it is let go on. It tells by files, which workers of all kinds can."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.call: Call[Any] = delayed(calls.hold)(folder)

    async def started(self) -> None:
        await until((self._folder / "started").exists, "the held call started")

    def has_ended(self) -> bool:
        return (self._folder / "ended").exists()

    def let_go(self) -> None:
        (self._folder / "let-go").touch()


@contextlib.contextmanager
def held() -> Iterator[Held]:
    """Make a call that is let go on at the end, whatever happens: nothing would end a thread that runs it."""
    with tempfile.TemporaryDirectory(prefix="aparallel-suite-", ignore_cleanup_errors=True) as folder:
        one = Held(Path(folder))
        try:
            yield one
        finally:
            one.let_go()


class Owner:
    """Of the calls that a test sends."""

    def __init__(self) -> None:
        self.context = Context()
        self.sharing = Sharing()


class Told:
    """What a worker has told: the events of one pool's slot, and whether they kept the rules."""

    def __init__(self) -> None:
        self.ready = 0
        self.values: list[Any] = []
        self.failed: list[int] = []
        self.recalled: list[int] = []
        self.exits: list[Exit] = []
        # In a call to the worker, which may tell nothing meanwhile.
        self.is_inside = False
        # What was told when it should not have been. It may come late, when nobody would see an error.
        self.broken: list[str] = []

    def _heed(self, event: str) -> None:
        if self.exits:
            self.broken.append(f"{event} after on_exit")
        if self.is_inside:
            self.broken.append(f"{event} from inside a call to the worker")

    def on_ready(self) -> None:
        self._heed("on_ready")
        self.ready += 1

    def on_outcomes(self, values: list[Any], failed: Sequence[int], seconds: float) -> None:
        self._heed("on_outcomes")
        if not values:
            self.broken.append("on_outcomes of no call")
        if len(values) > 1 and any(isinstance(value, Later) for value in values):
            self.broken.append("on_outcomes of a Later and others")
        self.failed += [len(self.values) + position for position in failed]
        self.values += values

    def on_recalled(self, count: int) -> None:
        self._heed("on_recalled")
        self.recalled.append(count)

    def on_exit(self, exit: Exit) -> None:
        self._heed("on_exit")
        self.exits.append(exit)


class Driven:
    """A worker in its slot: driven by a test as a pool would."""

    def __init__(self, backend: Backend) -> None:
        self.encoder: Encoder = backend.encoder(Sharing(), Moments.ANY)
        self._owner = Owner()
        self._sent = 0
        self.told = Told()
        with self.silent():
            self.worker = backend.start(asyncio.get_running_loop(), self.told)

    @contextlib.contextmanager
    def silent(self) -> Iterator[None]:
        """For calls to the worker that may tell nothing."""
        self.told.is_inside = True
        try:
            yield
        finally:
            self.told.is_inside = False

    async def send(self, *sent: Call[Any]) -> None:
        """Send calls in one message."""
        batches: list[Batch] = []
        for call in sent:
            encoded = self.encoder.encode(call)
            if encoded is None:
                encoded = (await self.encoder.encode_large(call, None))[:2]
            function, payload = encoded
            if batches and batches[-1].function.key == function.key:
                batches[-1].payloads.append(payload)
            else:
                batches.append(Batch(self._owner, function, self._sent, [payload]))
            self._sent += 1
        with self.silent():
            self.worker.send(batches)

    async def outcomes(self, count: int) -> list[Any]:
        """Return the first *count* outcomes. The worker is asked for those that it keeps back."""

        def are_there() -> bool:
            self.worker.look()
            return len(self.told.values) >= count

        await until(are_there, f"{count} outcomes")
        return [await self._decoded(value) for value in self.told.values[:count]]

    async def _decoded(self, value: Any) -> Any:
        return await value.get() if isinstance(value, Later) else value

    async def exit(self) -> Exit:
        await until(lambda: bool(self.told.exits), "on_exit")
        return self.told.exits[0]


@contextlib.asynccontextmanager
async def driven(backend: Backend) -> AsyncIterator[Driven]:
    driven = Driven(backend)
    try:
        yield driven
    finally:
        if not driven.told.exits:
            with driven.silent():
                driven.worker.retire()
            await driven.exit()
        driven.encoder.close()
        await backend.aclose()
    await asyncio.sleep(0)
    assert driven.told.broken == []
