"""Holds what a pickle would do against what is trusted."""

from __future__ import annotations

import math
import sys
from typing import Any

from aparallel._persist.inspector import GETTERS, WRAPPERS, Inspector, known_dtype
from aparallel._persist.nesting import STATED_ARRAYS, TOO_LONG, Chains, frail_among
from aparallel._persist.standins import BYTES, SET, Global, Listed, Made
from aparallel._persist.trust import Trust, untrusted


class Guard(Inspector):
    """Holds what a pickle would do against what is trusted, and collects what is not."""

    def __init__(self, trust: Trust, *, foreign: bool = False) -> None:
        super().__init__(foreign=foreign)
        self._trust = trust
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
        if self._is_refused(of) or (isinstance(of, Global) and self._trust.is_users(of)):
            return None
        found = super().member(of, args)
        self._gets_members |= found is not None
        return found

    def calls_matter(self, name: Global) -> bool:
        return super().calls_matter(name) or (str(name) not in self._refused and self._trust.checks_calls(name))

    def changes_matter(self, name: Global) -> bool:
        return super().changes_matter(name) or (str(name) not in self._refused and not self._trust.is_users(name))

    def on_call(self, made: Made) -> None:
        super().on_call(made)
        if self._is_refused(made.of):
            return
        if not self._trust.may_call(made):
            self._refuse(made.of, f"calls {_text(made.of)} in a way that plain data does not need")
        elif made.of == _DEQUE and isinstance(made.args, tuple) and made.args and made.args[0] is not SET:
            self._hold(made, made.args[0])  # nothing frail can be hashed, so none is in a set

    def on_build(self, target: Any, state: Any) -> None:
        super().on_build(target, state)
        if self._is_refused(target):
            return
        if not self._trust.may_build(target):
            self._refuse(target, f"changes the state of {_text(target)}")
        elif target.of in STATED_ARRAYS:
            if not _is_array_state(state) or not _fits_class(target.args, state):
                self._refuse(target, "has the state of an array that NumPy would not write")
            elif len(state) < 7 and isinstance(state[-1], Listed):
                self._hold(target, state[-1], in_records=known_dtype(state[-3]).kind != "O")  # type: ignore[union-attr]

    def on_fill(self, target: Any, frail: list[Made]) -> None:
        if self._is_refused(target):
            return
        if not self._trust.may_fill(target):
            self._refuse(target, f"adds items to {_text(target)}")
        elif frail:
            self._hold(target, frail)

    def _hold(self, holder: Made, items: Any, *, in_records: bool = False) -> None:
        """Take note that a frail thing is given *items*."""
        if in_records:  # in tuples of the items of which nothing is kept
            self._chains.hold_unseen()
        else:
            self._chains.hold(holder, items.frail if isinstance(items, Listed) else frail_among(items))
        if self._chains.may_crash:
            self.on_odd(TOO_LONG)

    def on_odd(self, what: str) -> None:
        self._note(f"it uses {what}")

    def on_array(self, shape: Any, dtype: Any) -> None:
        pass  # it is a call like others; what arrays there are, nobody asks

    def on_wrong_dtype(self, made: Made, why: str) -> None:
        self._refuse(made, f"has a numpy.dtype that {why}")

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


class Survey(Guard):
    """Collects all that there is, and what trust in plain data alone would refuse."""

    def __init__(self, *, foreign: bool = False) -> None:
        super().__init__(Trust(()), foreign=foreign)

    def on_global(self, found: Global) -> None:
        super().on_global(found)
        self.globals[found] = None

    def on_array(self, shape: Any, dtype: Any) -> None:
        Inspector.on_array(self, shape, dtype)


_MOST_WHYS = 8
_DEQUE = Global("collections", "deque")


def _is_array_state(state: Any) -> bool:
    """Whether it is ``(1, shape, dtype, is_fortran, data)``, or a masked array's with its mask and fill value after."""
    if not (isinstance(state, tuple) and len(state) in (4, 5, 7)):
        return False
    shape, found, _, data = state[-4:] if len(state) < 7 else state[1:5]
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
        return isinstance(data, Listed) and data.count == math.prod(shape) and len(state) < 7
    return data is BYTES or isinstance(data, bytes) or (isinstance(data, Made) and isinstance(data.known, bytes))


def _fits_class(args: Any, state: tuple[Any, ...]) -> bool:
    """Whether a matrix has two dimensions. NumPy looks nowhere but at its state, and crashes with more."""
    is_matrix = isinstance(args, tuple) and args[:1] and args[0] in _MATRICES
    return not is_matrix or len(state[-4] if len(state) < 7 else state[1]) == 2


_MATRICES = frozenset({Global("numpy", "matrix"), Global("numpy.matrixlib.defmatrix", "matrix")})


def _root(of: Any) -> Any:
    return of.root if isinstance(of, Made) else of


def _text(of: Any) -> str:
    root = _root(of)
    if not isinstance(root, Global):
        return "what is nothing imported"
    return f"what {root} gave" if isinstance(of, Made) else str(root)
