"""The worker's loop: read a frame, run its calls, give their outcomes."""

from __future__ import annotations

import os
import sys
from _pickle import dumps, loads
from _socket import socket
from time import monotonic_ns
from types import ModuleType

from aparallel._transfer.failures import LOADING, RETURNING, RUNNING, describe_failure
from aparallel._transfer.pickling import pickle, pickle_in_pieces, pickle_plain
from aparallel._wire import frames
from aparallel._wire.frames import NUMBERS, TEXTS, UNNAMED
from aparallel._wire.outbox import CLAIMED, COUNT, RECALLS, STARTED, VERSION, Outbox, marshalled
from aparallel._worker import lifeline, stdio
from aparallel._worker.incoming import Frame, Incoming
from aparallel._worker.outgoing import (
    FAILURE,
    IN_SEGMENT,
    LARGE,
    LARGE_BYTES,
    PATIENCE_NS,
    PICKLED,
    PLAIN,
    SLOW,
    Outgoing,
)

TYPE_CHECKING = False  # as in aparallel/__init__.py
if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable
    from typing import Any

    from aparallel._worker.logs import WorkerLogs
    from aparallel._worker.memory import WorkerMemory

# Later than any moment, and more than any size.
_NEVER = 1 << 62

# Text in a result is plain up to this length.
_PLAIN_LENGTH = 4096
# What takes no longer to pickle does not hold the parent's loop for long when it is read.
_MOMENT_NS = 200_000
# What arguments come as that need no unpickling of their own.
_ARGUMENTS = NUMBERS | {str, tuple, dict}


async def _coroutine() -> None: ...


_Coroutine = type(_example := _coroutine())
_example.close()


def main(inherited: list[int]) -> None:
    """Serve the parent until it hangs up. *inherited*: the descriptors of socket, lifeline, outbox and perhaps logs."""
    for fd in inherited:
        os.set_inheritable(fd, False)
    connection, line, memory, *logs = inherited
    lifeline.hold(line)
    outbox = Outbox(memory)
    os.close(memory)
    # The functions of the user's __main__ come by value; nothing of ours must answer for them.
    sys.modules["__main__"] = ModuleType("__main__")
    stdio.take_over()
    if sys.__stderr__ is not None:
        import faulthandler

        if not faulthandler.is_enabled():
            faulthandler.enable(sys.__stderr__.fileno())
    _Worker(socket(fileno=connection), outbox, *logs).serve()


class _Worker:
    def __init__(self, connection: socket, outbox: Outbox, logs: int | None = None) -> None:
        self.connection = connection
        self.incoming = Incoming(connection, self._take_news, self._learn)
        self.outgoing = Outgoing(connection, outbox)
        self.head = outbox.head
        self.ring: Any = outbox.to_worker
        # A function is kept pickled until its first call: a function that cannot be rebuilt
        # costs the calls that need it and no others.
        self.functions: dict[int, bytes | Callable[..., Any]] = {}
        self.variables: dict[bytes, Any] = {}
        self.logs: WorkerLogs | None = None
        if logs is not None:
            from aparallel._worker.logs import WorkerLogs

            self.logs = WorkerLogs(logs, self.head, self.variables)
        self.memory: WorkerMemory | None = None
        # What buffers of results are too large for a pickle, and where they go if memory is short.
        self.results: tuple[int, str | None] = (_NEVER, None)
        # Whether the last result was large. The next one is then pickled in pieces: a small one takes longer so.
        self.last_was_large = False
        self.runner: asyncio.Runner | None = None
        # Emptied in a forked copy of this process, which must never speak for the worker.
        self.original = [True]
        os.register_at_fork(after_in_child=self.original.clear)

    def serve(self) -> None:
        try:
            while frame := self.incoming.next():
                if frame.kind == frames.CALLS:
                    self._run(frame)
                elif frame.kind == frames.SETUP and not self._set_up(frame.control, frame.tail):
                    return
                del frame  # what it brought must not live on in a worker that waits
                self._tell_memory()
        except (BrokenPipeError, ConnectionResetError):  # the parent is gone, or gave us up
            return
        finally:
            if self.runner is not None:
                self.runner.close()
            self.connection.close()

    def _memory(self) -> WorkerMemory:
        if self.memory is None:
            from aparallel._worker.memory import WorkerMemory

            self.memory = WorkerMemory(self.outgoing.introduce, self._ask_for_room)
        return self.memory

    def _take_news(self, kind: int, news: Any, fds: list[int]) -> None:
        """The parent tells of shared memory: of a segment of its own, or what is not used there any more."""
        if kind == frames.SEGMENT:
            number, sizes = news
            self._memory().borrower.introduce(number, sizes, fds, keep=True)
        else:
            self._memory().update(*news)
            self._tell_memory()

    def _tell_memory(self) -> None:
        """Tell the parent what shared memory is not used here any more."""
        if self.memory is not None and (news := self.memory.news()) is not None:
            self.outgoing.send(frames.MEMORY, [dumps(news, 5)])

    def _ask_for_room(self) -> None:
        """Have the parent give back the memory that it keeps for later, and wait until it has."""
        self.outgoing.send(frames.SHORTAGE, ())
        while self.incoming.read_ahead() != frames.RELIEVED:
            pass

    def _await_verdict(self) -> int:
        """The parent is taking calls back, or has done so several times: return the number of the first one taken."""
        self.outgoing.flush(self.head[STARTED])
        while self.incoming.verdicts != self.head[RECALLS]:
            self.incoming.read_ahead()
        return self.incoming.void_from

    def _learn(self, frame: Frame) -> None:
        """Take in the functions that a frame brings."""
        new, forget, _, loans = frame.control
        if loans:
            frame.loans = self._memory().borrow(loans)
        for number, blob in new:
            self.functions[number] = bytes(frame.take(blob)) if type(blob) is int else blob
        for number in forget:
            self.functions.pop(number, None)

    def _set_up(self, setup: dict[str, Any], initializer_pickle: memoryview) -> bool:
        """Take in settings; return whether calls may run, which they may not after a failed initializer."""
        from aparallel._ground import nesting

        sys.path[:] = setup["path"]
        if self.logs is not None:
            self.logs.configure(*setup["logs"])
        if "argv" not in setup:  # only what is above has changed
            return True
        if setup["nice"]:
            try:  # noqa: SIM105 - contextlib is not loaded
                os.nice(setup["nice"])
            except OSError:  # forbidden, as by systemd's SystemCallFilter=~@resources: the program's priority will do
                pass
        sys.argv[:] = setup["argv"]
        os.environ.update(setup["environ"])
        nesting.enter_worker_process(setup["level"])
        failure = self._initialize(initializer_pickle) if initializer_pickle else None
        if not self.original:
            _leave_forked_copy()
        if failure is not None:
            self.outgoing.send(frames.NOT_READY, [failure])
            return False
        self.outgoing.send(frames.READY, ())
        return True

    def _initialize(self, pickled: memoryview) -> bytes | None:
        """Run the user's initializer; return what tells of its failure, None if it succeeded."""
        from aparallel._transfer import rebuilding

        try:
            (initializer, arguments), keep_globals = rebuilding.load_initializer(pickled)
            value = initializer(*arguments)
            if hasattr(type(value), "__await__"):
                self._await(value, None)
            keep_globals()
        except BaseException as error:
            return describe_failure(error, RUNNING)
        return None

    def _run(self, frame: Frame) -> None:
        self._learn(frame)
        original, unfinished = self.original, stdio.unfinished
        outgoing, head, write = self.outgoing, self.head, self.outgoing.outbox.write
        verdicts, void_from = self.incoming.verdicts, self.incoming.void_from
        now = outgoing.begin()
        call = frame.first
        for number, payloads, self.results in frame.control[2]:
            function = self.functions[number]
            for payload in payloads:
                # The time first: a claimed call never shows an older one. Then the claim, then the look (see frames).
                head[STARTED] = now
                head[CLAIMED] = call + 1
                if head[RECALLS] != verdicts:
                    # What an earlier verdict took back stays so: the parent has given it to someone else.
                    void_from = min(void_from, self._await_verdict())
                    verdicts = self.incoming.verdicts
                    head[STARTED] = now = outgoing.begin()  # it is not this call that took so long
                if call >= void_from:  # it was taken back, and so were all that follow it
                    outgoing.flush(now)
                    return
                call += 1
                if type(payload) in _ARGUMENTS and not isinstance(function, bytes):
                    try:
                        if type(payload) is tuple:
                            outcome = function(*payload)
                        elif type(payload) is dict:
                            outcome = function(*payload.pop(UNNAMED), **payload)
                        else:
                            outcome = function(payload)
                    except BaseException as error:
                        kind, outcome = FAILURE, describe_failure(error, RUNNING)
                    else:
                        kind = PLAIN
                        if type(outcome) not in NUMBERS:
                            kind, outcome = self._finish(outcome, None)
                else:
                    kind, outcome = self._call_packed(number, payload, frame)
                    function = self.functions[number]
                if not original:
                    _leave_forked_copy()
                if unfinished:
                    stdio.finish_lines()
                if kind:
                    now = outgoing.put(kind, outcome)
                else:  # as put() does it, but here: a quarter of what a small call takes is saved so
                    try:
                        write(marshalled(outcome, VERSION))
                    except ValueError:  # there is no room
                        now = outgoing.put(kind, outcome)
                    else:
                        outgoing.count = head[COUNT] = outgoing.count + 1
                        now = monotonic_ns()
                        if now - outgoing.flushed_at > PATIENCE_NS:
                            now = outgoing.flush(now)
                # A large result must not live on in a worker that waits.
                del outcome
        outgoing.flush(now)

    def _call_packed(self, number: int, payload: Any, frame: Frame) -> tuple[int, Any]:
        """Make a call of which something is to be unpickled: its function, its arguments, or both."""
        if type(payload) is not list:
            return self._load_and_call(number, payload, None, frame)
        blob, parts = payload
        if type(blob) is bytes:
            return self._load_and_call(number, blob, parts, frame)
        if type(blob) is int:
            return self._load_and_call(number, frame.take(blob), parts, frame)
        outcome = self._load_and_call(number, self.ring.look(*blob), parts, frame)
        if self.original:  # a forked copy knows not where the worker is by now
            self.ring.take(sum(blob))
        return outcome

    def _load_and_call(self, number: int, payload: Any, parts: Any, frame: Frame) -> tuple[int, Any]:
        try:
            function = self.functions[number]
            if isinstance(function, bytes):
                # What it imports is not the call's to answer for: a replacement would have to import it again.
                self.head[STARTED] = _NEVER
                try:
                    function = self.functions[number] = loads(function)
                finally:
                    self.head[STARTED] = monotonic_ns()
            arguments, keywords, variables = self._arguments(payload, parts, frame)
            context = self._context_of(variables) if variables is not None else None
        except BaseException as error:
            return FAILURE, describe_failure(error, LOADING)
        try:
            value = (
                function(*arguments, **keywords) if context is None else context.run(function, *arguments, **keywords)
            )
        except BaseException as error:
            return FAILURE, describe_failure(error, RUNNING)
        return self._finish(value, context)

    def _arguments(self, payload: Any, parts: Any, frame: Frame) -> Any:
        """Return a call's arguments, those with names, and its context variables."""
        if parts:
            return self._memory().load(payload, parts, frame.loans)
        if type(payload) is bytes or type(payload) is memoryview:
            return loads(payload)
        if type(payload) is dict:
            return payload.pop(UNNAMED), payload, None
        return payload if type(payload) is tuple else (payload,), {}, None

    def _finish(self, value: Any, context: Any) -> tuple[int, Any]:
        if type(value) is _Coroutine or hasattr(type(value), "__await__"):
            try:
                value = self._await(value, context)
            except BaseException as error:
                return FAILURE, describe_failure(error, RUNNING)
        return self._encode(value)

    def _encode(self, value: Any) -> tuple[int, Any]:
        kind = type(value)
        if kind in NUMBERS or (kind in TEXTS and len(value) <= _PLAIN_LENGTH):
            return PLAIN, value
        if not self.original:  # before it says where in shared memory a result is
            _leave_forked_copy()
        begun = monotonic_ns()
        try:
            if kind in TEXTS:
                pieces = pickle_plain(value, len(value))
            elif "numpy" in sys.modules or "pyarrow" in sys.modules:
                pieces, segment, spans = self._memory().encode(value, *self.results)
                if spans:
                    return IN_SEGMENT, dumps((segment, spans, b"".join(pieces)), 5)
            elif self.last_was_large:
                pieces, _ = pickle_in_pieces(value)
            else:  # nothing here makes buffers
                pieces = [pickle(value)]
            size = sum(map(len, pieces))
            self.last_was_large = size > LARGE_BYTES
            if not self.last_was_large:
                return PICKLED, b"".join(pieces)
            return LARGE if monotonic_ns() - begun < _MOMENT_NS else SLOW, pieces
        except BaseException as error:
            return FAILURE, describe_failure(error, RETURNING)

    def _await(self, awaitable: Any, context: Any) -> Any:
        import asyncio

        if self.runner is None:
            self.runner = asyncio.Runner()

        async def wait() -> Any:
            return await awaitable

        return self.runner.run(wait(), context=context)

    def _context_of(self, variables: list[tuple[bytes, Any]]) -> Any:
        """A copy of our context with these variables set: pairs of a pickled ContextVar and its value."""
        from contextvars import copy_context

        context = copy_context()
        for blob, value in variables:
            variable = self.variables.get(blob)
            if variable is None:
                variable = self.variables[blob] = loads(blob)
            context.run(variable.set, value)
        return context


def _leave_forked_copy() -> None:
    """A call forked and its copy came back to our loop: end the copy, quietly, as after ``os.fork`` in a script."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except Exception:  # it is closed, or cannot be written: the copy must not go on for that
            continue
    os._exit(0)
