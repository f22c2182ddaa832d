"""The parent's side: which calls are drawn, in which moment, and made into payloads. Not loaded in a child."""

from __future__ import annotations

import time
from itertools import chain, islice
from types import FunctionType
from typing import TYPE_CHECKING, Any

from aparallel._ground.call import Call, MappedCalls, name_of, wrong_item
from aparallel._ground.hop import in_thread
from aparallel._transfer.diagnosis import unpicklable_call
from aparallel._transfer.functions import CALLED, Functions, PickledFunction, RecentFunctions
from aparallel._transfer.holding import Held, Holding
from aparallel._transfer.out_of_band import Awaited, TooLarge
from aparallel._transfer.packing import SHORT, Packer, plain_payload, plain_payload_with_names
from aparallel._transfer.pickling import NotLoaded, load_by_value
from aparallel._transfer.shipment import LazyMemory, Shipment
from aparallel._transfer.users import User
from aparallel._wire.frames import NUMBERS, TEXTS
from aparallel.abc import Drawn, Encoder, Moments
from aparallel.errors import SharedMemoryError, SharingError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextvars import ContextVar

    from aparallel.abc import Sharing

# The clock is read after so many calls.
_CLOCK_EVERY = 64
# And after so many plain arguments of one function.
_MAPPED_EVERY = 512


class _Heavy(Exception):
    """A call has been drawn, and that took a while."""


class ProcessEncoder(Encoder):
    """Pickles calls. Within one encoder a plain function is pickled once, when it is first drawn.

    Where all calls count as made at once, so is what has state.
    """

    def __init__(
        self,
        functions: Functions,
        variables: Sequence[tuple[bytes, ContextVar[Any]]],
        memory: LazyMemory,
        sharing: Sharing,
        moments: Moments,
    ) -> None:
        self._functions = functions
        self._variables = variables
        # Arrays are kept in shared memory for this one's sake as long as it lives: not for separate calls, which may
        # come as long as the pool does.
        self._packer = Packer(functions, memory, sharing, None if moments is Moments.ANY else User())
        self._recent = RecentFunctions(functions, self._packer.pickle_function, at_once=moments is Moments.ONE)
        self._holding = (
            Holding(self._pickled_to_hold, self._packer.reference_as_held) if moments is Moments.SUCCESSIVE else None
        )

    def close(self) -> None:
        self._packer.user = None
        self._holding = None

    def draw(self, calls: Iterator[Any], limit: int, first: int, seconds: float) -> Drawn:
        drawn = Drawn([])
        deadline = time.monotonic() + seconds
        holding = self._holding
        if type(calls) is MappedCalls and calls.is_quiet and (holding is None or holding.is_empty()):
            self._draw_mapped(calls, limit, deadline, drawn)
        if holding is None:
            self._draw_fresh(calls, limit, first, deadline, drawn)
        else:
            if holding.draw(limit, deadline, drawn):
                try:
                    self._draw_fresh(holding.not_drawn(calls), limit, first, deadline, drawn, calls)
                finally:
                    self._recent.end_moment()
            room = limit - drawn.count - 1
            if drawn.large is not None and room > 0 and self._recent.has(drawn.large.func):
                from aparallel._transfer.stillness import is_still  # and dis with it, which NumPy has loaded by now

                if is_still(calls):
                    holding.hold(drawn.large, islice(holding.not_drawn(calls), room))
        self._end_single()
        return drawn

    def _pickled_to_hold(self, call: Call[Any]) -> Held | None:
        """Pickle a call as it is now, without its large buffers; None if there are none, or it is one for a thread."""
        from aparallel._transfer.stillness import is_inert

        content = call.args, call.keywords, self._values()
        if not (self._recent.has(call.func) and is_inert(content)):  # an array could change while others wait for it
            return None
        try:
            function = self._recent.of(call.func)
            pieces, sources = self._packer.pickle_to_hold(content)
        except Exception:  # TooLarge, or what is told when it is drawn again
            return None
        awaited = [source for source in sources if isinstance(source, Awaited)]
        if not awaited:
            return None
        from aparallel._transfer.known import Buffer

        return Held(call, function, pieces, sources, frozenset(Buffer(marker.source).key for marker in awaited))

    def _draw_fresh(
        self, calls: Iterator[Any], limit: int, first: int, deadline: float, drawn: Drawn, source: Any = None
    ) -> None:
        """Draw until there are *limit* calls, or it is late. The path of tiny calls.

        *source* is where calls come from that may change something between them: what has state is pickled for each of
        them, unless it is seen that they do not.
        """
        last: Any = None
        add: Any = None
        kind: Any = None
        variables = self._variables
        with_state = 0
        index, end = first + drawn.count, first + limit
        while index < end and drawn.large is None and drawn.failed is None:
            stop = min(index + _CLOCK_EVERY, end)
            for call in islice(calls, stop - index):
                if type(call) is not Call:
                    raise wrong_item(call, index)
                try:
                    if call.func is not last:
                        fn = call.func
                        # A callable's state may change from call to call, unless only its name travels.
                        has_state = type(fn) is not FunctionType and not self._functions.importable(fn)
                        if has_state and source is not None:
                            with_state += 1
                            if with_state == 2:  # to look costs more than most pickles
                                from aparallel._transfer.stillness import is_still

                                self._recent.is_moment = is_still(source)
                        add = drawn.group_for(self._recent.of(fn)).append
                        last = None if has_state and source is not None else fn
                    args = call.args
                    for value in args:
                        kind = type(value)
                        if kind not in NUMBERS and not (kind in TEXTS and len(value) <= SHORT):
                            self._add_pickled(call, drawn, add)
                            break
                    else:
                        if variables:
                            self._add_pickled(call, drawn, add)
                        elif call.keywords:
                            if (named := plain_payload_with_names(args, call.keywords)) is not None:
                                add(named)
                            else:
                                self._add_pickled(call, drawn, add)
                        elif len(args) == 1 and kind is not bytes:  # as plain_payload() does it, but here
                            add(value)
                        else:
                            add(args)
                except _Heavy:
                    index += 1
                    if time.monotonic() > deadline:
                        end = index
                    break
                except TooLarge:
                    self._begin_moment()
                    drawn.large = call
                    break
                except Exception as reason:
                    drawn.failed = self._explained(call, index, reason)
                    break
                index += 1
            else:
                if index < stop:
                    drawn.exhausted = True
                    break
                if time.monotonic() > deadline:
                    break
        drawn.count = index - first

    def _draw_mapped(self, calls: MappedCalls, limit: int, deadline: float, drawn: Drawn) -> None:
        """Draw as long as items are plain, and make no calls of them. What comes then is drawn as calls are."""
        if self._variables:
            return
        try:
            payloads = drawn.group_for(self._recent.of(calls.func))
        except Exception:  # TooLarge, or what is told when it is drawn as a call
            return
        while drawn.count < limit and time.monotonic() < deadline:
            items = calls.take(min(limit - drawn.count, _MAPPED_EVERY))
            if not items:  # there are no more
                return
            arguments = items if calls.has_one_argument else chain.from_iterable(items)
            if not NUMBERS.issuperset(map(type, arguments)):
                calls.put_back(items)
                return
            payloads += items
            drawn.count += len(items)

    def _begin_moment(self) -> None:
        """What a call carries that is drawn now may have changed since the one before."""
        if self._packer.user is not None and self._holding is not None:
            self._packer.user.begin_moment()

    def _add_pickled(self, call: Call[Any], drawn: Drawn, add: Callable[[bytes | Shipment], object]) -> None:
        """Draw a call whose arguments are to be pickled.

        Raises:
            _Heavy: it is drawn, and the clock is to be read.
        """
        self._begin_moment()
        content = call.args, call.keywords, self._values()
        if self._recent.is_moment:
            from aparallel._transfer.stillness import is_inert

            if not is_inert(content):  # to pickle it may change what is called
                self._recent.end_moment()
        pickled = self._packer.pack(content)
        add(pickled)
        if isinstance(pickled, bytes):
            drawn.size += len(pickled)
        else:
            drawn.size += pickled.size
            raise _Heavy

    def size_of(self, payload: Any) -> int:
        return payload.size if type(payload) is Shipment else 0

    def encode(self, call: Call[Any]) -> tuple[PickledFunction, Any] | None:
        try:
            return self._encode(call)
        except NotLoaded:
            # Not in a thread: single calls are made in a loop that goes on, and closures refer to something else then.
            load_by_value()
            return self.encode(call)

    def encode_soon(self, call: Call[Any]) -> tuple[PickledFunction, Any] | None:
        try:
            return self._encode(call)
        except NotLoaded:
            return None

    def _encode(self, call: Call[Any]) -> tuple[PickledFunction, Any] | None:
        args, keywords = call.args, call.keywords
        try:
            function = self._functions.known(call.func)
            if function is None:
                function = self._recent.of(call.func)
                self._end_single()
            are_plain = not self._variables
            for value in args:
                kind = type(value)
                if kind not in NUMBERS and not (kind in TEXTS and len(value) <= SHORT):
                    are_plain = False
            if are_plain and not keywords:
                return function, plain_payload(args)
            named = plain_payload_with_names(args, keywords) if are_plain else None
            return function, named or self._packer.pack((args, keywords, self._values()))
        except NotLoaded:
            raise
        except TooLarge:
            return None
        except Exception as reason:
            raise self._explained(call, None, reason)  # noqa: B904 (it has its cause)

    async def encode_large(self, call: Call[Any], index: int | None) -> tuple[PickledFunction, Any, int]:
        try:
            args, size = call.args, 0
            try:
                function = self._recent.of(call.func)
                self._end_single()
            except TooLarge:
                function = await in_thread(self._packer.pickle_large_function, call.func)
                if function.key == CALLED:
                    args = call.func, *args
                else:
                    size = len(function.blob)
                    if self._packer.user is not None:  # a single call has its function as it is when it is made
                        self._recent.remember(call.func, function)
            content = (args, call.keywords, self._values())
            payload, written = await in_thread(self._packer.pack_large, content)
        except Exception as reason:
            raise self._explained(call, index, reason)  # noqa: B904 (it has its cause)
        return function, payload, size + written

    def _explained(self, call: Call[Any], index: int | None, reason: Exception) -> Exception:
        """Return the error for a call that cannot be encoded."""
        if isinstance(reason, SharingError | SharedMemoryError):  # they tell it all
            return reason
        traveling = [variable for _, variable in self._variables]
        return unpicklable_call(call.func, call.args, call.keywords, name_of(call.func), index, reason, traveling)

    def _end_single(self) -> None:
        """Keep no functions for the next single calls: what they refer to may be large, and has changed by then."""
        if self._packer.user is None:
            self._recent.forget()

    def _values(self) -> list[tuple[bytes, Any]] | None:
        """The chosen context variables that are set here, as a worker wants them; None if none were chosen."""
        values = []
        for blob, variable in self._variables:
            try:
                values.append((blob, variable.get()))
            except LookupError:  # not set, and no default
                continue
        return values if self._variables else None
