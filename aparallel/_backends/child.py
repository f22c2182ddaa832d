"""A worker's operating-system process: started, watched, ended, reaped, private to this parent; and a spare one."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

from aparallel._ground.forks import renew_after_fork
from aparallel._transfer.shared_memory import create_in_file, create_in_memory
from aparallel._wire.outbox import SIZE, SIZE_WITH_RINGS, Outbox
from aparallel.errors import UnsupportedPlatformError

if TYPE_CHECKING:
    from collections.abc import Callable

# Not with pathlib, whose import would delay a script's first result.
_MAIN = os.path.join(os.path.dirname(os.path.dirname(__file__)), "_worker", "__main__.py")

# The spare starts when the first workers have had time to start: it must not compete with them.
_SPARE_DELAY_SECONDS = 0.1


def check_platform(executable: Any) -> str:
    """Return the interpreter to start workers with.

    Raises:
        TypeError: *executable* is no path.
        UnsupportedPlatformError: Windows, or this program is not run by a Python interpreter.
    """
    if os.name != "posix":
        raise UnsupportedPlatformError(
            f"Process workers need Unix sockets and process groups, which {sys.platform} does not have. "
            f"Use backend='thread', or run under Linux, WSL or macOS."
        )
    if isinstance(executable, str | bytes | os.PathLike):
        return os.fsdecode(executable)
    if executable is not None:
        raise TypeError(f"executable={executable!r} is not the path of a Python interpreter.")
    name = os.path.basename(sys.executable or "").lower()
    if getattr(sys, "frozen", False) or not name.startswith(("python", "pypy")):
        raise UnsupportedPlatformError(
            f"sys.executable is {sys.executable!r}, which is not a Python interpreter (a frozen program, or one that "
            f"embeds Python), so no worker can be started with it. Give the path of one: Pool(executable=...)."
        )
    return sys.executable


class Child:
    """A bare worker process. It waits for its first frame; until then any pool settings fit it.

    Attributes:
        socket: our end of the pair, non-blocking.
        outbox: the memory that the child's outcomes wait in.

    Args:
        logs: whether it gets a pipe for log records.
    """

    def __init__(self, executable: str, *, logs: bool) -> None:
        self._owner = os.getpid()
        self._descriptors: list[int] = []
        self._popen: subprocess.Popen[bytes] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pidfd: int | None = None
        self._exited: Callable[[], object] | None = None
        self._reaped = False
        self.outbox: Outbox | None = None
        self._logs: int | None = None
        renew_after_fork(self)
        theirs: list[int] = []
        try:
            self.socket, far = socket.socketpair()
            theirs.append(far.detach())
            self.socket.setblocking(False)
            far_line, self._lifeline = os.pipe()
            theirs.append(far_line)
            self._descriptors.append(self._lifeline)
            memory = _create_memory()
            theirs.append(memory)
            self.outbox = Outbox(memory)
            if logs:
                self._logs, far_logs = os.pipe()
                self._descriptors.append(self._logs)
                theirs.append(far_logs)
            self._popen = subprocess.Popen(
                _command(executable, theirs),
                stdin=subprocess.DEVNULL,
                pass_fds=theirs,
                process_group=0,
            )
        except BaseException as error:
            self.close_descriptors()
            if isinstance(error, OSError):
                raise _start_error(executable, error) from error
            raise
        finally:
            for fd in theirs:
                os.close(fd)

    @property
    def pid(self) -> int:
        assert self._popen is not None
        return self._popen.pid

    def take_logs(self) -> int | None:
        """Return our end of the pipe for log records, the caller's from now on; None if there is none."""
        logs, self._logs = self._logs, None
        if logs is not None:
            self._descriptors.remove(logs)
        return logs

    def watch(self, loop: asyncio.AbstractEventLoop, exited: Callable[[], object]) -> None:
        """Call *exited* on *loop* once the process has ended, not reaped yet. A later *exited* replaces it.

        Raises:
            RuntimeError: there is no thread for that. It has been ended.
        """
        watched = self._exited is not None
        self._exited = exited
        if not watched:
            self._watch(loop)

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        if hasattr(os, "pidfd_open"):
            with contextlib.suppress(OSError):  # an old kernel, or a sandbox that forbids it
                self._pidfd = os.pidfd_open(self.pid)
                self._descriptors.append(self._pidfd)
                loop.add_reader(self._pidfd, self._on_exit)
                return
        thread = threading.Thread(
            target=_wait_for, args=(self.pid, loop, self._on_exit), name=f"aparallel-wait-{self.pid}", daemon=True
        )
        try:
            thread.start()
        except RuntimeError:
            self.kill()
            self.reap()
            raise

    def _on_exit(self) -> None:
        if self._exited is not None and not self._reaped:
            self._exited()

    def kill(self) -> None:
        """Send SIGKILL to its whole process group, unless it is reaped: the number may be another's by then."""
        if self._owner == os.getpid() and not self._reaped:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)

    def reap(self) -> tuple[int | None, int | None]:
        """After it has ended: end what is left of its group, reap it, close everything.

        Returns the exit code and the signal; both None if someone else has reaped it already.
        """
        assert self._popen is not None
        try:
            # Left unreaped for a moment, so that its number, which names the group, is nobody else's.
            _wait_unreaped(self.pid)
            self.kill()
            code = self._popen.wait()
        except ChildProcessError:
            code = None
            self._popen.returncode = 0  # so that Popen does not report a child left behind
        self._reaped = True
        self.close_descriptors()
        if code is None:
            return None, None
        return (code, None) if code >= 0 else (None, -code)

    def close_descriptors(self) -> None:
        if self._pidfd is not None and self._loop is not None and self._owner == os.getpid():
            if not self._loop.is_closed():
                self._loop.remove_reader(self._pidfd)
            self._pidfd = None
        descriptors, self._descriptors = self._descriptors, []
        for fd in descriptors:
            os.close(fd)
        if hasattr(self, "socket"):
            self.socket.close()
        if self.outbox is not None:
            outbox, self.outbox = self.outbox, None
            outbox.close()

    def after_fork(self) -> None:
        """In a forked copy of this process: a lifeline there would keep the worker alive after its parent's death."""
        self.close_descriptors()


class Spare:
    """At most one child that stands by, so that who replaces a killed worker need not wait for one to start.

    It is started late, on a timer, and replaced when it is taken.

    Args:
        new_child: starts one.
        is_needed: whether one is of use: there are workers, and the pool is open.
    """

    def __init__(self, new_child: Callable[[], Child], is_needed: Callable[[], bool]) -> None:
        self._new_child = new_child
        self._is_needed = is_needed
        self._child: Child | None = None
        self._timer: asyncio.TimerHandle | None = None
        # Every one that was not taken and is alive, standing by or on its way out, with what is done when it is gone.
        self._alive: dict[Child, asyncio.Future[None]] = {}

    def take(self) -> Child | None:
        """Return the one that stands by, if there is one. Its exit is the caller's to watch for from now on."""
        child, self._child = self._child, None
        if child is not None:
            del self._alive[child]
        return child

    def start_later(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start one in a moment, counted from now also if it was to start before."""
        self._stop_timer()
        self._timer = loop.call_later(_SPARE_DELAY_SECONDS, self.start, loop)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start one now, if it is needed and none stands by."""
        self._stop_timer()
        if self._child is not None or not self._is_needed():
            return
        with contextlib.suppress(OSError, RuntimeError):  # the spare can wait; a worker would report it
            child = self._new_child()
            child.watch(loop, lambda: self._on_exit(child))
            self._alive[child] = loop.create_future()
            self._child = child

    def drop(self) -> None:
        """Let go of the one that stands by, and start none."""
        self._stop_timer()
        child, self._child = self._child, None
        if child is not None:
            child.kill()

    async def wait_until_gone(self) -> None:
        """Wait until all that were dropped have ended."""
        if self._alive:
            await asyncio.wait(list(self._alive.values()))

    def give_up(self) -> list[Child]:
        """Return all that are alive, for the caller to end: there is no loop any more."""
        children = list(self._alive)
        self._alive.clear()
        self._child = None
        return children

    def _on_exit(self, child: Child) -> None:
        if self._child is child:
            self._child = None
        child.reap()
        gone = self._alive.pop(child, None)
        if gone is not None and not gone.done():
            gone.set_result(None)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _create_memory() -> int:
    """Return a descriptor of memory for an outbox and, where they are safe, rings."""
    try:
        return create_in_memory(SIZE_WITH_RINGS)
    except OSError:
        return create_in_file(SIZE, None)


def _command(executable: str, descriptors: list[int]) -> list[str]:
    # The flags of this interpreter (-O, -X dev, -W ...), as the standard library's own pools pass them on.
    flags: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    return [executable, *flags, "-P", _MAIN, *map(str, descriptors)]


def _start_error(executable: str, error: OSError) -> Exception:
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return OSError(
            error.errno,
            "No file descriptors are left to start a worker process, which takes eight. "
            "Close what leaks them, or raise the limit (ulimit -n)",
        )
    if isinstance(error, FileNotFoundError | PermissionError):
        return UnsupportedPlatformError(
            f"The interpreter {executable!r} cannot be started: {error.strerror}. "
            f"Give a working one: Pool(executable=...)."
        )
    return OSError(error.errno, f"A worker process could not be started: {error.strerror}")


def _wait_for(pid: int, loop: asyncio.AbstractEventLoop, exited: Callable[[], Any]) -> None:
    with contextlib.suppress(ChildProcessError):
        _wait_unreaped(pid)
    with contextlib.suppress(RuntimeError):  # the loop has closed; whoever closed it has reaped
        loop.call_soon_threadsafe(exited)


def _wait_unreaped(pid: int) -> None:
    """Return when a child has ended, without reaping it.

    Raises:
        ChildProcessError: someone else has reaped it already, as far as that is told.
    """
    if hasattr(os, "waitid"):
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        return
    bsd: Any = select  # macOS, where Python has no waitid before 3.13
    with contextlib.closing(bsd.kqueue()) as queue:
        exit_of_it = bsd.kevent(pid, bsd.KQ_FILTER_PROC, bsd.KQ_EV_ADD, bsd.KQ_NOTE_EXIT)
        queue.control([exit_of_it], 1)  # if it has ended before, that is an event, too: an error
