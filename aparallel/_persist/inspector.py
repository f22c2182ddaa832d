"""What can be told of a pickle from its opcodes: the names that it imports, and its arrays."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from aparallel._persist.dtypes import WrongDtype, named_dtype, stated_dtype, string_dtype
from aparallel._persist.standins import LONGEST_TEXT, Global, Items, Made, Watcher
from aparallel._persist.walk import Walk
from aparallel.errors import CorruptFileError

if TYPE_CHECKING:
    from aparallel._persist.window import Window

# The class that stands for an array in joblib's files, in joblib and where scikit-learn once kept a copy of it.
WRAPPERS = frozenset(
    Global(module, "NumpyArrayWrapper")
    for module in (
        "joblib.numpy_pickle",
        "sklearn.externals.joblib.numpy_pickle",
        "sklearn.externals._joblib.numpy_pickle",
    )
)
_DTYPE = Global("numpy", "dtype")
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
# What makes an object of a class in protocols 0 and 1.
RECONSTRUCTORS = frozenset({Global("copy_reg", "_reconstructor"), Global("copyreg", "_reconstructor")})
_OBJECT = frozenset({Global("__builtin__", "object"), Global("builtins", "object")})
# And of a class that is a number, a text or a collection: from one of these.
BASES = frozenset({int, float, complex, str, bytes, bytearray, tuple, list, dict, set, frozenset})
_BASES = frozenset(Global(module, base.__name__) for module in ("__builtin__", "builtins") for base in BASES)
_BASES |= {Global("__builtin__", "long"), Global("__builtin__", "unicode")}
# What picklers reach a class's own members through: its methods, and before protocol 4 classes in it.
GETTERS = frozenset({Global("__builtin__", "getattr"), Global("builtins", "getattr")})
# Names whose calls and states tell of an array.
_TELLING = frozenset({_DTYPE, _STRING_DTYPE, _ENCODE, *_BYTES, *_OURS, *_NUMPYS, *WRAPPERS, *RECONSTRUCTORS})
# So many arrays are described; a file may have millions.
_MOST_ARRAYS = 100_000


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


class Inspector(Watcher):
    """Collects what is imported and which arrays there are.

    Args:
        foreign: arrays may stand between opcodes, as joblib has them.

    Attributes:
        globals: everything that is imported, in order, each once.
        arrays: the first of the arrays, in order.
        array_count: how many there are.
    """

    def __init__(self, *, foreign: bool = False) -> None:
        self._foreign = foreign
        self.globals: dict[Global, None] = {}
        self.arrays: list[ArrayInfo] = []
        self.array_count = 0

    def on_global(self, found: Global) -> None:
        self.globals[found] = None

    def calls_matter(self, name: Global) -> bool:
        return name in _TELLING

    def changes_matter(self, name: Global) -> bool:
        return name in _TELLING

    def member(self, of: Any, args: Any) -> Global | None:
        if not (isinstance(of, Global) and of in GETTERS and isinstance(args, tuple) and len(args) == 2):
            return None
        owner, name = args
        if not (isinstance(owner, Global) and isinstance(name, str) and name.isidentifier()):
            return None
        # Members of members of members have longer and longer names.
        return Global(owner.module, f"{owner.name}.{name}") if len(owner.name) < LONGEST_TEXT else None

    def on_call(self, made: Made) -> None:
        if not isinstance(made.of, Global):  # a tuple of two texts is equal to one
            return
        if made.of in RECONSTRUCTORS:
            _name_reconstructed(made)
        if made.of == _DTYPE:
            try:
                made.known = named_dtype(made.args)
            except WrongDtype as error:
                self.on_wrong_dtype(made, str(error))
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
        if not isinstance(target, Made):
            return
        if target.of == _DTYPE and target.known is not None:
            try:
                target.known = stated_dtype(target.known, state)
            except WrongDtype as error:
                self.on_wrong_dtype(target, str(error))
        elif target.of in _NUMPYS and isinstance(state, tuple) and len(state) == 5:
            self.on_array(state[1], state[2])

    def on_wrong_dtype(self, made: Made, why: str) -> None:
        """It would make a ``numpy.dtype`` that NumPy itself would not."""

    def on_array(self, shape: Any, dtype: Any) -> None:
        """It would make an array."""
        self.array_count += 1
        found = known_dtype(dtype)
        if found is not None and is_shape(shape) and len(self.arrays) < _MOST_ARRAYS:
            name = found.str if found.names is None and found.subdtype is None else str(found)
            self.arrays.append(ArrayInfo(shape, name, math.prod(shape) * found.itemsize))

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


def known_dtype(value: Any) -> np.dtype[Any] | None:
    """The data type that *value* stands for, if that is known, and cannot change any more."""
    return value.known if isinstance(value, Made) and value.built and isinstance(value.known, np.dtype) else None


def is_shape(value: Any) -> bool:
    return isinstance(value, tuple) and all(type(length) is int and length >= 0 for length in value)
