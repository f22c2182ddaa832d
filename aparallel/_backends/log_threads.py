"""The two threads that take care of workers' records: one reads, one runs the user's handlers.

Two, because handlers may be slow or stuck: the reader goes on emptying the pipes, so a worker waits only when it is
``MOST_AHEAD`` (8 MB) ahead of the handlers. The loop waits for neither.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
from collections import deque
from queue import SimpleQueue
from time import monotonic
from typing import TYPE_CHECKING

from aparallel._backends.log_source import PIPE_BYTES, READ_BYTES
from aparallel._ground.forks import renew_after_fork
from aparallel._ground.hop import pause

if TYPE_CHECKING:
    from collections.abc import Callable

    from aparallel._backends.log_source import Source

# What handling holds the GIL for at most, between records. A pause costs up to 0.1 ms, so it is not made after each.
_SECONDS_AT_ONCE = 0.0005

# Records come one by one; reading each by itself would cost this process more than handling it.
_TOGETHER_MS = 1


class Handling:
    """The thread that handles records, in the order read, and says when it has come to a ticket."""

    def __init__(self, handle: Callable[[bytes], None], on_ticket: Callable[[int], None]) -> None:
        self._handle = handle
        self._on_ticket = on_ticket
        self.resume: Callable[[Source], None]
        self.items: SimpleQueue[tuple[Source, bytes] | int | None] = SimpleQueue()
        # Records handled so far.
        self.count = 0
        self._pause_at = 0.0
        self.thread = threading.Thread(target=self._run, name="aparallel-logs", daemon=True)

    def _run(self) -> None:
        while (item := self.items.get()) is not None:
            if isinstance(item, int):
                self._on_ticket(item)
                continue
            self.handle_all(*item)

    def handle_all(self, source: Source, data: bytes) -> None:
        for record in source.records(data):
            self._handle(record)
            self.count += 1
            if monotonic() > self._pause_at:  # the loop may be waiting for the GIL
                pause()
                self._pause_at = monotonic() + _SECONDS_AT_ONCE
        source.handled += len(data)
        # Handled first, then the look; the reader says that it waits, then looks at what is handled.
        if source.waits and not source.is_far_ahead():
            self.resume(source)


class LogReader:
    """The thread that empties the pipes into the handling thread's queue.

    It owns all sources from :meth:`add` on, and closes them. Others ask, from any thread.

    Attributes:
        handling: the other thread, which starts and ends with this one.
    """

    def __init__(self, handling: Handling) -> None:
        self.handling = handling
        handling.resume = self.resume
        self._requests: deque[Callable[[], bool | None]] = deque()
        self._wake_fd, self._waker = os.pipe()
        renew_after_fork(self)
        os.set_blocking(self._waker, False)
        self._sources: dict[int, Source] = {}
        self._last = 0
        self._poll = select.poll()
        self._poll.register(self._wake_fd, select.POLLIN)
        self._asked = select.poll()
        self._asked.register(self._wake_fd, select.POLLIN)
        # The waker is used under it, because it is closed at some time.
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="aparallel-logs-reader", daemon=True)

    def start(self) -> None:
        """Start both threads.

        Raises:
            RuntimeError: there is no thread to be had.
        """
        try:
            self.handling.thread.start()
            self._thread.start()
        except RuntimeError:
            self.handling.items.put(None)
            self.close()
            raise

    def join(self, timeout: float | None = None) -> None:
        """Wait for both, for *timeout* seconds each."""
        self._thread.join(timeout)
        self.handling.thread.join(timeout)

    # Asked by others

    def add(self, source: Source) -> None:
        """Read *source* from now on."""
        self._ask(lambda: self._add(source))

    def reach(self, source: Source, ticket: int) -> None:
        """Read what is there now, and put *ticket* behind it."""
        self._ask(lambda: self._reach(source, ticket))

    def finish(self, source: Source, ticket: int) -> None:
        """The same for the last time: the worker is dead."""
        self._ask(lambda: self._finish(source, ticket))

    def resume(self, source: Source) -> None:
        """The worker is not too far ahead any more."""
        self._ask(lambda: self._resume(source))

    def stop(self, ticket: int) -> None:
        """Finish all sources and end this thread; the handling one ends with *ticket*."""
        self._last = ticket
        self._ask(lambda: True)

    def _ask(self, request: Callable[[], bool | None]) -> None:
        self._requests.append(request)
        with self._lock:
            if self._waker >= 0:
                with contextlib.suppress(BlockingIOError):  # it is full, so the reader is being woken
                    os.write(self._waker, b"!")

    # In the thread

    def _run(self) -> None:
        stopped = False
        while not stopped:
            came = False
            for fd, _ in self._poll.poll():
                if fd == self._wake_fd:
                    os.read(fd, 4096)
                elif (source := self._sources.get(fd)) is not None:
                    came = True
                    self._read(source)
            stopped = self._answer()
            if came and not stopped:
                self._asked.poll(_TOGETHER_MS)
        for source in list(self._sources.values()):
            self._finish(source, None)
        with self._lock:
            self.close()
        self.handling.items.put(self._last)
        self.handling.items.put(None)

    def _answer(self) -> bool:
        """Do what was asked; return whether to stop."""
        stop = False
        while self._requests:
            stop = bool(self._requests.popleft()()) or stop
        return stop

    def _add(self, source: Source) -> None:
        self._sources[source.fd] = source
        self._poll.register(source.fd, select.POLLIN)

    def _read(self, source: Source) -> None:
        """Read what is there, and no more than the worker may be ahead."""
        while not source.is_far_ahead():
            if not self._take(source):
                return
        source.waits = True
        self._poll.unregister(source.fd)
        if not source.is_far_ahead():  # see Handling.handle_all
            self._resume(source)

    def _take(self, source: Source) -> bool:
        """Read once; return whether there may be more."""
        data = source.take()
        if data == b"":  # the end: nobody can write any more, and polling would say so for ever
            self._unregister(source)
        if not data:
            return False
        source.read += len(data)
        self.handling.items.put((source, data))
        return len(data) == READ_BYTES

    def _resume(self, source: Source) -> None:
        if source.waits and source.is_open:
            source.waits = False
            self._poll.register(source.fd, select.POLLIN)

    def _reach(self, source: Source, ticket: int | None) -> None:
        """Read all that was there when this began, however far ahead the worker is: it is a pipe's content at most."""
        if source.is_open:
            until = source.read + PIPE_BYTES
            while source.read < until and self._take(source):
                pass
        if ticket is not None:
            self.handling.items.put(ticket)

    def _finish(self, source: Source, ticket: int | None) -> None:
        self._reach(source, ticket)
        self._unregister(source)
        self._sources.pop(source.fd, None)
        source.close()

    def _unregister(self, source: Source) -> None:
        with contextlib.suppress(KeyError):  # it waits, or its end was reached
            self._poll.unregister(source.fd)

    def close(self) -> None:
        wake_fd, waker, self._wake_fd, self._waker = self._wake_fd, self._waker, -1, -1
        for fd in (wake_fd, waker):
            if fd >= 0:
                os.close(fd)

    after_fork = close
