"""Follows what a function's code reads: functions and classes of its own package, constants, what it closes over."""

from __future__ import annotations

import builtins
from types import FunctionType, MappingProxyType, ModuleType
from typing import TYPE_CHECKING, Any, Literal

from aparallel._memory.bytecode import cells_written, encode_code, globals_read, imports_made
from aparallel._memory.callables import MISSING, content_of, functions_of, package_of, unbind
from aparallel._memory.constants import is_constant
from aparallel._memory.digest import digest
from aparallel._memory.encoding import Encode, encode_int, encode_name, encode_str, join

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import CellType, CodeType

Track = Literal["deep", "own", "none"]

_FIND_AT_RUN_TIME = frozenset({"__import__", "eval", "exec", "getattr", "globals", "vars"})
_NOT_CONTENT = frozenset(
    {"__module__", "__qualname__", "__doc__", "__name__", "__firstlineno__", "__static_attributes__"}
)
# From Python 3.14 on a class has a function that gives its annotations.
_ANNOTATES = frozenset({"__annotate__", "__annotate_func__"})


class Walk:
    """Follows what functions refer to. Each is visited once, in an order that the code alone decides.

    Attributes:
        packages: those whose code is followed.
        entries: what functions and classes are encoded as, in the order in which they were met; empty while one is
            being visited. A reference to one is encoded as its place here.
        parts: the digests of these, by name.
        unseen: names that are read whose content counts for nothing, and what is found only when it runs.
        codes, names, cells: what must still be the same for the fingerprint to hold: functions with their code and
            defaults, names in namespaces with their values, cells with their contents.
        dynamic: values that are held and can change in place.
    """

    def __init__(self, packages: set[str], track: Track, encode: Encode) -> None:
        self._encode = encode
        self.packages = packages
        self._track = track
        # Places in entries, by id. What was met is kept alive, so that no id comes twice.
        self._numbers: dict[int, int] = {}
        self._alive: list[object] = []
        self.entries: list[bytes] = []
        self.parts: dict[str, bytes] = {}
        self.unseen: set[str] = set()
        self.codes: list[tuple[FunctionType, CodeType, Any]] = []
        self.names: list[tuple[Mapping[str, Any], str, Any]] = []
        self.cells: list[tuple[CellType, Any]] = []
        self.dynamic: list[Any] = []

    def visit(self, value: Any, *, with_defaults: bool = True) -> bytes:
        """Encode a reference to a function or class, after visiting it if it was not yet."""
        if isinstance(value, FunctionType):
            return self.visit_function(value, with_defaults=with_defaults)
        if isinstance(value, type):
            return self._visit_class(value)
        return encode_name(value)

    def visit_dependency(self, value: Any) -> None:
        """Visit what the user says that results depend on: a callable, a class, a module or a value."""
        if isinstance(value, ModuleType):
            own = {n: v for n, v in vars(value).items() if getattr(v, "__module__", value.__name__) == value.__name__}
            for name in sorted(own):
                if not name.startswith("__"):
                    self._note(vars(value), name, own[name])
                    self.entries.append(join(b"V", [encode_str(name), self._refer_to(own[name], name)]))
        elif callable(value):
            inner, own_values = unbind(value)
            self.dynamic += own_values
            self.entries.append(join(b"V", [self.visit(inner)]))
        elif is_constant(value):
            self.entries.append(join(b"V", [self._encode(value)]))
        else:
            self.dynamic.append(value)

    def visit_function(self, fn: FunctionType, *, with_defaults: bool) -> bytes:
        number = self._enter(fn)
        if number is None:
            return self._reference(fn)
        self.codes.append((fn, fn.__code__, fn.__defaults__))
        content = [encode_name(fn), encode_code(fn.__code__)]
        for chain in globals_read(fn.__code__):
            content += self._follow(fn.__globals__, chain)
        self.unseen.update(self._imported(fn))
        content += self.close_over(fn)
        if with_defaults:
            defaults = (*(fn.__defaults__ or ()), *(v for _, v in sorted((fn.__kwdefaults__ or {}).items())))
            content += [self._hold(default) for default in defaults]
        if (wrapped := vars(fn).get("__wrapped__")) is not None:
            self._note(vars(fn), "__wrapped__", wrapped)
            content.append(self._refer_to(wrapped, "__wrapped__"))
        self._leave(number, f"{fn.__module__}.{fn.__qualname__}", join(b"f", content))
        return self._reference(fn)

    def _imported(self, fn: FunctionType) -> Iterator[str]:
        """What *fn* imports of our packages when it runs: to follow it would be to import it, too early."""
        package = str(fn.__globals__.get("__package__") or "")
        for level, module, name in imports_made(fn.__code__):
            parents = package.rsplit(".", level - 1)[0] if level else ""
            path = ".".join(filter(None, (parents, module, name)))
            if path.partition(".")[0] in self.packages:
                yield path

    def close_over(self, fn: FunctionType) -> list[bytes]:
        """Encode what *fn* closes over, but for what it writes to itself."""
        found: list[bytes] = []
        written = cells_written(fn.__code__)
        for name, cell in zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True):
            if name in written:
                self.unseen.add(name)
                continue
            value = content_of(cell)
            self.cells.append((cell, value))
            if value is MISSING:
                found.append(b"n")
            elif name == "__class__" and isinstance(value, type):
                found.append(encode_name(value))
            else:
                found.append(self._hold(value))
        return found

    def _enter(self, value: object) -> int | None:
        """Return the number of what is met for the first time, else None."""
        if id(value) in self._numbers:
            return None
        number = self._numbers[id(value)] = len(self.entries)
        self._alive.append(value)
        self.entries.append(b"")
        return number

    def _reference(self, value: object) -> bytes:
        return join(b"r", [encode_int(self._numbers[id(value)])])

    def _leave(self, number: int, name: str, entry: bytes) -> None:
        self.entries[number] = entry
        self.parts[name if name not in self.parts else f"{name} ({number})"] = digest(entry)

    def _visit_class(self, cls: type) -> bytes:
        number = self._enter(cls)
        if number is None:
            return self._reference(cls)
        content = [encode_name(cls), *(self._refer_to(base, base.__qualname__) for base in cls.__bases__)]
        namespace = vars(cls)
        for name in sorted(namespace.keys() - _ANNOTATES):
            value = namespace[name]
            code = [value] if isinstance(value, type) else functions_of(value)
            if code or (is_constant(value) and name not in _NOT_CONTENT):
                self._note(namespace, name, value)
                content.append(encode_str(name))
                content += [self._refer_to(part, name) for part in code] or [self._encode(value)]
            elif not name.startswith("_") and not hasattr(type(value), "__get__"):
                self.unseen.add(f"{cls.__qualname__}.{name}")
        self._leave(number, f"{cls.__module__}.{cls.__qualname__}", join(b"k", content))
        return self._reference(cls)

    def _note(self, namespace: Mapping[str, Any], name: str, value: Any) -> None:
        self.names.append((namespace, name, value))

    def _follow(self, namespace: dict[str, Any], chain: tuple[str, ...]) -> list[bytes]:
        """Encode what a global name, and attributes of modules after it, refer to."""
        for length, name in enumerate(chain, start=1):
            value = namespace.get(name, MISSING)
            self._note(namespace, name, value)
            if value is MISSING:  # built in, or not there (yet)
                if name in _FIND_AT_RUN_TIME:
                    self.unseen.add(f"what {name} finds")
                return [] if hasattr(builtins, name) else [encode_str(name)]
            if not isinstance(value, ModuleType) or length == len(chain):
                path = ".".join(chain[:length])
                return [encode_str(path), self._refer_to(value, path)]
            if package_of(value) not in self.packages:
                return [encode_str(".".join(chain)), encode_name(value)]
            namespace = vars(value)
        return []

    def _refer_to(self, value: Any, path: str) -> bytes:
        """Encode a reference to *value*, and visit it if its code is ours."""
        if isinstance(value, ModuleType):
            return encode_str(value.__name__)
        if is_constant(value):
            return self._encode_constant(value)
        if callable(value):
            return self._refer_to_callable(value, path)
        if type(value) is tuple:  # of functions, for instance
            return join(b"(", [self._refer_to(part, path) for part in value])
        self.unseen.add(path)
        return b"n"

    def _encode_constant(self, value: Any) -> bytes:
        """Encode a constant, and visit its class if that has code of ours."""
        cls = type(value)
        encoding = self._encode(value)
        return join(b"K", [encoding, self.visit(cls)]) if self._is_ours(cls) else encoding

    def _refer_to_callable(self, value: Any, path: str) -> bytes:
        inner, held = unbind(value)
        code = self._refer_to_code(inner, path)
        return join(b"h", [code, *(self._refer_to_held(part, path) for part in held)]) if held else code

    def _refer_to_code(self, inner: Any, path: str) -> bytes:
        if isinstance(inner, FunctionType | type) and id(inner) not in self._numbers and not self._is_ours(inner):
            registry = getattr(inner, "registry", None)
            if isinstance(registry, MappingProxyType):  # of singledispatch
                return self._refer_to_registered(registry, path)
            wrapped = getattr(inner, "__wrapped__", None)
            return self._refer_to(wrapped, path) if callable(wrapped) else encode_name(inner)
        return self.visit(inner)

    def _refer_to_registered(self, registry: Mapping[type, Any], path: str) -> bytes:
        found: list[bytes] = []
        for cls in sorted(registry, key=encode_name):
            found += [encode_name(cls), self._refer_to(registry[cls], path)]
        return join(b"G", found)

    def _refer_to_held(self, value: Any, path: str) -> bytes:
        """Encode what a partial, or a method, at *path* brings along."""
        if isinstance(value, type) or is_constant(value):
            return self._refer_to(value, path)
        self.unseen.add(path)
        return b"n"

    def _is_ours(self, value: Any) -> bool:
        if self._track != "deep":
            return False
        return package_of(value) in self.packages or (isinstance(value, FunctionType) and "<" in value.__qualname__)

    def _hold(self, value: Any) -> bytes:
        """Encode a value that a function holds, now if it cannot change, else at every call."""
        if type(value) is object:  # a sentinel: what matters is which name it has
            return b"."
        if is_constant(value):
            return self._encode_constant(value)
        if isinstance(value, ModuleType):
            return encode_str(value.__name__)
        if isinstance(value, FunctionType):
            if package_of(value) in self.packages or "<" in value.__qualname__:
                return self.visit_function(value, with_defaults=True)
            return encode_name(value)
        if isinstance(value, type):
            return self._visit_class(value) if package_of(value) in self.packages else self._encode(value)
        inner, held = unbind(value) if callable(value) else (value, [])
        if isinstance(inner, FunctionType) and not held:  # such as a memoized function
            return self._hold(inner)
        self.dynamic.append(value)
        return b"n"


def class_content(cls: type, encode: Encode) -> bytes:
    """Encode what a class made inside a function does, which its name does not tell: code and plain attributes."""
    content = [encode_name(base) for base in cls.__bases__]
    namespace = vars(cls)
    for name in sorted(namespace.keys() - _ANNOTATES):
        value = namespace[name]
        functions = [] if isinstance(value, type) else functions_of(value)
        if isinstance(value, type) and value.__qualname__.startswith(f"{cls.__qualname__}."):
            content += [encode_str(name), encode(value)]
        for fn in functions:
            content += [encode_str(name), encode_code(fn.__code__)]
            held = [*map(content_of, fn.__closure__ or ()), *(fn.__defaults__ or ())]
            content += [encode(part) for part in held if is_constant(part)]
        if not functions and is_constant(value) and name not in _NOT_CONTENT:
            content += [encode_str(name), encode(value)]
    return join(b"L", content)
