"""What a function's results depend on besides its arguments, as far as its code tells.

A walk follows what the code reads. All of this that cannot change is hashed once, into ``Fingerprint.static``;
:meth:`Fingerprint.still_holds` says cheaply whether every name still means what it meant then. What can change in
place, such as a list that is closed over, is hashed at every call.
"""

from __future__ import annotations

import weakref
from types import FunctionType
from typing import TYPE_CHECKING, Any

from aparallel._memory.callables import MISSING, content_of, functions_of, is_importable, package_of, unbind
from aparallel._memory.digest import digest
from aparallel._memory.encoding import Encode, encode_name, join
from aparallel._memory.tracking import Walk

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from types import CodeType

    from aparallel._memory.tracking import Track


class Fingerprint:
    """What a callable's results depend on besides its arguments.

    Attributes:
        static: 32 bytes that stand for its identity, code and constants.
        parts: the digest of each function's own code and constants, by name.
        unseen: names that it reads whose content is not part of the key, and what it finds when it runs.
    """

    def __init__(self, walk: Walk, identity: bytes, own: list[Any]) -> None:
        self.static = digest(join(b"W", [identity, *walk.entries]))
        self.parts: Mapping[str, bytes] = walk.parts
        self.unseen = tuple(sorted(walk.unseen - walk.parts.keys()))
        self._packages = walk.packages
        self._own = own
        self._codes = walk.codes
        self._names = walk.names
        self._cells = walk.cells
        self._dynamic = walk.dynamic

    def still_holds(self) -> bool:
        """Whether every name still means what it meant when this was made."""
        for namespace, name, value in self._names:
            if namespace.get(name, MISSING) is not value:
                return False
        for fn, code, defaults in self._codes:
            if fn.__code__ is not code or fn.__defaults__ is not defaults:
                return False
        return not self._cells or all(content_of(cell) is value for cell, value in self._cells)

    def sees_methods_of(self, cls: type) -> bool:
        """Whether what the methods of a class do counts, as far as they are of our packages and not Python's own."""
        if "<locals>" in cls.__qualname__ or f"{cls.__module__}.{cls.__qualname__}" in self.parts:
            return True
        namespaces = [vars(base) for base in cls.__mro__ if package_of(base) in self._packages]
        names = {name for namespace in namespaces for name, value in namespace.items() if functions_of(value)}
        return all(name.startswith("__") and name != "__call__" for name in names)

    def dynamic(self) -> list[Any]:
        """The values as they are now that can change in place."""
        return [*self._own, *self._dynamic]


# Only a cache: a fingerprint that no longer holds is made anew. With each is the code of its function and the defaults
# that it was made of: a value that refers to its key would keep it for ever.
_known: weakref.WeakKeyDictionary[FunctionType, tuple[Fingerprint, CodeType, Any]] = weakref.WeakKeyDictionary()


def fingerprint_of(fn: FunctionType, encode: Encode) -> Fingerprint:
    """Return the fingerprint of a function that is itself a value, its defaults included."""
    known = _known.get(fn)
    if known is not None:
        fingerprint, code, defaults = known
        if fn.__code__ is code and fn.__defaults__ is defaults and fingerprint.still_holds():
            return fingerprint
    walk = Walk({package_of(fn)}, "deep", encode)
    walk.visit_function(fn, with_defaults=True)
    _, code, defaults = walk.codes.pop(0)
    fingerprint = Fingerprint(walk, encode_name(fn), [])
    if fn.__closure__ is None or is_importable(fn):  # else what it holds may refer to it
        _known[fn] = fingerprint, code, defaults
    return fingerprint


def fingerprint_of_callable(fn: Any, track: Track, depends_on: Iterable[Any], encode: Encode) -> Fingerprint:
    """Return the fingerprint of what is called, without the defaults of its own arguments.

    Raises:
        UnstableValueError: it depends on something without stable content.
    """
    inner, own = unbind(fn)
    others = list(depends_on)
    walk = Walk({package_of(part) for part in (inner, *others)}, track, encode)
    if track != "none":
        walk.visit(inner, with_defaults=False)
    elif isinstance(inner, FunctionType):
        walk.close_over(inner)  # its code does not count, and what it holds does
    for other in others:
        walk.visit_dependency(other)
    return Fingerprint(walk, encode_name(inner), own)
