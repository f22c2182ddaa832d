"""Who owns a call that is being taken back, in interleavings that the parent's side of the protocol forces."""

from __future__ import annotations

import os
import pickle
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from aparallel._transfer.shared_memory import create_in_memory
from aparallel._wire import frames
from aparallel._wire.outbox import RECALLS, SIZE, Outbox
from aparallel._worker.loop import _Worker


class Parent:
    """A worker in this thread, and the parent's end of it: what is sent waits in the socket until it reads."""

    def __init__(self) -> None:
        self.socket, end = socket.socketpair()
        fd = create_in_memory(SIZE)
        self.outbox = Outbox(fd)
        os.close(fd)
        self.worker = _Worker(end, self.outbox)
        self.worker.functions[0] = lambda act: act()
        self.sent = 0

    def send_calls(self, *acts: Callable[[], Any]) -> None:
        batch = (0, [(act,) for act in acts], (1 << 62, None))
        self._write(frames.CALLS, ([], [], [batch], []), self.sent)
        self.sent += len(acts)

    def raise_recalls(self) -> None:
        self.outbox.head[RECALLS] += 1

    def send_verdict(self, void_from: int) -> None:
        self._write(frames.VERDICT, void_from, 0)

    def _write(self, kind: int, control: object, first: int) -> None:
        body = pickle.dumps(control, 5)
        self.socket.sendall(frames.TO_WORKER.pack(kind, len(body), 0, first) + body)

    def serve(self) -> None:
        self.socket.shutdown(socket.SHUT_WR)
        self.worker.serve()

    def busy_seconds(self) -> list[float]:
        """How long the calls of each frame of outcomes ran that the worker has sent."""
        data, busy = self.socket.recv(1 << 16), []
        while data:
            _, count, _, nanoseconds, size = frames.TO_PARENT.unpack_from(data)
            if count:
                busy.append(nanoseconds / 1e9)
            data = data[frames.TO_PARENT.size + size :]
        return busy


@pytest.fixture
def parent() -> Iterator[Parent]:
    parent = Parent()
    yield parent
    parent.socket.close()
    parent.outbox.close()


# What calls do, by name, as they travel pickled.
_ran: list[str] = []
_parents: list[Parent] = []


@pytest.fixture(autouse=True)
def empty(parent: Parent) -> Iterator[None]:
    _parents.append(parent)
    yield
    _parents.clear()
    _ran.clear()


def first() -> None:
    _ran.append("first")


def second() -> None:
    _ran.append("second")


def third() -> None:
    _ran.append("third")


def take_back_the_next_message() -> None:
    """While the first call runs, the rest of its message, already taken back, is sent again and taken back again."""
    (parent,) = _parents
    first()
    parent.send_calls(second)
    parent.raise_recalls()
    parent.send_verdict(parent.sent - 1)
    parent.send_calls(third)
    parent.socket.shutdown(socket.SHUT_WR)


def test_what_is_taken_back_does_not_run(parent: Parent) -> None:
    parent.raise_recalls()
    parent.send_calls(first, second)
    parent.send_verdict(1)
    parent.send_calls(third)
    parent.serve()
    assert _ran == ["first", "third"]


def test_what_was_taken_back_does_not_run_after_a_second_recall_before_the_worker_looked(parent: Parent) -> None:
    parent.raise_recalls()
    parent.send_calls(take_back_the_next_message, second)
    parent.send_verdict(1)
    parent.worker.serve()
    assert _ran == ["first", "third"]


def take_back_what_is_not_there_after_a_while() -> None:
    (parent,) = _parents
    parent.raise_recalls()

    def settle() -> None:
        parent.send_verdict(parent.sent)
        parent.socket.shutdown(socket.SHUT_WR)

    threading.Timer(0.3, settle).start()


def test_a_call_that_waits_for_a_verdict_counts_as_running_from_then_on(parent: Parent) -> None:
    """Else a tiny call would count as one of milliseconds, and others like it travel alone."""
    parent.send_calls(take_back_what_is_not_there_after_a_while, second)
    parent.worker.serve()
    assert _ran == ["second"]
    assert sum(parent.busy_seconds()) < 0.3
