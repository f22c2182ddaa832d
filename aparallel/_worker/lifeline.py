"""The parent's death is the worker's, at once, whatever the worker is doing."""

from __future__ import annotations

import fcntl
import os

SIGKILL = 9  # POSIX; the module signal would cost a worker's start 3 ms


def hold(fd: int) -> None:
    """Die by SIGKILL, with the whole process group, when the parent's end of this pipe closes.

    Linux sends the signal from the kernel, so it also ends C code that holds the GIL. PDEATHSIG would
    fire when the *thread* that started us ends. Elsewhere a thread waits, which C code can delay.
    """
    set_signal = getattr(fcntl, "F_SETSIG", None)
    if set_signal is None:
        import threading

        threading.Thread(target=_wait, args=(fd,), name="aparallel-lifeline", daemon=True).start()
        return
    fcntl.fcntl(fd, set_signal, SIGKILL)
    fcntl.fcntl(fd, fcntl.F_SETOWN, -os.getpgrp())
    fcntl.fcntl(fd, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
    try:
        if os.read(fd, 1) == b"":  # it closed before we listened
            _end()
    except BlockingIOError:
        pass  # open, as it should be


def _wait(fd: int) -> None:
    while os.read(fd, 1):
        pass
    _end()


def _end() -> None:
    os.killpg(os.getpgrp(), SIGKILL)
