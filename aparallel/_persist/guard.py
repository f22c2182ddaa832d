"""Holds what a pickle would do against what is trusted, and tells what is in it."""

from __future__ import annotations

import dataclasses
import math
import sys
from typing import TYPE_CHECKING, Any

from aparallel._persist.dtypes import WrongDtype, is_shape, known_dtype, named_dtype, stated_dtype, string_dtype
from aparallel._persist.nesting import STATED_ARRAYS, TOO_LONG, Chains, frail_among
from aparallel._persist.standins import (
    BASES,
    BYTES,
    DTYPE,
    GETTERS,
    LONGEST_TEXT,
    RECONSTRUCTORS,
    SET,
    WRAPPERS,
    Global,
    Items,
    Listed,
    Made,
    Watcher,
)
from aparallel._persist.trust import Trust, untrusted
from aparallel._persist.walk import Walk
from aparallel.errors import CorruptFileError

if TYPE_CHECKING:
    from aparallel._persist.window import Window

_STRING_DTYPE = Global("numpy._core._internal", "_convert_to_stringdtype_kwargs")
# Bytes, as protocol 2 spells them.
_ENCODE = Global("_codecs", "encode")
_BYTES = frozenset({Global("__builtin__", "bytes"), Global("builtins", "bytes")})
_OURS = frozenset(Global("aparallel._persist.arrays", name) for name in ("array", "subclass_array"))
_NUMPYS = frozenset(
    Global(f"numpy.{core}.{module}", name)
    for core in ("core", "_core")
    for module, name in (("multiarray", "_reconstruct"), ("numeric", "_frombuffer"))
)
_OBJECT = frozenset({Global("__builtin__", "object"), Global("builtins", "object")})
_BASES = frozenset(Global(module, base.__name__) for module in ("__builtin__", "builtins") for base in BASES)
_BASES |= {Global("__builtin__", "long"), Global("__builtin__", "unicode")}
# Names whose calls and states tell of an array.
_TELLING = frozenset({DTYPE, _STRING_DTYPE, _ENCODE, *_BYTES, *_OURS, *_NUMPYS, *WRAPPERS, *RECONSTRUCTORS})
_DEQUE = Global("collections", "deque")
_MATRICES = frozenset({Global("numpy", "matrix"), Global("numpy.matrixlib.defmatrix", "matrix")})
_MOST_WHYS = 8
# So many arrays are described; a file may have millions.
_MOST_ARRAYS = 100_000


class Guard(Watcher):
    """Holds what a pickle would do against what is trusted, and collects what is not.

    Args:
        foreign: arrays may stand between opcodes, as joblib has them.
    """

    def __init__(self, trust: Trust, *, foreign: bool = False) -> None:
        self._trust = trust
        self._foreign = foreign
        # In the order of the file, each once.
        self._refused: dict[str, None] = {}
        self._whys: list[str] = []
        self._chains = Chains()
        # What reaches members was asked for; and was used for that.
        self._getter: Global | None = None
        self._gets_members = False

    def check(self) -> None:
        """Raise if anything was not trusted.

        Raises:
            UntrustedTypeError: it names all that was asked for.
        """
        names = list(self.refused)
        if names or self._whys:
            asks = [f"it asks for {', '.join(names)}"] if names else []
            raise untrusted(names, "; ".join([*asks, *self._whys]))

    @property
    def refused(self) -> tuple[str, ...]:
        """The names that are not trusted, or not as they are used."""
        if self._getter is None or self._gets_members:
            return tuple(self._refused)
        return tuple({**self._refused, str(self._getter): None})

    @property
    def whys(self) -> tuple[str, ...]:
        """What else than names is refused: the first few, in words."""
        return tuple(self._whys)

    def on_global(self, found: Global) -> None:
        # Where joblib's arrays are not read, its wrapper is a class like others.
        is_joblibs = found in WRAPPERS and not (self._foreign or self._trust.is_users(found))
        if is_joblibs or not self._trust.allows(found):
            self._refused[str(found)] = None
        elif found in GETTERS and not self._trust.is_users(found):
            self._getter = found

    def member(self, of: Any, args: Any) -> Global | None:
        if not (isinstance(of, Global) and of in GETTERS and isinstance(args, tuple) and len(args) == 2):
            return None
        owner, name = args
        if not (isinstance(owner, Global) and isinstance(name, str) and name.isidentifier()):
            return None
        # Members of members of members have longer and longer names.
        if self._is_refused(of) or self._trust.is_users(of) or len(owner.name) >= LONGEST_TEXT:
            return None
        self._gets_members = True
        return Global(owner.module, f"{owner.name}.{name}")

    def calls_matter(self, name: Global) -> bool:
        return name in _TELLING or (str(name) not in self._refused and self._trust.checks_calls(name))

    def changes_matter(self, name: Global) -> bool:
        return name in _TELLING or (str(name) not in self._refused and not self._trust.is_users(name))

    def on_call(self, made: Made) -> None:
        if isinstance(made.of, Global):  # a tuple of two texts is equal to one
            self._tell_call(made)
        if self._is_refused(made.of):
            return
        if not self._trust.may_call(made):
            self._refuse(made.of, f"calls {_text(made.of)} in a way that plain data does not need")
        elif made.of == _DEQUE and isinstance(made.args, tuple) and made.args and made.args[0] is not SET:
            self._hold(made, made.args[0])  # nothing frail can be hashed, so none is in a set

    def _tell_call(self, made: Made) -> None:
        """Find out what a call gives that tells of an array."""
        if made.of in RECONSTRUCTORS:
            _name_reconstructed(made)
        if made.of == DTYPE:
            try:
                made.known = named_dtype(made.args)
            except WrongDtype as error:
                self._refuse(made, f"has a numpy.dtype that {error}")
        elif made.of == _STRING_DTYPE:
            made.known = string_dtype(made.args)
            made.built = True  # it is never given a state
        elif made.of == _ENCODE and isinstance(made.args, tuple) and len(made.args) == 2:
            text, encoding = made.args
            if encoding in ("latin1", "latin-1"):
                made.known = text.encode("latin-1", "replace") if isinstance(text, str) else b""
        elif made.of in _BYTES and made.args == ():
            made.known = b""
        elif made.of in _OURS and isinstance(made.args, tuple) and len(made.args) >= 3:
            self.on_array(made.args[2], made.args[1])
        elif made.of in _NUMPYS and made.of.name == "_frombuffer" and isinstance(made.args, tuple):
            self.on_array(*made.args[2:0:-1] if len(made.args) >= 3 else (None, None))

    def on_build(self, target: Any, state: Any) -> None:
        if isinstance(target, Made):
            self._tell_state(target, state)
        if self._is_refused(target):
            return
        if not self._trust.may_build(target):
            self._refuse(target, f"changes the state of {_text(target)}")
        elif target.of in STATED_ARRAYS:
            if not _is_array_state(state) or not _fits_class(target.args, state):
                self._refuse(target, "has the state of an array that NumPy would not write")
            else:
                self._hold_items(target, state)

    def _tell_state(self, target: Made, state: Any) -> None:
        """Find out what a state makes of what tells of an array."""
        if target.of == DTYPE and target.known is not None:
            try:
                target.known = stated_dtype(target.known, state)
            except WrongDtype as error:
                self._refuse(target, f"has a numpy.dtype that {error}")
        elif target.of in STATED_ARRAYS and isinstance(state, tuple) and len(state) in (5, 7):
            self.on_array(state[1], state[2])

    def on_fill(self, target: Any, frail: list[Made]) -> None:
        if self._is_refused(target):
            return
        if not self._trust.may_fill(target):
            self._refuse(target, f"adds items to {_text(target)}")
        elif frail:
            self._hold(target, frail)

    def on_odd(self, what: str) -> None:
        self._note(f"it uses {what}")

    def on_array(self, shape: Any, dtype: Any) -> None:
        """It would make an array, by a call like others."""

    def skip_array(self, target: Any, state: Any, window: Window) -> bool:
        if not (self._foreign and isinstance(target, Made) and target.of in WRAPPERS):
            return False
        found = known_dtype(state.get("dtype")) if isinstance(state, Items) else None
        if found is None or not is_shape(state.get("shape")):
            raise CorruptFileError("it has an array of joblib's that is not described as joblib does")
        self.on_array(state["shape"], state["dtype"])
        if found.hasobject:
            Walk(window, self).run()
            return True
        if state.get("numpy_array_alignment_bytes") is not None:
            window.skip(window.take(1)[0])
        window.skip(math.prod(state["shape"]) * found.itemsize)
        return True

    def _hold(self, holder: Made, items: Any, *, in_records: bool = False) -> None:
        """Take note that a frail thing is given *items*."""
        if in_records:  # in tuples of the items of which nothing is kept
            self._chains.hold_unseen()
        else:
            self._chains.hold(holder, items.frail if isinstance(items, Listed) else frail_among(items))
        if self._chains.may_crash:
            self.on_odd(TOO_LONG)

    def _hold_items(self, target: Made, state: tuple[Any, ...]) -> None:
        """Take note of what an array of objects is given, a masked one's fill value too."""
        _, dtype, data = _described(state)
        if isinstance(data, Listed):
            self._hold(target, data, in_records=known_dtype(dtype).kind != "O")  # type: ignore[union-attr]
            self._hold(target, state[-1:])

    def _is_refused(self, of: Any) -> bool:
        root = _root(of)
        return isinstance(root, Global) and str(root) in self._refused

    def _refuse(self, of: Any, why: str) -> None:
        root = _root(of)
        if isinstance(root, Global):
            self._refused[str(root)] = None
        self._note(f"it {why}")

    def _note(self, why: str) -> None:
        if why not in self._whys and len(self._whys) < _MOST_WHYS:
            self._whys.append(why)


@dataclasses.dataclass(frozen=True, slots=True)
class ArrayInfo:
    """An array in a file.

    Attributes:
        shape: its lengths.
        dtype: its data type, as NumPy writes it.
        nbytes: the size of its items, in bytes; of an array of objects, that of the references.
    """

    shape: tuple[int, ...]
    dtype: str
    nbytes: int


class Survey(Guard):
    """Collects all that there is, and what trust in plain data alone would refuse.

    Attributes:
        globals: everything that is imported, in order, each once.
        arrays: the first of the arrays, in order.
        array_count: how many there are.
    """

    def __init__(self, *, foreign: bool = False) -> None:
        super().__init__(Trust(()), foreign=foreign)
        self.globals: dict[Global, None] = {}
        self.arrays: list[ArrayInfo] = []
        self.array_count = 0

    def on_global(self, found: Global) -> None:
        super().on_global(found)
        self.globals[found] = None

    def on_array(self, shape: Any, dtype: Any) -> None:
        self.array_count += 1
        found = known_dtype(dtype)
        if found is not None and is_shape(shape) and len(self.arrays) < _MOST_ARRAYS:
            name = found.str if found.names is None and found.subdtype is None else str(found)
            self.arrays.append(ArrayInfo(shape, name, math.prod(shape) * found.itemsize))


def _name_reconstructed(made: Made) -> None:
    """Have an object that protocol 0 or 1 makes look as one of a later protocol: made by its class, of what it is."""
    if isinstance(made.args, tuple) and len(made.args) == 3:
        kind, base, state = made.args
        if isinstance(kind, Global) and base in _OBJECT and state is None:
            made.of = made.root = kind
            made.args = ()
        elif isinstance(kind, Global) and isinstance(base, Global) and base in _BASES:
            made.of = made.root = kind
            made.args = (state,)


def _is_array_state(state: Any) -> bool:
    """Whether it is ``(1, shape, dtype, is_fortran, data)``, or a masked array's with its mask and fill value after."""
    if not (isinstance(state, tuple) and len(state) in (4, 5, 7)):
        return False
    shape, found, data = _described(state)
    dtype = known_dtype(found)
    # What has a shape itself NumPy adds to the array's; in a state, it would stay where it crashes.
    if dtype is None or dtype.subdtype is not None:
        return False
    if not isinstance(shape, tuple) or not all(isinstance(n, int) and n >= 0 for n in shape):
        return False
    # Of items of no size, NumPy's own count begins at 0 again. Of the bytes of others, in a shape without its zeros, it
    # would say that there is not enough memory.
    if max(math.prod(shape), math.prod(filter(None, shape)) * dtype.itemsize) > sys.maxsize:
        return False
    if dtype.hasobject:
        # NumPy takes as many items as the shape says, whatever the list has, and crashes if it has fewer.
        # A fill value is an array. Of anything else it would make one, which holds what nobody has taken note of.
        fills = len(state) < 7 or state[-1] is None or isinstance(state[-1], Made)
        return isinstance(data, Listed) and data.count == math.prod(shape) and fills
    return data is BYTES or isinstance(data, bytes) or (isinstance(data, Made) and isinstance(data.known, bytes))


def _fits_class(args: Any, state: tuple[Any, ...]) -> bool:
    """Whether a matrix has two dimensions. NumPy looks nowhere but at its state, and crashes with more."""
    is_matrix = isinstance(args, tuple) and args[:1] and args[0] in _MATRICES
    return not is_matrix or len(_described(state)[0]) == 2


def _described(state: tuple[Any, ...]) -> tuple[Any, Any, Any]:
    """The shape, dtype and data that an array's state has."""
    shape, dtype, _, data = state[-4:] if len(state) < 7 else state[1:5]
    return shape, dtype, data


def _root(of: Any) -> Any:
    return of.root if isinstance(of, Made) else of


def _text(of: Any) -> str:
    root = _root(of)
    if not isinstance(root, Global):
        return "what is nothing imported"
    return f"what {root} gave" if isinstance(of, Made) else str(root)
