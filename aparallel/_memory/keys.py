"""The key of a call: the function's fingerprint and the arguments, bound by signature."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import Parameter
from typing import Any, Final

from aparallel._memory.digest import digest
from aparallel._memory.encoding import ATOMS, encode_str, join
from aparallel._memory.fingerprint import Fingerprint, fingerprint_of_callable
from aparallel._memory.hashing import TooLarge, encode
from aparallel._memory.tracking import Track
from aparallel.errors import UnstableValueError

# It makes all keys new when the meaning of a key changes.
_VERSION: Final = b"aparallel key 1\n"

_NOTHING: Final = object()


@dataclass(slots=True, eq=False)
class Key:
    """What a call is known by.

    Attributes:
        digest: 32 bytes.
        arguments: the encoding of each bound argument, in the order of the binder's names.
        held: the encoding of what the function closes over and can change in place.
        fingerprint: the function's, as it was.
    """

    digest: bytes
    arguments: list[bytes]
    held: bytes
    fingerprint: Fingerprint


class Binder:
    """Puts the arguments of a call in the one order of its signature, defaults filled in.

    Attributes:
        names: what :meth:`bind` gives values for: the parameters but the ignored ones.

    Raises:
        ValueError: *ignore* names something that is not a parameter.
    """

    def __init__(self, fn: Callable[..., Any], ignore: Sequence[str] = (), name: str = "The function") -> None:
        if isinstance(ignore, str):
            raise TypeError(f"ignore={ignore!r} is a text. Write ignore=[{ignore!r}].")
        self._name = name
        try:
            self._signature = _signature_of(fn)
        except (TypeError, ValueError):  # some built-in functions do not tell theirs
            self._signature = inspect.Signature(
                [Parameter("args", Parameter.VAR_POSITIONAL), Parameter("kwargs", Parameter.VAR_KEYWORD)]
            )
        parameters = self._signature.parameters

        def names_of(*kinds: Any) -> tuple[str, ...]:
            return tuple(name for name, parameter in parameters.items() if parameter.kind in kinds)

        self._positional_only = len(names_of(Parameter.POSITIONAL_ONLY))
        self._positional = names_of(Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
        self._rest = next(iter(names_of(Parameter.VAR_POSITIONAL)), None)
        self._keyword_only = names_of(Parameter.KEYWORD_ONLY)
        self._keywords = next(iter(names_of(Parameter.VAR_KEYWORD)), None)
        self._defaults = {
            name: parameter.default
            for name, parameter in parameters.items()
            if parameter.default is not Parameter.empty
        }
        self._sentinels = {id(value) for value in self._defaults.values() if type(value) is object}
        stars = {"*": self._rest, "**": self._keywords}
        ignored = {stars.get(name) or name for name in ignore}
        # What is to be ignored and is no parameter may come as one of ``**kwargs``.
        self._ignored_keywords = ignored - parameters.keys()
        if self._ignored_keywords and not self._keywords:
            raise ValueError(
                f"{self._name} has no parameter {min(self._ignored_keywords)!r} to ignore; "
                f"it has {', '.join(parameters) or 'none'}."
            )
        self._kept = tuple(index for index, name in enumerate(parameters) if name not in ignored)
        self.names = tuple(name for name in parameters if name not in ignored)
        # Whether giving every positional parameter by position, and nothing else, is the bound form already.
        self._is_simple = len(self._kept) == len(parameters) == len(self._positional)

    def is_sentinel(self, value: object) -> bool:
        """Whether *value* is a bare ``object()`` that is a default of this signature."""
        return type(value) is object and id(value) in self._sentinels

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Sequence[Any]:
        """Return the values of :attr:`names`.

        Raises:
            TypeError: the arguments do not fit the signature.
        """
        if not kwargs and self._is_simple and len(args) == len(self._positional):
            return args
        values = self._bind_all(args, kwargs)
        return values if len(self._kept) == len(values) else [values[index] for index in self._kept]

    def _misfit(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        try:
            self._signature.bind(*args, **kwargs)  # raises what Python would, but for bugs of Python 3.13.0
        except TypeError as error:
            return f"cannot be called like that: {error}"
        return f"has the signature {self._signature}, which the arguments do not fit"

    def _bind_all(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        names = self._positional
        values: list[Any] = list(args[: len(names)])
        left = dict(kwargs)
        for index in range(len(values), len(names)):
            value = left.pop(names[index], _NOTHING) if index >= self._positional_only else _NOTHING
            values.append(self._defaults.get(names[index], _NOTHING) if value is _NOTHING else value)
        if self._rest is not None:
            values.append(args[len(names) :])
        values += [left.pop(name, self._defaults.get(name, _NOTHING)) for name in self._keyword_only]
        fits = len(args) <= len(names) or self._rest is not None
        given_twice = any(name in left for name in names[self._positional_only : len(args)])
        is_complete = all(value is not _NOTHING for value in values)
        if not is_complete or not fits or given_twice or (left and self._keywords is None):
            raise TypeError(f"{self._name}() {self._misfit(args, kwargs)}.")
        if self._keywords is not None:
            values.append({name: value for name, value in left.items() if name not in self._ignored_keywords})
        return values


def _signature_of(fn: Callable[..., Any]) -> inspect.Signature:
    """The signature that *fn* itself has; where it takes anything, the one of the function that it wraps."""
    own = _signature(fn, follow_wrapped=False)
    kinds = {parameter.kind for parameter in own.parameters.values()}
    takes_anything = kinds & {Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD}
    return _signature(fn) if takes_anything else own


_signature: Callable[..., inspect.Signature] = inspect.signature
if sys.version_info >= (3, 14):
    from annotationlib import Format

    # There annotations are computed when they are asked for, which may fail. Here they do not matter.
    _signature = functools.partial(inspect.signature, annotation_format=Format.STRING)


class KeyMaker:
    """Makes the keys of one function's calls.

    Raises:
        ValueError: see :class:`Binder`.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        *,
        name: str,
        ignore: Sequence[str] = (),
        track: Track = "deep",
        depends_on: Sequence[Any] = (),
    ) -> None:
        self._fn = fn
        self._name = name
        self._track: Track = track
        self._depends_on = tuple(depends_on)
        self.binder = Binder(fn, ignore, name)
        self._names = join(b"n", [encode_str(name) for name in self.binder.names])
        # Made at the first call, and anew when it no longer holds. Whoever finds it stale, in any thread, replaces it.
        self._fingerprint: Fingerprint | None = None

    def fingerprint(self) -> Fingerprint:
        """Return the fingerprint of the function as it is now. It may take milliseconds."""
        known = self._fingerprint
        if known is None or not known.still_holds():
            known = self._fingerprint = fingerprint_of_callable(self._fn, self._track, self._depends_on, encode)
        return known

    def make(self, args: tuple[Any, ...], kwargs: dict[str, Any], budget: int | None = None) -> Key:
        """Return the key of the call ``fn(*args, **kwargs)``.

        *budget* limits what is done here and now, see :func:`hashing.encode`; None for no limit.

        Raises:
            TooLarge: the budget is spent.
            TypeError: the arguments do not fit the signature.
            UnstableValueError: an argument, or what the function closes over, has no content that stays the same.
        """
        values = self.binder.bind(args, kwargs)
        known = self._fingerprint
        if known is None or not known.still_holds():
            if budget is not None:
                raise TooLarge
            known = self.fingerprint()
        encodings = []
        for index, value in enumerate(values):
            kind = type(value)
            atom = ATOMS.get(kind)
            if atom is not None and ((kind is not str and kind is not bytes) or len(value) < 1000):
                encodings.append(atom(value))
            else:
                encodings.append(self._encode_argument(index, value, budget))
        dynamic = known.dynamic()
        held = self._encode_held(dynamic, budget) if dynamic else b""
        content = b"".join((_VERSION, known.static, self._names, *encodings, held))
        return Key(digest(content), encodings, held, known)

    def unseen(self, key: Key, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[str, ...]:
        """Return what results may depend on and *key*, which is that of this call, does not."""
        fingerprint = key.fingerprint
        found = set(fingerprint.unseen)
        if self._track == "deep":
            classes = set(map(type, self.binder.bind(args, kwargs)))
            found |= {f"methods of {cls.__qualname__}" for cls in classes if not fingerprint.sees_methods_of(cls)}
        return tuple(sorted(found))

    def _encode_argument(self, index: int, value: object, budget: int | None) -> bytes:
        if self.binder.is_sentinel(value):
            return b"."
        try:
            return encode(value, budget)
        except UnstableValueError as error:
            error.part = f"argument {self.binder.names[index]!r} of {self._name}"
            raise

    def _encode_held(self, held: list[Any], budget: int | None) -> bytes:
        try:
            return encode(held, budget)
        except UnstableValueError as error:
            error.part = f"what {self._name} closes over"
            raise
