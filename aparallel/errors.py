"""Every error that aparallel raises.

::

    AparallelError
    ├── BrokenWorkerError         a worker died while it ran a call          (RuntimeError)
    ├── CallTimeoutError          a call ran longer than its timeout         (TimeoutError)
    ├── RemoteCallError           a call failed with what cannot be raised   (RuntimeError)
    │                             here as it is
    ├── UnpicklableCallError      a call cannot travel to a worker           (TypeError)
    ├── UnpicklableResultError    a result cannot travel back                (TypeError)
    ├── SharedMemoryError         large data found no room on its way        (MemoryError)
    ├── SharingError              an argument cannot be shared as asked      (ValueError)
    ├── PoolSaturatedError        the pool has too much to do                (RuntimeError)
    ├── ClosedPoolError           the pool is closed                         (RuntimeError)
    ├── WrongLoopError            no asyncio loop, or not the pool's         (RuntimeError)
    ├── MissingPoolError          an app has no pool, or not yet             (LookupError)
    ├── InitializerError          a pool's initializer failed                (RuntimeError)
    ├── UnsupportedPlatformError  this system cannot start process workers   (RuntimeError)
    ├── UnpicklableObjectError    an object cannot be dumped                 (TypeError)
    ├── UntrustedTypeError        a file asks for types that are not trusted (ValueError)
    ├── CorruptFileError          a file is not what was written             (ValueError)
    │   ├── EmptyFileError        it has no bytes
    │   ├── TruncatedFileError    its end is missing
    │   ├── ChecksumError         bytes of it have changed
    │   └── SignatureError        it was not signed with this key
    ├── UnsupportedFormatError    a file cannot be read here, or not so      (ValueError)
    │   └── NewerVersionError     a later aparallel wrote it
    ├── UnstableValueError        no key can be made of a value              (TypeError)
    ├── UntrustedDirectoryError   others may have written cached results     (PermissionError)
    ├── StoreError                cached results cannot be told or removed   (OSError)
    ├── RecursiveCallError        a memoized call awaits itself              (RecursionError)
    └── MissingResultError        a stored result is not there any more      (KeyError)

A warning, not an error: NotStoredWarning (UserWarning), a result could not be stored.

What a call itself raises arrives with its own type, with a :class:`RemoteTraceback` at the end
of its cause chain. All of them survive pickling with their attributes.
"""

from __future__ import annotations

__all__ = [
    "AparallelError",
    "BrokenWorkerError",
    "CallTimeoutError",
    "ChecksumError",
    "ClosedPoolError",
    "CorruptFileError",
    "EmptyFileError",
    "InitializerError",
    "MissingPoolError",
    "MissingResultError",
    "NewerVersionError",
    "NotStoredWarning",
    "PoolSaturatedError",
    "RecursiveCallError",
    "RemoteCallError",
    "RemoteTraceback",
    "SharedMemoryError",
    "SharingError",
    "SignatureError",
    "StoreError",
    "TruncatedFileError",
    "UnpicklableCallError",
    "UnpicklableObjectError",
    "UnpicklableResultError",
    "UnstableValueError",
    "UnsupportedFormatError",
    "UnsupportedPlatformError",
    "UntrustedDirectoryError",
    "UntrustedTypeError",
    "WrongLoopError",
]


class AparallelError(Exception):
    """The root of aparallel's own errors.

    Attributes are keyword arguments with defaults: pickle rebuilds an exception from its
    message alone and restores the attributes afterwards.
    """


class BrokenWorkerError(AparallelError, RuntimeError):
    """A worker died while it ran a call. Only that call is lost; the worker is replaced.

    Attributes:
        call: which call, as text.
        exitcode: the worker's exit code, or None if a signal ended it or nobody knows.
        signal: the number of the signal that ended it, or None.
    """

    def __init__(
        self, message: str = "", *, call: str = "", exitcode: int | None = None, signal: int | None = None
    ) -> None:
        super().__init__(message)
        self.call = call
        self.exitcode = exitcode
        self.signal = signal


class CallTimeoutError(AparallelError, TimeoutError):
    """A call ran longer than its ``timeout``, in seconds of execution.

    Attributes:
        call: which call, as text.
        timeout: the limit, in seconds.
    """

    def __init__(self, message: str = "", *, call: str = "", timeout: float | None = None) -> None:
        super().__init__(message)
        self.call = call
        self.timeout = timeout


class RemoteCallError(AparallelError, RuntimeError):
    """A call failed with an exception that cannot be raised here as it is.

    Either it cannot be pickled or rebuilt, or it would mean something else in this task: a
    CancelledError, StopIteration, StopAsyncIteration, GeneratorExit, SystemExit or
    KeyboardInterrupt.

    Attributes:
        type_name: the qualified name of the exception's type.
        text: what ``str()`` said of it.
        traceback: the worker's traceback, as text.
    """

    def __init__(self, message: str = "", *, type_name: str = "", text: str = "", traceback: str = "") -> None:
        super().__init__(message)
        self.type_name = type_name
        self.text = text
        self.traceback = traceback


class UnpicklableCallError(AparallelError, TypeError):
    """A call cannot travel to a process worker. Other calls are not affected.

    Attributes:
        call: which call, as text.
        part: which part of it, such as ``argument 1`` or ``the function``.
    """

    def __init__(self, message: str = "", *, call: str = "", part: str = "") -> None:
        super().__init__(message)
        self.call = call
        self.part = part


class UnpicklableResultError(AparallelError, TypeError):
    """A call ran, but its result cannot travel back. Its cause says why.

    Attributes:
        call: which call, as text.
    """

    def __init__(self, message: str = "", *, call: str = "") -> None:
        super().__init__(message)
        self.call = call


class SharedMemoryError(AparallelError, MemoryError):
    """Large data found no room on its way: neither in memory nor in a file, or nothing could map it.

    Attributes:
        nbytes: how many bytes it was about.
    """

    def __init__(self, message: str = "", *, nbytes: int | None = None) -> None:
        super().__init__(message)
        self.nbytes = nbytes


class SharingError(AparallelError, ValueError):
    """An argument cannot be shared as was asked: ``mmap_mode`` does not fit it, or it was closed."""


class PoolSaturatedError(AparallelError, RuntimeError):
    """The pool has too much to do to take a call, or to start it in time. The call has not run and never will.

    Attributes:
        max_queued: the limit that was reached, in calls; None if the call had waited for too long.
        queue_timeout: how long it could have waited, in seconds; None if it was not taken at all.
        key: the key whose limit it was, as text, cut short; None if it was the pool's own.
        retry_after: in about how many seconds the calls that the pool has now will be done; None as long as none has
            been measured. It is ``(waiting + running) * mean / workers``: the calls that wait and those that workers
            have, the mean duration of recent calls in seconds (an exponential average over about 32 calls; one that
            was stopped counts with its timeout), and ``n_jobs``. For a key that is at its own limit: the key's
            calls, and the workers that it may occupy.
    """

    def __init__(
        self,
        message: str = "",
        *,
        max_queued: int | None = None,
        queue_timeout: float | None = None,
        key: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.max_queued = max_queued
        self.queue_timeout = queue_timeout
        self.key = key
        self.retry_after = retry_after


class ClosedPoolError(AparallelError, RuntimeError):
    """The pool is closed, or was closed while the call was under way."""


class WrongLoopError(AparallelError, RuntimeError):
    """No asyncio event loop is running here, or it is not the one that the pool belongs to."""


class MissingPoolError(AparallelError, LookupError):
    """A web app has no pool where one was asked for: it has no lifespan that starts one, or that did not run."""


class InitializerError(AparallelError, RuntimeError):
    """A worker's initializer failed. Its cause is what the initializer raised."""


class UnsupportedPlatformError(AparallelError, RuntimeError):
    """This system, or this interpreter, cannot start process workers."""


class UnstableValueError(AparallelError, TypeError):
    """No key can be made of a value: it has no content that is the same in every process.

    Attributes:
        type_name: the qualified name of its type.
        inside: the types of the values that it was found in, innermost first.
        part: which part of a call it belongs to, such as ``argument 'x' of f``, or "".
    """

    def __init__(self, message: str = "", *, type_name: str = "", inside: tuple[str, ...] = (), part: str = "") -> None:
        super().__init__(message)
        self.type_name = type_name
        self.inside = inside
        self.part = part

    @classmethod
    def of(cls, value: object) -> UnstableValueError:
        """Build the error for *value*, which may be part of others."""
        kind = type(value)
        return cls(
            type_name=kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
        )

    def found_in(self, kind: type) -> None:
        """Note that the value was found in one of type *kind*."""
        self.inside = (*self.inside, kind.__qualname__)

    def __str__(self) -> str:
        message = super().__str__()
        if message:
            return message
        inside = f" (inside {', in '.join(self.inside[1:])})" if len(self.inside) > 1 else ""
        of = f"{self.part[0].upper()}{self.part[1:]}: no key" if self.part else "No key"
        return (
            f"{of} can be made of a {self.type_name}{inside}: it has no content that is the same in every process. "
            f"Leave the argument out with ignore=[...], or give the class a method __aparallel_key__ "
            f"that returns plain data which is equal for equal objects."
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"


class UntrustedDirectoryError(AparallelError, PermissionError):
    """A memory's directory is not used, because others could have written to it.

    Attributes:
        path: the directory.
        reason: what is wrong with it.
    """

    def __init__(self, message: str = "", *, path: str = "", reason: str = "") -> None:
        super().__init__(message)
        self.path = path
        self.reason = reason


class StoreError(AparallelError, OSError):
    """What was asked of a memory cannot be done, because its store cannot be read or written. The cause says why.

    Calls of memoized functions never raise it: they compute what they cannot find, and return what they cannot store.

    Attributes:
        location: the memory's directory, or what stands for its store, as text.
    """

    def __init__(self, message: str = "", *, location: str = "") -> None:
        super().__init__(message)
        self.location = location


class RecursiveCallError(AparallelError, RecursionError):
    """A memoized call awaits itself, or a call that awaits it: it would wait for ever.

    Attributes:
        call: which one, as text.
    """

    def __init__(self, message: str = "", *, call: str = "") -> None:
        super().__init__(message)
        self.call = call


class MissingResultError(AparallelError, KeyError):
    """A stored result is not there any more: it was cleared, evicted, invalidated, or its file is damaged.

    Attributes:
        call: whose result it was, as text.
    """

    def __init__(self, message: str = "", *, call: str = "") -> None:
        super().__init__(message)
        self.call = call

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""  # KeyError's own shows the repr


class NotStoredWarning(UserWarning):
    """A result is returned but could not be stored: it cannot be pickled, or its directory cannot be written."""


class RemoteTraceback(Exception):
    """The traceback of an exception in its worker, as text: the last cause of what a call raised."""

    def __init__(self, text: str = "") -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f"in the worker\n\n{self._with_sources()}"

    def _with_sources(self) -> str:
        """Add the lines of code that the worker had no file for: those of a notebook's cells."""
        import linecache
        import re

        def with_source(frame: re.Match[str]) -> str:
            source = linecache.getline(frame["file"], int(frame["number"])).strip()
            return f"{frame[0]}\n    {source}" if source else frame[0]

        without_source = r'^  File "(?P<file>.+)", line (?P<number>\d+), in .+$(?!\n    )'
        return re.sub(without_source, with_source, self.text, flags=re.MULTILINE)


class UnpicklableObjectError(AparallelError, TypeError):
    """An object cannot be dumped: neither pickle nor cloudpickle can carry it, or a part of it.

    The cause is what they raised. Nothing was written, or what was written is removed.

    Attributes:
        type_name: the qualified name of the type of the object given to dump.
    """

    def __init__(self, message: str = "", *, type_name: str = "") -> None:
        super().__init__(message)
        self.type_name = type_name


class UntrustedTypeError(AparallelError, ValueError):
    """A file asks for types or functions that ``trusted=`` does not allow. Nothing of it has run.

    Attributes:
        names: what was asked for and refused, as ``module.qualname``, in the order of the file.
        source: which file, as text.
    """

    def __init__(self, message: str = "", *, names: tuple[str, ...] = (), source: str = "") -> None:
        super().__init__(message)
        self.names = names
        self.source = source


class _AboutFile(AparallelError, ValueError):
    """A file cannot be loaded.

    Attributes:
        source: which file, as text.
    """

    def __init__(self, message: str = "", *, source: str = "") -> None:
        super().__init__(message)
        self.source = source


class CorruptFileError(_AboutFile):
    """A file is not what was written. Nothing of it has run.

    Attributes:
        source: which file, as text.
    """


class EmptyFileError(CorruptFileError):
    """A file has no bytes."""


class TruncatedFileError(CorruptFileError):
    """A file's end is missing."""


class ChecksumError(CorruptFileError):
    """Bytes of a file have changed since it was written."""


class SignatureError(CorruptFileError):
    """A file was not signed with the key given, or was changed since."""


class UnsupportedFormatError(_AboutFile):
    """A file is of a kind that cannot be read here, or not in the way asked for.

    Attributes:
        source: which file, as text.
    """


class NewerVersionError(UnsupportedFormatError):
    """A later version of aparallel wrote a file."""
