"""Outcomes on their way to the owners of calls, and what they came to."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from aparallel._parallel.failures import name_the_call
from aparallel.abc import Later
from aparallel.errors import AparallelError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aparallel._parallel.queues import Owner
    from aparallel.abc import Batch

# The average of recent calls is that of all as long as there are no more than this; then old ones fade.
_MANY_CALLS = 32


class Accounts:
    """How many calls ended in which way since the pool began, and how long recent ones took.

    Attributes:
        completed, failed, broken, refused: as in :class:`~aparallel.PoolStatistics`.
        mean_seconds: how long calls took lately, whichever they were; None before the first.
    """

    def __init__(self) -> None:
        self.completed = self.failed = self.broken = self.refused = 0
        self.mean_seconds: float | None = None
        self._measured = 0

    def learn(self, seconds: float, calls: int) -> None:
        """Take in that *calls* took *seconds* each."""
        weight = calls / (self._measured + calls)
        self.mean_seconds = seconds * weight + (self.mean_seconds or 0.0) * (1 - weight)
        self._measured = min(self._measured + calls, _MANY_CALLS)


class Delivery:
    """Tells owners what their calls gave; what is large is decoded off the loop first.

    Invariant: a call is in ``_decoding``, by its owner and its index, from when its worker has told its outcome until
    its owner has been told.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._decoding: dict[tuple[Owner, int], asyncio.Task[None]] = {}

    def is_decoding(self, owner: Owner, index: int) -> bool:
        """Whether that call has ended, and its owner has yet to be told."""
        return (owner, index) in self._decoding

    def deliver(self, batch: Batch, values: list[Any], failed: Sequence[int]) -> None:
        """Tell what the calls of *batch* gave."""
        owner: Owner = batch.owner
        first = batch.first
        if owner.cancelled:
            return
        if len(values) == 1 and type(values[0]) is Later:
            if not owner.wants(first):
                return
            task = self._loop.create_task(self._decode(batch, values[0], failed), name="aparallel-decode")
            self._decoding[owner, first] = task
            task.add_done_callback(lambda task: self._on_decoded(batch, task))
            return
        if failed:
            for position in failed:
                name_the_call(values[position], batch, first + position)
        owner.deliver(first, values, failed)

    async def _decode(self, batch: Batch, later: Later, failed: Sequence[int]) -> None:
        try:
            value = await later.get()
        except Exception as reason:
            self.deliver(batch, [reason], [0])
        else:
            self.deliver(batch, [value], failed)

    def _on_decoded(self, batch: Batch, task: asyncio.Task[None]) -> None:
        del self._decoding[batch.owner, batch.first]
        if task.cancelled():  # perhaps before its first step
            self.deliver(batch, [AparallelError("The event loop is shutting down; the result was not read.")], [0])
