"""What a memory tells about its results, and the small stand-in for one of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from aparallel._ground.store import age

if TYPE_CHECKING:
    from aparallel._ground.sharing import MmapMode
    from aparallel._ground.store import Place

T = TypeVar("T")


class Source(Protocol):
    """Where a stored result can be had from."""

    async def get(self, place: Place, function: str, mmap_mode: MmapMode | None) -> Any: ...
    async def forget(self, place: Place) -> bool: ...


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a call would be a hit or a miss.

    Attributes:
        hit: whether its result is stored and good.
        reason: ``"hit"``, ``"never computed"``, ``"argument differs"``, ``"code changed"``, ``"expired"``,
            ``"evicted"``, ``"invalidated"`` (by a tag), ``"damaged"``, ``"not signed"``, ``"refused"`` (``validate``)
            or ``"not cached"`` (``location=None``).
        arguments: which arguments differ from the stored call that is most alike.
        code: which functions or constants' readers differ from it.
        unseen: what the result may depend on and the key does not: globals of the code that can change, functions
            that it imports or looks up when it runs, methods of arguments.
    """

    hit: bool
    reason: str
    arguments: tuple[str, ...] = ()
    code: tuple[str, ...] = ()
    unseen: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.hit:
            text = "hit"
        else:
            differences = [f"argument {name} differs" for name in self.arguments]
            differences += [f"code of {name} changed" for name in self.code]
            text = f"miss: {', '.join(differences) or self.reason}"
        if self.unseen:
            text += f" (not part of the key: {', '.join(self.unseen)})"
        return text


@dataclass(slots=True)
class FunctionStatistics:
    """What a memoized function did in this process, since it was decorated.

    Attributes:
        hits: calls that a stored result answered.
        memory_hits: those of them that did not touch the disk.
        misses: calls that computed their result.
        shared: calls that waited for the computation of another one.
        stored: results written.
        not_stored: results that could not be written.
    """

    hits: int = 0
    memory_hits: int = 0
    misses: int = 0
    shared: int = 0
    stored: int = 0
    not_stored: int = 0


@dataclass(frozen=True, slots=True)
class MemoryStatistics:
    """What a memory holds.

    Attributes:
        entries, bytes: on disk, of all functions and processes.
        memory_entries, memory_bytes: in this process.
    """

    entries: int
    bytes: int
    memory_entries: int
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class StoredCall:
    """One entry of a memory.

    Attributes:
        function: the name of the function.
        key: 64 hexadecimal digits.
        created: when it was computed, in seconds since 1970.
        last_used: when it was last used, to about a second, in seconds since 1970.
        size: bytes on disk.
        seconds: how long the computation took.
        tags: its tags.
        arguments: the arguments, as text, by name; empty unless the memory has ``store_arguments=True``.
    """

    function: str
    key: str
    created: float
    last_used: float
    size: int
    seconds: float
    tags: tuple[str, ...] = ()
    arguments: Mapping[str, str] = field(default_factory=dict)


class MemorizedResult(Generic[T]):
    """A stored result by name: small, picklable, and loaded when asked for.

    Cancellation: a thread that loads or removes it goes on to its end.

    Attributes:
        function: the name of the function.
        key: 64 hexadecimal digits.
    """

    def __init__(self, source: Source, function: str, place: Place, mmap_mode: MmapMode | None) -> None:
        self.function = function
        self.key = place.key.hex()
        self._source = source
        self._place = place
        self._mmap_mode = mmap_mode

    async def get(self) -> T:
        """Load the result. One that is an exception (``cache_errors``) is raised.

        Raises:
            MissingResultError: it is not there any more.
            StoreError: the store cannot be read.
        """
        result: T = await self._source.get(self._place, self.function, self._mmap_mode)
        return result

    async def clear(self) -> None:
        """Remove the result from the memory.

        Raises:
            StoreError: the store cannot be written.
        """
        await self._source.forget(self._place)

    def __aparallel_key__(self) -> Any:
        return self.function, self.key

    def __repr__(self) -> str:
        return f"<MemorizedResult of {self.function}, {self.key[:12]}…>"


class ShelvedValue(MemorizedResult[T]):
    """A result that is not stored: it carries its value."""

    def __init__(self, function: str, value: T) -> None:
        self.function = function
        self.key = ""
        self._value: T | None = value

    async def get(self) -> T:
        """Return the result."""
        return self._value  # type: ignore[return-value]

    async def clear(self) -> None:
        """Let go of the result."""
        self._value = None

    def __aparallel_key__(self) -> Any:
        return self.function, self._value

    def __repr__(self) -> str:
        return f"<MemorizedResult of {self.function}, not stored>"


def expires_after(
    days: float = 0,
    seconds: float = 0,
    microseconds: float = 0,
    milliseconds: float = 0,
    minutes: float = 0,
    hours: float = 0,
    weeks: float = 0,
) -> Callable[[Mapping[str, Any]], bool]:
    """Return a ``validate`` callback that accepts results up to an age, the sum of the amounts given.

    ``ttl=`` does the same, and cheaper: the memory can then serve from memory and sweep what has expired.
    """
    limit = timedelta(days, seconds, microseconds, milliseconds, minutes, hours, weeks).total_seconds()
    return _Expiry(limit)


@dataclass(frozen=True, slots=True)
class _Expiry:
    seconds: float

    def __call__(self, metadata: Mapping[str, Any]) -> bool:
        return age(metadata["time"], time.time()) <= self.seconds
