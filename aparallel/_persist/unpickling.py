"""From a verified container, or a pickle that was walked, to the object. Imported in a thread.

The C unpickler is fed in slices so that the event loop keeps running.
"""

from __future__ import annotations

import contextlib
import io
import sys
from _pickle import Unpickler, UnpicklingError
from typing import TYPE_CHECKING, Any

import numpy as np

from aparallel._ground.hop import pause, pausing
from aparallel._persist.sources import FileSource, MemorySource
from aparallel.errors import CorruptFileError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from aparallel._ground.stoppable import Stop
    from aparallel._persist.reader import Content
    from aparallel._persist.sources import Source
    from aparallel._persist.trust import Trust

_SPOOLED = 1 << 20
_IN_MEMORY = 24 << 20
# A frame of a long pickle has 64 KB. After a shorter one nobody has to be let in: a pause takes 50 µs.
_PAUSE_FROM = 16 << 10
_SLICE = 1 << 20
_LINE_AT_ONCE = 512


def read_object(content: Content, trust: Trust | None, stop: Stop) -> Any:
    """Unpickle a container's content.

    Raises:
        UntrustedTypeError: it asks for what *trust* does not allow.
        CorruptFileError: its checksums are right and its pickle is none.
    """
    is_data = False
    if trust is not None:
        from aparallel._persist.checking import check

        is_data = check(lambda: PiecesReader(content.pieces(), stop), trust, stop)
    reader = PiecesReader(content.pieces(), stop)
    buffers = pausing(content.taken())
    unpickler = Unpickler(reader, buffers=buffers) if trust is None else _Restricted(reader, buffers, trust)
    with NamingDamage(is_data=is_data):
        return unpickler.load()


class PiecesReader:
    """The pieces of a pickle as a file for the C unpickler, which asks for a frame (64 KB) at a time."""

    def __init__(self, pieces: Iterator[bytes | memoryview], stop: Stop) -> None:
        self._pieces = pieces
        self._stop = stop
        self._piece = memoryview(b"")

    def read(self, size: int) -> bytes:
        """Return up to *size* bytes, fewer only at the end."""
        if size <= len(self._piece):
            if size >= _PAUSE_FROM:
                self._stop.check()
                pause()
            data, self._piece = bytes(self._piece[:size]), self._piece[size:]
            return data
        found = io.BytesIO()  # gives what is in it without a copy
        while size and self._fill():
            part = self._piece[:size]
            found.write(part)
            self._piece = self._piece[len(part) :]
            size -= len(part)
        return found.getvalue()

    def readinto(self, target: Any) -> int:
        """Fill *target*, but for the end."""
        view = memoryview(target).cast("B")
        filled = 0
        while filled < len(view) and self._fill():
            part = self._piece[: min(len(view) - filled, _SLICE)]
            if len(part) >= _PAUSE_FROM:
                pause()
            view[filled : filled + len(part)] = part
            self._piece = self._piece[len(part) :]
            filled += len(part)
        return filled

    def skip(self, size: int) -> None:
        """Go past *size* bytes, or to the end."""
        while size and self._fill():
            part = min(size, len(self._piece))
            self._piece = self._piece[part:]
            size -= part

    def readline(self) -> bytes:
        """Return what comes up to the next end of a line. Only old opcodes need it, which this package never writes."""
        found = bytearray()
        while self._fill():
            # The pieces are of 8 MiB at most, and are looked through by C code.
            end = bytes(self._piece[:_LINE_AT_ONCE]).find(b"\n") + 1
            part = self._piece[: end or _LINE_AT_ONCE]
            found += part
            self._piece = self._piece[len(part) :]
            if end:
                break
        return bytes(found)

    def _fill(self) -> bool:
        """Make sure that there is something to give; return False at the end."""
        self._stop.check()
        while not len(self._piece):
            piece = next(self._pieces, None)
            if piece is None:
                return False
            if len(piece) >= _PAUSE_FROM:
                pause()
            self._piece = memoryview(piece)
        return True

    def _pause(self) -> None:
        self._stop.check()
        pause()


# RuntimeError: also of too deep a recursion. SystemError: NumPy's, of texts and of items that cannot be.
_OF_DAMAGE = (
    ArithmeticError,
    AttributeError,
    LookupError,
    RuntimeError,
    SystemError,
    TypeError,
    ValueError,
)


class NamingDamage:
    """Says of an unpickler's errors that the pickle is damaged: CorruptFileError. No generator, see ``opening.Naming``.

    Args:
        is_data: nothing but plain data was built, so nothing of the user's can have raised them.
    """

    def __init__(self, *, is_data: bool) -> None:
        self._is_data = is_data

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, CorruptFileError):  # said already; a ValueError
            return
        if isinstance(error, UnpicklingError | EOFError) or (self._is_data and _is_of_damage(error)):
            raise CorruptFileError(f"its pickle is damaged: {error}") from error


def _is_of_damage(error: BaseException | None) -> bool:
    # Of a mask that does not fit. To import numpy.ma takes 30 ms, and without it there is no such error.
    return isinstance(error, _OF_DAMAGE) or ("numpy.ma" in sys.modules and isinstance(error, np.ma.MAError))


class _Restricted(Unpickler):
    """The second line of defence: whatever the walk has overlooked, no other name is resolved."""

    def __init__(self, reader: Any, buffers: Iterator[Any], trust: Trust) -> None:
        super().__init__(reader, buffers=buffers)
        self._trust = trust

    def find_class(self, module: str, name: str) -> Any:
        return self._trust.resolve(module, name)


@contextlib.contextmanager
def spooled(source: Source, stop: Stop) -> Iterator[Callable[[], Source]]:
    """Keep what *source* gives so that it can be read twice: in memory, or, if it is much, in an unnamed file."""
    start = bytearray()
    while len(start) < _IN_MEMORY and (data := source.read_some(_SPOOLED)):
        start += data
    if len(start) < _IN_MEMORY:
        view = memoryview(start)
        yield lambda: MemorySource(view, stop)
        return
    import tempfile  # 4 ms for a first load

    with tempfile.TemporaryFile() as file:
        file.write(start)
        start.clear()
        while data := source.read_some(_SPOOLED):
            file.write(data)
        file.flush()

        def again() -> Source:
            file.seek(0)
            return FileSource(file.fileno(), stop)

        yield again
