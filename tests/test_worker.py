"""The worker's side of the wire, with the parent's played by a test."""

from __future__ import annotations

import pickle
import socket
import tempfile
import threading

from aparallel._wire import frames
from aparallel._wire.outbox import RECALLS, SIZE, Outbox
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
