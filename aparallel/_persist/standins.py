"""What stands for the objects of a pickle while it is looked at, names that mean something, and who is told of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from aparallel._persist.window import Window

LONGEST_TEXT = 512
"""Bytes of text and data that are kept, and items of tuples and dictionaries. Of larger ones, their kind is."""
LONGEST_BYTES = 64
MOST_ITEMS = 4096


class Global(NamedTuple):
    """Something that is imported by name."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


DTYPE = Global("numpy", "dtype")
# The class that stands for an array in joblib's files, in joblib and where scikit-learn once kept a copy of it.
WRAPPERS = frozenset(
    Global(module, "NumpyArrayWrapper")
    for module in (
        "joblib.numpy_pickle",
        "sklearn.externals.joblib.numpy_pickle",
        "sklearn.externals._joblib.numpy_pickle",
    )
)
# What makes an object of a class in protocols 0 and 1.
RECONSTRUCTORS = frozenset({Global("copy_reg", "_reconstructor"), Global("copyreg", "_reconstructor")})
# And of a class that is a number, a text or a collection: from one of these.
BASES = frozenset({int, float, complex, str, bytes, bytearray, tuple, list, dict, set, frozenset})
# What picklers reach a class's own members through: its methods, and before protocol 4 classes in it.
GETTERS = frozenset({Global("__builtin__", "getattr"), Global("builtins", "getattr")})


class Opaque:
    """A value that does not matter, but for its levels of tuples (:mod:`aparallel._persist.nesting`)."""

    __slots__ = ("kind", "levels")

    def __init__(self, kind: str, levels: int = 0) -> None:
        self.kind = kind
        self.levels = levels


OPAQUE = Opaque("value")
BYTES = Opaque("bytes")
TEXT = Opaque("text")
SET = Opaque("set")
BUFFER = Opaque("buffer")


class Nested(tuple[Any, ...]):  # noqa: SLOT001  # a tuple has no room for slots
    """A tuple with several levels of tuples."""

    levels: int


class Listed:
    """A list, of which the length is kept, and what in it is frail (:mod:`aparallel._persist.nesting`)."""

    __slots__ = ("count", "frail")

    def __init__(self, count: int = 0, frail: list[Made] | None = None) -> None:
        self.count = count
        self.frail = frail or []


class Items(dict[Any, Any]):
    """A dictionary, as far as it is kept: what is left out, and keys that are no text, stand under the key None."""

    __slots__ = ()
    __hash__ = object.__hash__  # type: ignore[assignment]


class Made:
    """What a call gives.

    Attributes:
        of: what is called; not always a :class:`Global`.
        root: what was called first, if calls gave what is called.
        args: its arguments, a tuple unless they are not known.
        built: it has been given a state.
        known: whatever the watcher knows about it. Only of what something is known does the memo keep.
        levels: of tuples, with those of the arguments.
        chain: of what is frail, that this holds; and whether something frail holds this.
    """

    __slots__ = ("args", "built", "chain", "is_held", "known", "levels", "of", "root")

    def __init__(self, of: Any, args: Any, levels: int = 0) -> None:
        self.of = of
        self.root: Any = of.root if isinstance(of, Made) else of
        self.args = args
        self.levels = levels
        self.chain = 0
        self.is_held = False
        self.built = False
        self.known: Any = None


class Watcher:
    """Is told what a pickle would do, in order. This one only looks."""

    def calls_matter(self, name: Global) -> bool:
        """Whether it wants to be told of calls of *name*, which it has been told of."""
        return True

    def changes_matter(self, name: Global) -> bool:
        """Whether it wants to be told of states and items that are given to what *name* made."""
        return True

    def on_global(self, found: Global) -> None:
        """It would import *found*."""

    def member(self, of: Any, args: Any) -> Global | None:
        """What a call of *of* gives if that is nothing but what a class has under a name, by which it is known, too."""
        return None

    def on_call(self, made: Made) -> None:
        """It would call something."""

    def on_build(self, target: Any, state: Any) -> None:
        """It would set the state of *target*."""

    def skip_array(self, target: Any, state: Any, window: Window) -> bool:
        """Go past an array that stands after the opcode that would set this state; return whether one does."""
        return False

    def on_fill(self, target: Any, frail: list[Made]) -> None:
        """It would add items to *target*, which is no list, dictionary or set that was just begun; some are frail."""

    def on_odd(self, what: str) -> None:
        """It would do something that no pickler asks for; *what* says it."""
