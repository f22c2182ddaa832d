"""Begins single calls: what is behind ``Pool.run`` and ``Pool.submit``."""

from __future__ import annotations

import asyncio
import contextvars
import enum
from asyncio import get_running_loop
from collections import deque
from itertools import islice
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, cast

from aparallel._ground.loops import running_loop
from aparallel._ground.nesting import call_context
from aparallel._parallel.futures import USUAL
from aparallel._parallel.options import UNSET
from aparallel._parallel.parsing import parse_count, parse_on_cancel, parse_time_limit
from aparallel.errors import AparallelError, WrongLoopError

if TYPE_CHECKING:
    from aparallel._ground.call import Call
    from aparallel._parallel.engine import Bound, Engine
    from aparallel._parallel.futures import CallFuture, RunOptions
    from aparallel._parallel.single_queue import SingleQueue
    from aparallel.abc import Function, OnCancel

    # The context that a call runs in, its timeout, what stops it, how often it is run again, and how long it may wait.
    _How = tuple[contextvars.Context, float | None, OnCancel, int, float | None]


class Encode(enum.Enum):
    """When a call is encoded."""

    # At once, whatever has to be imported for that: its caller goes on, and may change what it refers to. Only large
    # arguments are left to a thread.
    NOW = "now"
    # At once, unless something has to be imported or an argument is large: its caller waits for it.
    SOON = "soon"
    # In a thread: it was found to be large.
    LATER = "later"


_NOW: Final = Encode.NOW
_SOON: Final = Encode.SOON

# How long a tick is spent on beginning single calls, and how many of them are begun between two looks at the clock.
_BEGIN_SECONDS = 0.0005
_BEGIN_CALLS = 128

# Calls in other processes see none of the caller's context but what travels with them.
_NO_CONTEXT = contextvars.Context()


class _NotBegun:
    """The home of calls that have not begun: there is nothing to stop yet, and nobody to tell.

    Attributes:
        context: the context that they were made in, to begin in it; None where calls see nothing of it.
    """

    __slots__ = ("context",)

    def __init__(self, context: contextvars.Context | None = None) -> None:
        self.context = context

    def stop(self, future: CallFuture[Any]) -> list[asyncio.Future[Any]]:
        return []

    def forget(self, future: CallFuture[Any]) -> None:
        """There is nothing that knows of it."""


_NOT_BEGUN = _NotBegun()


class Singles:
    """Begins single calls on the workers of *engine*: all of a pool, or those of one key. They wait in *queue*."""

    def __init__(self, engine: Engine, queue: SingleQueue) -> None:
        self._engine = engine
        self._queue = queue
        # Calls that were made into futures. They begin in the next ticks, a slice of time in each: thousands are made
        # at once, and to begin them all takes tens of milliseconds. The home of each is a _NotBegun.
        self._to_begin: deque[CallFuture[Any]] = deque()
        # The loop in whose next tick that goes on; None if nothing is left to begin.
        self._begins_on: asyncio.AbstractEventLoop | None = None

    def begin(self, future: CallFuture[Any], when: Encode = Encode.SOON) -> None:
        """Begin the call that *future* requests, and encode it *when* it is to be."""
        engine, queue = self._engine, self._queue
        call, options = future.request
        del future.request
        try:
            bound = engine.use()
            if bound.loop is not future.get_loop():
                future.move(bound.loop)
            policy, timeout, patience, retries = engine.policy.usual, None, engine.patience, 0
            if options is not USUAL:
                policy, timeout, patience, retries = self._parse(options)
            if engine.max_queued is not None or patience == 0 or queue.quota is not None:
                bound.scheduler.refusing.check_room(queue, engine.max_queued, patience)
            encoded = None
            if when is _SOON:
                encoded = bound.encoder.encode_soon(call)
            elif when is _NOW:
                encoded = bound.encoder.encode(call)
        except WrongLoopError:
            raise
        except Exception as error:
            future.set_exception(error)
            del future  # the error's traceback refers to this frame
            return
        future.home = admitted = engine.admitted
        admitted.futures.add(future)
        context = call_context() if engine.shares_context else _NO_CONTEXT
        if engine.runs_on_loop:
            place = engine.place_for_nested(context, queue.quota)
            place.__enter__()
            future.add_done_callback(lambda _: place.__exit__(None, None, None))
        how = context, timeout, policy, retries, patience
        if encoded is not None:
            self._enter(future, bound, encoded, how)
            return
        # Meanwhile it counts as waiting: many at a time would fill the memory.
        queue.add_to_coming(1)
        entering = self._enter_large(future, bound, call, how)
        admitted.encoding[future] = task = bound.loop.create_task(entering, name="aparallel-encode")
        task.add_done_callback(lambda task: self._on_encoded(future, task))

    def _parse(self, options: RunOptions) -> tuple[OnCancel, float | None, float | None, int]:
        """Return what stops a call, how long it may run and may wait, and how often it is run again."""
        patience = self._engine.patience
        if options.queue_timeout is not UNSET:
            patience = parse_time_limit("queue_timeout", options.queue_timeout)
        timeout = parse_time_limit("timeout", options.timeout, zero=False)
        policy = self._engine.policy.of_call(parse_on_cancel(options.on_cancel), timeout)
        return policy, timeout, patience, parse_count("retries", options.retries, 0)

    def begin_soon(self, future: CallFuture[Any]) -> None:
        """Begin the call that *future* requests when it has its turn: see :attr:`_to_begin`."""
        try:
            loop = get_running_loop()
        except RuntimeError:
            loop = running_loop()  # tells what runs instead
        if loop is not future.get_loop():
            future.move(loop)
        if loop is not self._begins_on:
            try:
                # From here on the pool belongs to this loop: calls of two loops would be begun together.
                self._engine.use()
            except AparallelError as error:
                future.set_exception(error)
                del future  # the error's traceback refers to this frame
                return
            loop.call_soon(self._begin_some, loop)
            self._begins_on = loop
        future.home = _NotBegun(contextvars.copy_context()) if self._engine.needs_context else _NOT_BEGUN
        self._to_begin.append(future)

    def _begin_some(self, loop: asyncio.AbstractEventLoop) -> None:
        waiting = self._to_begin
        until = monotonic() + _BEGIN_SECONDS
        try:
            while waiting:
                if waiting[0].done():  # it was cancelled meanwhile
                    del waiting[0]
                    continue
                when = self._begin_drawn()
                if when is not None:
                    self._begin_next(when)
                if monotonic() >= until:
                    break
        finally:  # whatever was raised: the others would wait for ever
            if waiting:
                loop.call_soon(self._begin_some, loop)
            else:
                self._begins_on = None

    def _begin_next(self, when: Encode) -> None:
        future = self._to_begin.popleft()
        context = cast("_NotBegun", future.home).context
        try:
            if context is None:
                self.begin(future, when)
            else:
                context.run(self.begin, future, when)
            if not self._engine.is_open() and future.done():
                future.exception()  # whoever waits for it is told; asyncio need not say that nobody does
        except WrongLoopError as error:
            future.set_exception(error)
        except BaseException:  # pickling runs the code of arguments, and Ctrl-C may come in anywhere
            future.cancel()
            raise
        finally:
            del future  # an error that it holds refers to this frame

    def _begin_drawn(self) -> Encode | None:
        """Begin the next calls as those of a gather are, as far as they ask for nothing.

        Returns how to begin the one after them, if it is to be begun by itself.

        An error of that one will have the frames of its callers: none may have its future.
        """
        futures = []
        for future in islice(self._to_begin, _BEGIN_CALLS if self._takes_all() else 0):
            if future.done() or future.request[1] is not USUAL:
                break
            futures.append(future)
        if not futures:
            return _SOON
        engine, queue, bound = self._engine, self._queue, self._engine.use()
        try:
            calls = [future.request[0] for future in futures]
            drawn = bound.encoder.draw(iter(calls), len(calls), 0, _BEGIN_SECONDS)
        except (KeyboardInterrupt, SystemExit):  # the program ends, and is not to come by here again when it does
            for future in futures:
                future.cancel()
            raise
        except BaseException:  # one by one, each with what is its own
            return _SOON
        begun, home, waiting = 0, engine.admitted, self._to_begin
        for function, payloads in drawn.groups:
            part = futures[begun : begun + len(payloads)]
            if not part:  # the first of them was not to be had
                continue
            if not queue.count:  # else it has its place
                bound.scheduler.backlog.admit(queue)
            size = drawn.size * len(payloads) // drawn.count
            owner, first = queue.enter(function, payloads, part, _NO_CONTEXT, None, engine.policy.usual, size=size)
            for index, future in enumerate(part, first):
                future.home = home
                future.place = owner, index
                del future.request, waiting[0]
            home.futures.update(part)
            begun += len(part)
        bound.scheduler.dispatch_soon()
        if drawn.large is not None:
            return Encode.LATER
        if drawn.failed is None:
            return None
        drawn.failed = None  # frames in its traceback have what was drawn; it is told when it is met again
        return _SOON

    def _takes_all(self) -> bool:
        """Whether each call is taken that asks for nothing, in whichever context."""
        engine = self._engine
        if engine.needs_context or engine.max_queued is not None:
            return False
        if engine.patience is not None or self._queue.quota is not None:
            return False
        try:
            engine.use()
        except AparallelError:
            return False
        return True

    def _enter(self, future: CallFuture[Any], bound: Bound, encoded: tuple[Function, Any], how: _How) -> None:
        """Have a call wait for a worker, and send it if one is free."""
        queue, scheduler = self._queue, bound.scheduler
        function, payload = encoded
        context, timeout, policy, retries, patience = how
        if not queue.count:  # else it has its place
            scheduler.backlog.admit(queue)
        size = bound.encoder.size_of(payload)
        future.place = queue.enter(function, [payload], [future], context, timeout, policy, retries, size)
        scheduler.dispatch_soon()
        if patience is not None:
            expiry = scheduler.refusing.withdraw_after(patience, *future.place)
            future.add_done_callback(lambda _: expiry.cancel())

    async def _enter_large(self, future: CallFuture[Any], bound: Bound, call: Call[Any], how: _How) -> None:
        """Encode a call off the loop, then do the same."""
        try:
            function, payload, _ = await bound.encoder.encode_large(call, None)
        except asyncio.CancelledError:
            del future  # it knows this task, whose error refers to this frame
            raise
        except BaseException as error:  # nobody else awaits this task
            self._end_encoding(future)
            self._engine.admitted.tell([future], [error], [0])
            del future  # an error that it holds refers to this frame
            return
        self._end_encoding(future)
        if future.is_wanted:  # neither cancelled nor ended with the pool meanwhile
            self._enter(future, bound, (function, payload), how)

    def _end_encoding(self, future: CallFuture[Any]) -> None:
        if self._engine.admitted.encoding.pop(future, None) is not None:
            self._queue.add_to_coming(-1)

    def _on_encoded(self, future: CallFuture[Any], task: asyncio.Task[None]) -> None:
        self._end_encoding(future)  # it may have been cancelled before it had begun
        if task.cancelled():  # perhaps by whoever cancels all tasks of the loop
            future.cancel()
