"""What thread and inline workers share: calls stay as they are, and run in a copy of their owner's context."""

from __future__ import annotations

import time
from itertools import islice
from typing import TYPE_CHECKING, Any

from aparallel._ground.call import Call, name_of, wrong_item
from aparallel._ground.sharing import unwrap
from aparallel._ground.timings import Timings
from aparallel.abc import Drawn, Encoder, Function

if TYPE_CHECKING:
    from collections.abc import Iterator

_CLOCK_EVERY = 64


def _open(call: Call[Any]) -> Call[Any]:
    """Put what is shared in the place of Shared objects: they share memory anyway."""
    opened = unwrap(call.args, call.keywords)
    return call if opened is None else Call(call.func, *opened[0], **opened[1])


class DirectEncoder(Encoder):
    """Calls are their own payloads: arguments are passed by reference."""

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
                drawn.runs.append((Function(id(last), name_of(last), self._timings.of(last)), payloads))
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
        raise NotImplementedError("draw() never finds a call too large")
