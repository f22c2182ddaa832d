"""From a verified container, or a pickle that was walked, to the object. Imported in a thread."""

from __future__ import annotations

import contextlib
import tempfile
from _pickle import Unpickler, UnpicklingError
from typing import TYPE_CHECKING, Any

from aparallel._persist.inspector import Inspector
from aparallel._persist.pickling import PiecesReader
from aparallel._persist.sources import FileSource
from aparallel._persist.walk import Walk
from aparallel._persist.window import Window
from aparallel.errors import CorruptFileError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from aparallel._ground.stoppable import Stop
    from aparallel._persist.reader import Content
    from aparallel._persist.sources import Source
    from aparallel._persist.trust import Trust

_SPOOLED = 1 << 20


def read_object(content: Content, trust: Trust | None, stop: Stop) -> Any:
    """Unpickle a container's content.

    Raises:
        UntrustedTypeError: it asks for what *trust* does not allow.
        CorruptFileError: its checksums are right and its pickle is none.
    """
    if trust is not None:
        from aparallel._persist.guard import Guard

        guard = Guard(trust)
        walk(PiecesReader(content.pieces(), stop).read, guard, stop)
        guard.check()
    reader = PiecesReader(content.pieces(), stop)
    buffers = iter(content.buffers)
    unpickler = Unpickler(reader, buffers=buffers) if trust is None else _Restricted(reader, buffers, trust)
    try:
        return unpickler.load()
    except (UnpicklingError, EOFError) as error:
        raise CorruptFileError(f"its pickle is damaged: {error}") from error


def walk(read: Callable[[int], bytes | memoryview], watcher: Inspector, stop: Stop, *, foreign: bool = False) -> None:
    """Let *watcher* see what a pickle would do. *foreign*: arrays may stand between opcodes, as joblib has them."""
    window = Window(read, stop)
    if foreign:
        watcher.window = window
    Walk(window, watcher).run()


def check_pickle(source: Source, trust: Trust, stop: Stop) -> None:
    """Walk a pickle that is no container.

    Raises:
        UntrustedTypeError: it asks for what *trust* does not allow.
        CorruptFileError: it is no pickle.
    """
    from aparallel._persist.guard import Guard

    guard = Guard(trust)
    walk(source.read_some, guard, stop, foreign=True)
    guard.check()


class _Restricted(Unpickler):
    """The second line of defence: whatever the walk has overlooked, no other name is resolved."""

    def __init__(self, reader: Any, buffers: Iterator[Any], trust: Trust) -> None:
        super().__init__(reader, buffers=buffers)
        self._trust = trust

    def find_class(self, module: str, name: str) -> Any:
        return self._trust.resolve(module, name)


@contextlib.contextmanager
def spooled(source: Source, stop: Stop) -> Iterator[Callable[[], Source]]:
    """Keep what *source* gives in an unnamed file, so that it can be read twice."""
    with tempfile.TemporaryFile() as file:
        while data := source.read_some(_SPOOLED):
            file.write(data)
        file.flush()

        def again() -> Source:
            file.seek(0)
            return FileSource(file.fileno(), stop)

        yield again
