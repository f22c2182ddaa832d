"""Calls on their way to workers: what encoders make of them, and the encoder that leaves them as they are."""

from __future__ import annotations

import enum
import time
from abc import ABC, abstractmethod
from itertools import islice
from typing import TYPE_CHECKING, Any

from aparallel._ground.call import Call, name_of, wrong_item
from aparallel._ground.sharing import unwrap

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aparallel._ground.timings import Timing, Timings

# Calls that are drawn between two looks at the clock.
_CLOCK_EVERY = 64


class Function:
    """A function as a pool knows it: what identifies it, and how long its calls take.

    Attributes:
        key: equal for equal functions; a backend's own choice.
        name: for people.
        timing: shared by functions of the same code: ``Timings.of(fn)``.
    """

    __slots__ = ("__weakref__", "key", "name", "timing")

    def __init__(self, key: Any, name: str, timing: Timing) -> None:
        self.key = key
        self.name = name
        self.timing = timing


class Moments(enum.Enum):
    """When the calls of one encoder are made. Each is sent what its arguments are in its moment."""

    ANY = "any"
    """Separate calls: at any time, as long as the pool lives."""
    ONE = "one"
    """A list or tuple of calls, or a map of lists and the like: all at once. What they carry counts as being what it is
    when it is first met."""
    SUCCESSIVE = "successive"
    """Calls of an iterator: one after the other, each when it is drawn. What they carry may change in between."""


class Drawn:
    """What an encoder drew from an iterator of calls.

    Attributes:
        groups: functions and the payloads of successive calls of each, in the order drawn.
        count: how many calls that is.
        size: bytes of arguments held by the payloads, where they are pickled.
        exhausted: the iterator has ended.
        large: a call, the next in order and not counted, that must be encoded off the loop before more are drawn.
        failed: the error of a call, the next in order and not counted, that cannot be encoded.
    """

    __slots__ = ("count", "exhausted", "failed", "groups", "large", "size")

    def __init__(self, groups: list[tuple[Function, list[Any]]]) -> None:
        self.groups = groups
        self.count = 0
        self.size = 0
        self.exhausted = False
        self.large: Call[Any] | None = None
        self.failed: BaseException | None = None

    def group_for(self, function: Function) -> list[Any]:
        """Return the payloads of the last group if it is *function*'s, else those of a new one."""
        if self.groups and self.groups[-1][0].key == function.key:
            return self.groups[-1][1]
        payloads: list[Any] = []
        self.groups.append((function, payloads))
        return payloads

    def extend(self, more: Drawn) -> None:
        """Add what was drawn next, from the same iterator: all was encoded so far, and the iterator went on."""
        for function, payloads in more.groups:
            self.group_for(function).extend(payloads)
        self.count += more.count
        self.size += more.size
        self.exhausted, self.large = more.exhausted, more.large
        self.failed, more.failed = more.failed, None  # frames in its traceback have *more*


class Encoder(ABC):
    """Turns calls into payloads for one backend's workers. One encoder serves one gather, stream or pool."""

    @abstractmethod
    def draw(self, calls: Iterator[Any], limit: int, first: int, seconds: float) -> Drawn:
        """Draw and encode at most *limit* calls, for about *seconds* at most.

        *first* is the index of the next one. A call is encoded before the next is drawn: it sees its
        arguments as they are now, or as they were in the moment that they all share: see :class:`Moments`.
        """

    @abstractmethod
    def encode(self, call: Call[Any]) -> tuple[Function, Any] | None:
        """Encode a single call, its function as it is now, or return None if that must happen off the loop.

        Raises:
            UnpicklableCallError: it cannot be encoded.
        """

    def encode_soon(self, call: Call[Any]) -> tuple[Function, Any] | None:
        """Do the same for a call whose caller waits for it: it may be encoded later, if that would hold the loop."""
        return self.encode(call)

    def size_of(self, payload: Any) -> int:
        """About how many bytes of *payload* a message has to carry, or 0 if they are few."""
        return 0

    def close(self) -> None:  # noqa: B027
        """Let go of what is kept for further calls: there will be none."""

    @abstractmethod
    async def encode_large(self, call: Call[Any], index: int | None) -> tuple[Function, Any, int]:
        """Encode off the loop a call that was found too large; *index* is None for a single call.

        Returns the function, the payload, and the bytes that the payload takes.
        """


def _open(call: Call[Any]) -> Call[Any]:
    """Put what is shared in the place of Shared objects: they share memory anyway."""
    opened = unwrap(call.args, call.keywords)
    return call if opened is None else Call(call.func, *opened[0], **opened[1])


class DirectEncoder(Encoder):
    """Calls are their own payloads: arguments are passed by reference.

    Args:
        timings: how long calls take, as known to the backend. All of its encoders should have the same.
    """

    def __init__(self, timings: Timings) -> None:
        self._timings = timings

    def draw(self, calls: Iterator[Any], limit: int, first: int, seconds: float) -> Drawn:
        drawn = Drawn([])
        deadline = time.monotonic() + seconds
        last: Any = None
        payloads: list[Any] = []
        count = 0
        for call in islice(calls, limit):
            if type(call) is not Call:
                raise wrong_item(call, first + count)
            if call.func is not last:
                last = call.func
                payloads = []
                drawn.groups.append((Function(id(last), name_of(last), self._timings.of(last)), payloads))
            payloads.append(_open(call))
            count += 1
            if count % _CLOCK_EVERY == 0 and time.monotonic() > deadline:
                break
        else:
            drawn.exhausted = count < limit
        drawn.count = count
        return drawn

    def encode(self, call: Call[Any]) -> tuple[Function, Any]:
        fn = call.func
        return Function(id(fn), name_of(fn), self._timings.of(fn)), _open(call)

    async def encode_large(self, call: Call[Any], index: int | None) -> tuple[Function, Any, int]:
        raise NotImplementedError("neither draw() nor encode() finds a call too large")
