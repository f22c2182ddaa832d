"""The worker's side of the wire, with the parent's played by a test."""

from __future__ import annotations

import pickle
import socket
import tempfile
import threading

import pytest

from aparallel._wire import frames
from aparallel._wire.outbox import RECALLS, SIZE, Outbox
from aparallel._worker import incoming
from aparallel._worker.incoming import Arrival
from aparallel._worker.loop import _Worker

ran: list[int] = []
parents: list[Outbox] = []


def run(number: int, recall: bool) -> None:
    """Note that this call ran; *recall*: the parent begins to take calls back meanwhile."""
    ran.append(number)
    if recall:
        parents[0].head[RECALLS] += 1


def frame(kind: int, control: object, first: int = 0) -> bytes:
    body = pickle.dumps(control)
    return frames.TO_WORKER.pack(kind, len(body), 0, first) + body


def calls(*numbers: int, recall: bool = False, new: bool = False) -> bytes:
    functions = [(0, pickle.dumps(run))] if new else []
    payloads = [pickle.dumps(((number, recall), {}, None)) for number in numbers]
    return frame(frames.CALLS, (functions, [], [(0, payloads, (1 << 62, None))], []), first=numbers[0])


def test_calls_that_a_first_verdict_took_do_not_run_after_a_second_one() -> None:
    ran.clear()
    with tempfile.TemporaryFile() as memory:
        memory.truncate(SIZE)
        theirs, ours = Outbox(memory.fileno()), Outbox(memory.fileno())
    parents[:] = [ours]
    worker_end, parent_end = socket.socketpair()
    worker = threading.Thread(target=_Worker(worker_end, theirs).serve)
    try:
        ours.head[RECALLS] = 1
        parent_end.sendall(
            calls(0, 1, 2, recall=True, new=True)  # 0 is claimed when the verdict comes, and raises the count again
            + frame(frames.VERDICT, 1)
            + calls(3)
            + frame(frames.VERDICT, 3)
            + calls(4)
        )
        parent_end.shutdown(socket.SHUT_WR)
        worker.start()
        worker.join(20)
        assert not worker.is_alive()
        assert ran == [0, 4]
    finally:
        parent_end.close()
        ours.close()
        theirs.close()


askers: list[_Worker] = []


def ask(number: int, recall: bool) -> None:
    """Run as above, and find no room for the result."""
    run(number, recall)
    askers[0]._ask_for_room()


def asks(number: int, *, recall: bool) -> bytes:
    payload = pickle.dumps(((number, recall), {}, None))
    return frame(frames.CALLS, ([(1, pickle.dumps(ask))], [], [(1, [payload], (1 << 62, None))], []), first=number)


RELIEVED = frame(frames.RELIEVED, None)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        pytest.param([calls(1, new=True), RELIEVED, calls(2)], [0, 1, 2], id="calls"),
        pytest.param([frame(frames.MEMORY, ([], [], "now")), RELIEVED, calls(1, new=True)], [0, 1], id="memory"),
        pytest.param(
            [calls(1, new=True), frame(frames.VERDICT, 1), calls(2), RELIEVED, calls(3)], [0, 2, 3], id="taken back"
        ),
        pytest.param(
            [frame(frames.VERDICT, 1), RELIEVED, calls(1, recall=True, new=True), calls(2), frame(frames.VERDICT, 3)],
            [0, 1, 2],  # the first verdict says nothing of them
            id="taken back twice",
        ),
        pytest.param([calls(1, new=True)], [0, 1], id="hung up"),
    ],
)
def test_what_comes_while_a_worker_waits_for_room_runs_after_that_unless_it_is_taken_back(
    said: list[bytes], expected: list[int]
) -> None:
    ran.clear()
    with tempfile.TemporaryFile() as memory:
        memory.truncate(SIZE)
        theirs, ours = Outbox(memory.fileno()), Outbox(memory.fileno())
    parents[:] = [ours]
    worker_end, parent_end = socket.socketpair()
    askers[:] = [_Worker(worker_end, theirs)]
    worker = threading.Thread(target=askers[0].serve)
    is_recalled = any(frames.TO_WORKER.unpack_from(each)[0] == frames.VERDICT for each in said)
    try:
        parent_end.sendall(asks(0, recall=is_recalled) + b"".join(said))
        parent_end.shutdown(socket.SHUT_WR)
        worker.start()
        worker.join(20)
        assert not worker.is_alive()
        assert ran == expected
    finally:
        askers.clear()
        parent_end.close()
        ours.close()
        theirs.close()


class Arriving:
    """In place of a poll object: the next frame is there at a moment, in nanoseconds; a look takes a microsecond."""

    def __init__(self) -> None:
        self.now = self.due = 0
        self.looks = self.sleeps = 0

    def poll(self, timeout: int | None = None) -> bool:
        if timeout is None:
            self.sleeps += 1
            self.now = max(self.now, self.due)
        else:
            self.looks += 1
            self.now += 1_000
        return self.now >= self.due


def test_a_worker_stays_awake_only_where_frames_follow_each_other_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    line, frame_after = Arriving(), {"rare": 5_000_000, "soon": 100_000, "at once": 0}
    monkeypatch.setattr(incoming, "monotonic_ns", lambda: line.now)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        waiting = Arrival(ours)
        monkeypatch.setattr(waiting, "_poll", line)

        def wait(when: str) -> tuple[bool, bool]:
            """Whether the worker looked again and again, and whether it slept."""
            line.looks = line.sleeps = 0
            line.due = line.now + frame_after[when]
            waiting.wait()
            assert line.now >= line.due
            return line.looks > 2, line.sleeps > 0

        assert wait("at once") == (False, False)
        assert [wait("rare"), wait("rare")] == [(False, True)] * 2
        assert wait("soon") == (False, True)
        assert [wait("soon"), wait("soon")] == [(True, False)] * 2
        assert wait("at once") == (False, False)
        assert wait("rare") == (True, True)  # for a moment, and then no more
        assert wait("rare") == (False, True)


def test_the_end_of_a_connection_is_something_to_read() -> None:
    ours, theirs = socket.socketpair()
    with ours:
        theirs.close()
        Arrival(ours).wait()
