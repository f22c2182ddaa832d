"""From a verified container, or a pickle that was walked, to the object. Imported in a thread."""

from __future__ import annotations

import contextlib
import tempfile
from _pickle import Unpickler, UnpicklingError
from typing import TYPE_CHECKING, Any

import numpy as np

from aparallel._ground.hop import pausing
from aparallel._persist.pickling import PiecesReader
from aparallel._persist.sources import FileSource
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
    is_data = False
    if trust is not None:
        from aparallel._persist.checking import Found, check

        found = check(lambda: PiecesReader(content.pieces(), stop), trust, stop)
        is_data = found is Found.DATA or trust.is_of_data_only
    reader = PiecesReader(content.pieces(), stop)
    buffers = pausing(content.taken())
    unpickler = Unpickler(reader, buffers=buffers) if trust is None else _Restricted(reader, buffers, trust)
    with NamingDamage(is_data=is_data):
        return unpickler.load()


# RuntimeError: also of too deep a recursion. SystemError: NumPy's, of texts and of items that cannot be. MAError: of a
# mask that does not fit.
_OF_DAMAGE = (
    ArithmeticError,
    AttributeError,
    LookupError,
    RuntimeError,
    SystemError,
    TypeError,
    ValueError,
    np.ma.MAError,
)


class NamingDamage:
    """Says of an unpickler's errors that the pickle is damaged: CorruptFileError. No generator, see ``opening.Naming``.

    Args:
        is_data: nothing but plain data was built, so nothing of the user's can have raised them.
    """

    def __init__(self, *, is_data: bool) -> None:
        self._kinds = (UnpicklingError, EOFError, *(_OF_DAMAGE if is_data else ()))

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, self._kinds) and not isinstance(error, CorruptFileError):  # said already; a ValueError
            raise CorruptFileError(f"its pickle is damaged: {error}") from error


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
