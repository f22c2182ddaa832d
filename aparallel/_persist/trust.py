"""What ``load(..., trusted=...)`` lets a file build.

Two lines of defence. Before anything runs, every import, call and change of state in the pickle is held against what is
trusted (:mod:`aparallel._persist.checking` says how they are found). Then, while it is unpickled, names are resolved
here only: each to an object that is trusted itself, whose own module and name are compared with those asked for. A
module is never trusted, nor is what is reached through a dot.
"""

from __future__ import annotations

import functools
import importlib
import operator
import sys
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

from aparallel._persist.plain_data import ARRAYS, DATA, FILLED, STATED, anything
from aparallel._persist.standins import BASES, GETTERS, RECONSTRUCTORS, WRAPPERS, Global, Made
from aparallel.errors import UntrustedTypeError

if TYPE_CHECKING:
    from collections.abc import Iterable


class Trust:
    """What the user trusts beyond plain data and NumPy's data types.

    Args:
        trusted: types and functions, or their names as ``"module.qualname"``.

    Raises:
        TypeError: something else, such as a module: a module is no list of what it will ever hold.
        ValueError: a name without a module.
    """

    def __init__(self, trusted: Iterable[Any]) -> None:
        self._objects: dict[str, Any] = {}
        self._names: set[str] = set()
        for item in trusted:
            if isinstance(item, str):
                self._names.add(_checked_name(item))
                # Of others, nobody knows: one's own module may be called as one of Python 2's was.
                module, _, name = item.partition(".")
                if (renamed := _of_python_3(Global(module, name))).module == _BUILTINS:
                    self._names.add(str(renamed))
            elif isinstance(item, ModuleType):
                raise TypeError(
                    f"trusted has the module {item.__name__}. Name the types in it one by one: what is trusted must be "
                    f"known, and a module reaches everything that it imports."
                )
            elif callable(item) and hasattr(item, "__qualname__"):
                self._objects[name_of(item)] = item
            else:
                raise TypeError(f"trusted has {item!r}, which is no type, function or name.")

    @property
    def is_of_data_only(self) -> bool:
        """Whether the user trusts nothing more."""
        return not self._objects and not self._names

    def allows(self, asked: Global) -> bool:
        """Whether a name may be resolved. Nothing is imported to find out."""
        return asked in DATA or self.is_users(asked)

    def resolve(self, module: str, name: str) -> Any:
        """Return what a name means, if that is trusted.

        Raises:
            UntrustedTypeError: it is not.
        """
        asked = Global(module, name)
        if str(asked) in self._objects:
            return self._objects[str(asked)]
        if asked in GETTERS and not self.is_users(asked):
            return self._member
        if asked in DATA and asked not in WRAPPERS:  # which whoever reads joblib's files has in place of joblib's
            return _safe(asked)
        if str(asked) in self._names:
            return _resolved(asked)
        known = self._imported(asked)
        if known is None:
            raise untrusted([str(asked)])
        return known

    def _member(self, owner: Any, name: Any) -> Any:
        """Return what a class has under a name, if that is trusted. It stands for ``getattr``.

        Raises:
            UntrustedTypeError: it is not.
        """
        if not (isinstance(owner, type) and isinstance(name, str) and name.isidentifier()):
            raise untrusted(["builtins.getattr"])
        return self.resolve(owner.__module__, f"{owner.__qualname__}.{name}")

    def is_users(self, asked: Global) -> bool:
        """Whether it is trusted because the user has named it."""
        return str(asked) in self._objects or str(asked) in self._names or self._imported(asked) is not None

    def _imported(self, asked: Global) -> Any:
        """What is trusted by one of its names and asked for by another.

        Either is its own: a file asks for ``posix.getcwd`` where the user says ``os.getcwd``, or for an old name of
        what has moved, in a module that is loaded already. Or it asks for what Python 2 called it, as protocols 0 to 2
        do.
        """
        asked = _of_python_3(asked)
        if str(asked) in self._objects:
            return self._objects[str(asked)]
        if asked not in DATA and (known := self._by_own_name.get(str(asked))) is not None:
            return known
        if "." in asked.name:
            return None
        found = getattr(sys.modules.get(asked.module), "__dict__", {}).get(asked.name)
        if found is None or isinstance(found, ModuleType):
            return None
        own = name_of(found)
        if any(found is item for item in self._objects.values()) or own in self._names:
            return found
        return None

    @functools.cached_property
    def _by_own_name(self) -> dict[str, Any]:
        """What the user has named, by its own name.

        The user's modules are imported to find out: for a file that asks for what is neither data nor named so.
        """
        found = filter(None, map(_named, self._names))
        return {name_of(item): item for item in found}

    def checks_calls(self, asked: Global) -> bool:
        """Whether what a call of *asked* is given decides if that is trusted."""
        return DATA.get(asked) is not anything and not self.is_users(asked)

    def may_call(self, made: Made) -> bool:
        if not isinstance(made.of, Global):
            return False
        check = DATA.get(made.of)
        # What the user trusts is trusted with any arguments.
        return (check is not None and check(made)) or self.is_users(made.of)

    def may_build(self, target: Any) -> bool:
        return self._may_change(target, STATED)

    def may_fill(self, target: Any) -> bool:
        return self._may_change(target, FILLED)

    def _may_change(self, target: Any, changed: frozenset[Global]) -> bool:
        if not isinstance(target, Made) or not isinstance(target.of, Global):
            return False
        return target.of in changed or self.is_users(target.of)


def _checked_name(name: str) -> str:
    module, dot, rest = name.partition(".")
    if not (dot and module and rest) or not all(part.isidentifier() or "<" in part for part in name.split(".")):
        raise ValueError(f"trusted has {name!r}, which is no name such as 'module.Name'.")
    if name in sys.modules:
        raise TypeError(f"trusted has the module {name}. Name the types in it one by one.")
    return name


def _named(name: str) -> Any:
    """What *name* means, if it leads to a type or function through no other module than the one that it begins with."""
    parts = name.split(".")
    for end in range(len(parts) - 1, 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:end]))
        except ImportError:
            continue
        for part in parts[end:]:
            found = getattr(found, part, None)
            if isinstance(found, ModuleType):
                return None
        return found if callable(found) else None
    return None


def name_of(item: Any) -> str:
    """The module and qualified name by which something is known."""
    module = getattr(item, "__module__", None)
    if module is None:  # a method of a type that is written in C says only which type that is
        owner = getattr(item, "__self__", None)
        module = getattr(owner if isinstance(owner, type) else getattr(item, "__objclass__", None), "__module__", None)
    module = module or "builtins"
    return f"{module}.{getattr(item, '__qualname__', getattr(item, '__name__', ''))}"


def _resolved(asked: Global) -> Any:
    """Import what the user has named.

    Raises:
        UntrustedTypeError: it is something of elsewhere under that name.
    """
    try:
        found: Any = importlib.import_module(asked.module)
    except ModuleNotFoundError:
        if (renamed := _of_python_3(asked)).module != _BUILTINS:
            raise
        return _resolved(renamed)
    for part in asked.name.split("."):
        found = getattr(found, part)
        # The name of a class in a class goes through classes only; a module on the way leads out.
        if isinstance(found, ModuleType):
            raise untrusted([str(asked)], f"{asked} is a module")
    own = name_of(found)
    if own != str(asked) and own.partition(".")[0].lstrip("_") != asked.module.partition(".")[0].lstrip("_"):
        raise untrusted([str(asked)], f"{asked} is {own} under another name; trust that name if you mean it")
    return found


def _safe(asked: Global) -> Any:
    """What one of our own names means."""
    if asked == Global("_codecs", "encode"):
        return _encode_latin1
    if asked in RECONSTRUCTORS:
        return _reconstructed
    module, name = asked
    if module == "__builtin__":
        module, name = "builtins", _OF_PYTHON_2.get(name, name)
    elif module == "pathlib._local":
        module = "pathlib"
    if module.startswith("numpy."):
        return _safe_of_numpy(name)
    found = operator.attrgetter(name)(importlib.import_module(module))
    if isinstance(found, ModuleType) or (isinstance(found, FunctionType) and found.__module__ != ARRAYS):
        raise untrusted([str(asked)])
    return found


def _of_python_3(asked: Global) -> Global:
    """The name that Python 3 has for what Python 2 called so; most have not changed."""
    if asked in NAME_MAPPING:
        return Global(*NAME_MAPPING[asked])
    return Global(IMPORT_MAPPING.get(asked.module, asked.module), asked.name)


_BUILTINS = "builtins"
_OF_PYTHON_2 = {"xrange": "range", "long": "int", "unicode": "str"}


def _safe_of_numpy(name: str) -> Any:
    """Found where this NumPy has it: 1 and 2 name their cores differently."""
    import numpy as np

    core = getattr(np, "_core", None) or np.core
    homes = {
        "_convert_to_stringdtype_kwargs": core._internal,
        "_reconstruct": core.multiarray,
        "scalar": core.multiarray,
        "_frombuffer": core.numeric,
        "_mareconstruct": np.ma.core,
        "MaskedArray": np.ma,
        "MaskedConstant": np.ma.core,
        "chararray": np.char,
        "matrix": np,
        "memmap": np,
        "record": np,
        "recarray": np,
    }
    return getattr(homes[name], name)


def _encode_latin1(text: Any, encoding: Any) -> bytes:
    if not (isinstance(text, str) and encoding in ("latin1", "latin-1")):
        raise untrusted(["_codecs.encode"], "it is called with another codec than latin1")
    return text.encode("latin-1")


def _reconstructed(kind: Any, base: Any, state: Any) -> Any:
    if not (isinstance(kind, type) and (base in BASES or (base is object and state is None))):
        raise untrusted(["copyreg._reconstructor"], "it makes an object of something else than a class")
    made = base.__new__(kind) if base is object else base.__new__(kind, state)
    if base.__init__ is not object.__init__:
        base.__init__(made, state)
    return made


def untrusted(names: list[str], why: str = "") -> UntrustedTypeError:
    listed = ", ".join(names)
    return UntrustedTypeError(why or f"it asks for {listed}", names=tuple(names))
