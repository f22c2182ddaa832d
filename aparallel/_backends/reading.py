"""What calls in worker processes gave, read on the loop where that is quick, else in a thread."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from aparallel._ground.exceptions import in_short
from aparallel._ground.hop import Pauses, in_thread
from aparallel._transfer.failures import LOADING, RETURNING, RUNNING, rebuild_failure
from aparallel._transfer.unpickling import NotImported, unpickle_at_once, unpickle_in_slices
from aparallel.abc import Later
from aparallel.errors import AparallelError, SharedMemoryError, UnpicklableCallError, UnpicklableResultError

if TYPE_CHECKING:
    from collections.abc import Callable

    from aparallel._wire.ring import Ring

    Buffers = Callable[[], list[memoryview]] | None

# Pickles up to this size are read on the loop (a fraction of a millisecond). Larger ones are read in a thread, but for
# those that the worker has found to be quick.
_ON_LOOP_BYTES = 32 * 1024


class Told(NamedTuple):
    """What calls gave, as a pool is told it: which of the values are errors."""

    values: list[Any]
    failed: list[int]


class Reader:
    """Reads what one worker gives. *ring* is where it puts large pickles."""

    def __init__(self, ring: Ring | None) -> None:
        self._ring: Any = ring

    def read(self, outcomes: list[Any]) -> list[Told]:
        """Read outcomes that came together, as they stand in an outbox."""
        try:
            told = [self._read_now(outcomes)]
        except NotImported:  # each alone, as what is read later has to be
            told = [self._put_off(outcome) for outcome in outcomes]
        ends = [sum(outcome) for outcome in outcomes if type(outcome) is tuple and type(outcome[0]) is int]
        if ends:
            self._ring.take(ends[-1])
        return told

    def _read_now(self, outcomes: list[Any]) -> Told:
        """Read outcomes on the loop.

        Raises:
            NotImported: that is for a thread.
        """
        values, failed = outcomes[:], []
        for position, outcome in enumerate(outcomes):
            if type(outcome) is tuple:
                first, second = outcome
                try:
                    if type(first) is int:
                        values[position] = self._read_from_ring(first, second)
                    elif second:
                        values[position] = _read_failure(first, unpickle_at_once)
                        failed.append(position)
                    else:
                        values[position] = unpickle_at_once(first)
                except NotImported:
                    raise
                except BaseException as error:  # sys.exit in someone's __setstate__ must not end this program
                    values[position] = _unreadable(error)
                    failed.append(position)
        return Told(values, failed)

    def _read_from_ring(self, position: int, size: int) -> Any:
        with self._ring.look(position, size) as data:
            return unpickle_at_once(data)

    def _put_off(self, outcome: Any) -> Told:
        """Have an outcome read in a thread."""
        if type(outcome) is not tuple:
            return Told([outcome], [])
        first, second = outcome
        if type(first) is int:
            with self._ring.look(first, second) as data:
                return Told([_later(bytes(data), None)], [])
        return read_failure_later(first) if second else Told([_later(first, None)], [])

    def take_slow(self, position: int, size: int) -> Told:
        """Take a value from the ring that takes a while to read."""
        with self._ring.look(position, size) as data:
            copy = bytes(data)
        self._ring.take(position + size)
        return Told([_later(copy, None)], [])


def read_value(data: bytes | memoryview, buffers: Buffers = None) -> Told:
    """Read a value whose large buffers *buffers* gives."""
    if len(data) <= _ON_LOOP_BYTES:
        try:
            return Told([unpickle_at_once(data, buffers and buffers())], [])
        except NotImported:
            pass  # it is for a thread, as what is large
        except BaseException as error:  # as above
            return Told([_unreadable(error)], [0])
    return Told([_later(data, buffers)], [])


# What to do about a call that could not be rebuilt.
_IMPORT = (
    "Workers import what they need by name, with this program's sys.path; what they cannot import can travel by value "
    "(cloudpickle.register_pickle_by_value)."
)
_REBUILD = (
    "Objects are made anew there as their class says (__reduce__, __setstate__): mend that, pass what they are made "
    "from, or use backend='thread'."
)


def read_failure_later(data: bytes | memoryview) -> Told:
    """Have an error read in a thread: it is large, or names a module that has yet to be imported."""

    def read() -> BaseException:
        return _read_failure(data, lambda chain: unpickle_in_slices(chain, Pauses().when_due))

    return Told([Later(lambda: in_thread(read))], [0])


def read_start_failure(data: memoryview) -> BaseException:
    """Return what an initializer raised: as a RemoteCallError, if a module would have to be imported for it here."""
    return rebuild_failure(data, _load_if_imported)[1]


def _load_if_imported(chain: bytes) -> Any:
    try:
        return unpickle_at_once(chain)
    except NotImported as missing:
        raise LookupError from missing  # as whatever else cannot be rebuilt


def _read_failure(data: bytes | memoryview, load: Callable[[bytes], Any]) -> BaseException:
    """Return the error that a call ended with, unpickled by *load*.

    Raises:
        NotImported: *load* did.
    """
    try:
        stage, error = rebuild_failure(data, load)
    except NotImported:
        raise
    except Exception as reason:  # an error that refuses whatever is done to it
        return _unreadable(reason)
    if stage == RUNNING or isinstance(error, SharedMemoryError):
        return error
    wrapped: AparallelError
    if stage == LOADING:
        is_missing = isinstance(error, ImportError | AttributeError)
        wrapped = UnpicklableCallError(
            f"A call could not be rebuilt in its worker: {in_short(error)}\n{_IMPORT if is_missing else _REBUILD}"
        )
    else:
        assert stage == RETURNING
        wrapped = UnpicklableResultError(
            f"A call ran, but its result could not be pickled: {in_short(error)}\n"
            f"Return plain data or picklable objects, or use backend='thread'."
        )
    wrapped.__cause__ = error
    return wrapped


def _unreadable(error: BaseException) -> UnpicklableResultError:
    wrapped = UnpicklableResultError(
        f"A call ran, but its result could not be rebuilt here: {in_short(error)}\n"
        f"Return plain data or objects whose pickles can be read in this process."
    )
    wrapped.__cause__ = error
    return wrapped


def _later(data: bytes | memoryview, buffers: Buffers) -> Later:
    return Later(lambda: in_thread(_read_in_thread, data, buffers))


def _read_in_thread(data: bytes | memoryview, buffers: Buffers) -> Any:
    try:
        return unpickle_in_slices(data, Pauses().when_due, buffers and buffers())
    except BaseException as error:  # as above
        raise _unreadable(error) from error
