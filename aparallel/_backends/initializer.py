"""A pool's initializer on its way to the workers: pickled once, with its arguments; in a thread if they are large."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aparallel._ground.call import name_of
from aparallel._ground.hop import Pauses, hop
from aparallel._transfer.diagnosis import unpicklable_call
from aparallel._transfer.out_of_band import TooLarge
from aparallel._transfer.packing import COPIED_ON_LOOP_BYTES, ON_LOOP_BYTES
from aparallel._transfer.pickling import NotLoaded, load_by_value, pickle_in_slices, pickle_within

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from aparallel._transfer.pickling import Pieces


class Initializer:
    """What is called in each worker before any call.

    Raises:
        UnpicklableCallError: it is small, and cannot be pickled. If it is large, that is told later.
    """

    def __init__(self, function: Callable[..., object], arguments: tuple[Any, ...]) -> None:
        self._content: Any = function, arguments
        self._pickled: Pieces | None = None
        self._pickling: asyncio.Future[Pieces] | None = None
        try:
            self._pickled = self._pickle_now()
        except TooLarge:
            return
        except Exception as error:
            raise self._explained(error) from error
        self._content = None

    def _pickle_now(self) -> Pieces:
        try:
            return pickle_within(self._content, ON_LOOP_BYTES, COPIED_ON_LOOP_BYTES)[0]
        except NotLoaded:
            load_by_value()
            return pickle_within(self._content, ON_LOOP_BYTES, COPIED_ON_LOOP_BYTES)[0]

    def give(self, take: Callable[[Pieces], object], fail: Callable[[BaseException | None], object]) -> None:
        """Have *take* called with the pickle: now, or on the running loop when it is there.

        Or *fail*, with the reason why it never will be; None when the loop ends.
        """
        if self._pickled is not None:
            take(self._pickled)
            return
        if self._pickling is None:
            self._pickling = hop(self._pickle_in_thread)
        self._pickling.add_done_callback(lambda pickling: self._tell(pickling, take, fail))

    def _pickle_in_thread(self) -> Pieces:
        try:
            return pickle_in_slices(self._content, Pauses().when_due)[0]
        except Exception as error:
            raise self._explained(error) from error

    def _tell(
        self,
        pickling: asyncio.Future[Pieces],
        take: Callable[[Pieces], object],
        fail: Callable[[BaseException | None], object],
    ) -> None:
        reason = None if pickling.cancelled() else pickling.exception()
        if pickling.cancelled() or reason is not None:
            fail(reason)
            return
        self._pickled, self._content = pickling.result(), None
        take(self._pickled)

    def _explained(self, error: Exception) -> Exception:
        function, arguments = self._content
        return unpicklable_call(function, arguments, {}, name_of(function), None, error)
