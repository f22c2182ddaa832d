"""Pickling for both ends: by reference where the other side can import, by value where it cannot.

The C pickler goes first; cloudpickle, which is ten times slower, only where that one fails or would
be wrong. It would be wrong for what ``__main__`` defines: in a worker, ``__main__`` is another module.
"""

from __future__ import annotations

import sys
from _pickle import PickleBuffer, Pickler, dumps
from copyreg import dispatch_table

from aparallel._transfer.out_of_band import TooLarge

TYPE_CHECKING = False  # as in aparallel/__init__.py

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from aparallel._transfer.out_of_band import OutOfBand

PROTOCOL = 5

# Writing less than this takes no time that anyone waits for. Picklers write frames of at least 64 KB, and a rest.
_SLICE = 16 * 1024
MAIN = b"__main__"
_BY_VALUE = "aparallel._transfer.by_value"


class NotLoaded(TooLarge):
    """It has to travel by value, and to import what that takes would hold the loop for 5 ms."""


def pickle(obj: object, buffers: OutOfBand | None = None) -> bytes:
    """Pickle *obj* for the other side, whatever its size, without what *buffers* takes."""
    if buffers is not None:
        return _pickle_through(obj, _Sink(), buffers)
    if not is_by_value_registered():
        try:
            data = dumps(obj, PROTOCOL)
        except Exception:  # lambdas, closures, classes of __main__ seen from a worker
            return pickle_by_value(obj)
        if MAIN not in data:
            return data
    return pickle_by_value(obj)


def load_by_value() -> None:
    """Import what pickling by value takes, here and now."""
    import aparallel._transfer.by_value  # noqa: F401


def pickle_by_value(obj: object) -> bytes:
    from aparallel._transfer.by_value import dumps_by_value

    return dumps_by_value(obj)


def pickle_within(obj: object, limit: int, buffers: OutOfBand | None = None) -> bytes:
    """Pickle *obj*, giving up after about *limit* bytes: what may run on the event loop.

    Raises:
        TooLarge: the pickle is larger, or *buffers* meets a large one; use :func:`pickle_in_slices` in a thread.
        NotLoaded: the same helps, once in a process, and lets workers start meanwhile; or call :func:`load_by_value`.
    """
    return _pickle_through(obj, _Bounded(limit), buffers)


def pickle_in_slices(obj: object, pause: Callable[[], object], buffers: OutOfBand | None = None) -> bytes:
    """Pickle *obj* in this thread, calling *pause* after each frame so that other threads can run."""
    return _pickle_through(obj, _Pausing(pause), buffers)


def _pickle_through(obj: object, sink: _Sink, buffers: OutOfBand | None) -> bytes:
    if buffers is not None:
        buffers.sources.clear()
    reducers = array_reducers(buffers)
    if not is_by_value_registered():
        try:
            pickler = Pickler(sink, PROTOCOL, buffer_callback=buffers)
            if reducers:
                pickler.dispatch_table = {**dispatch_table, **reducers}
            pickler.dump(obj)
        except TooLarge:
            raise
        except Exception as error:  # as in pickle(): by value, below, or that raises
            if _is_final(error):
                raise
        else:
            data = sink.take()
            if MAIN not in data:
                return data
    if isinstance(sink, _Bounded) and not hasattr(sys.modules.get(_BY_VALUE), "ByValuePickler"):
        raise NotLoaded
    from aparallel._transfer.by_value import ByValuePickler

    sink.take()
    if buffers is not None:
        buffers.sources.clear()
    by_value = ByValuePickler(sink, PROTOCOL, buffer_callback=buffers)
    by_value.array_reducers = reducers
    by_value.dump(obj)
    return sink.take()


def _is_final(error: Exception) -> bool:
    """Whether pickling by value would end the same way."""
    from aparallel.errors import SharingError  # a worker starts without

    return isinstance(error, SharingError)


def array_reducers(buffers: OutOfBand | None) -> dict[type, Callable[[Any], Any]]:
    """How *buffers* wants arrays reduced. Found out anew when there are new types of them."""
    if buffers is None or "numpy" not in sys.modules:
        return {}
    # The types themselves are compared: their number stays the same when one goes and another one comes.
    if not buffers.reducers or [kind.__subclasses__() for kind in buffers.reducers] != buffers.kinds:
        from aparallel._transfer.arrays import reducers

        buffers.reducers = reducers(buffers)
        buffers.kinds = [kind.__subclasses__() for kind in buffers.reducers]
    return buffers.reducers


class _Sink:
    """A file as picklers want it: collects what they write."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []

    def write(self, data: Any) -> int:
        # A large buffer that stays in the stream comes as it is, and has no length.
        part = bytes(data.raw() if type(data) is PickleBuffer else data)
        self.parts.append(part)
        return len(part)

    def take(self) -> bytes:
        data = self.parts[0] if len(self.parts) == 1 else b"".join(self.parts)
        self.parts = []
        return data


class _Bounded(_Sink):
    def __init__(self, limit: int) -> None:
        super().__init__()
        self.room = limit

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        self.room -= size
        if self.room < 0:
            raise TooLarge
        return super().write(data)

    def take(self) -> bytes:
        data = super().take()
        self.room += len(data)
        return data


class _Pausing(_Sink):
    def __init__(self, pause: Callable[[], object]) -> None:
        super().__init__()
        self.pause = pause

    def write(self, data: Any) -> int:
        size = super().write(data)
        if size > _SLICE:
            self.pause()
        return size


def is_by_value_registered() -> bool:
    """Whether the user asked cloudpickle to send some modules by value."""
    # While another thread imports it, it is there and has nothing in it.
    registered = getattr(sys.modules.get("cloudpickle"), "list_registry_pickle_by_value", None)
    return registered is not None and bool(registered())
