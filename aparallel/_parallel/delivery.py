"""Outcomes on their way to the owners of calls."""

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


class Delivery:
    """Tells owners what their calls gave; large results are decoded off the loop first.

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
            task = self._loop.create_task(self._decode(batch, values[0]), name="aparallel-decode")
            self._decoding[owner, first] = task
            task.add_done_callback(lambda task: self._on_decoded(batch, task))
            return
        if failed:
            for position in failed:
                name_the_call(values[position], batch, first + position)
        owner.deliver(first, values, failed)

    async def _decode(self, batch: Batch, later: Later) -> None:
        try:
            value = await later.get()
        except Exception as reason:
            self.deliver(batch, [reason], [0])
        else:
            self.deliver(batch, [value], [])

    def _on_decoded(self, batch: Batch, task: asyncio.Task[None]) -> None:
        del self._decoding[batch.owner, batch.first]
        if task.cancelled():  # perhaps before its first step
            self.deliver(batch, [AparallelError("The event loop is shutting down; the result was not read.")], [0])
