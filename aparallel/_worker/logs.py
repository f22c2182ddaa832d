"""The worker's log records and warnings go to the parent, whose logging and filters decide what becomes of them.

Standard library only and little of it: ``logging`` would cost a worker's start 10 ms, so what concerns it
is put in place when the user's code imports it.
"""

from __future__ import annotations

import os
import sys
import warnings
from _pickle import dumps
from itertools import count
from marshal import dumps as marshal
from time import monotonic_ns

from aparallel._transfer.failures import pickle_chain
from aparallel._transfer.pickling import MAIN, pickle_by_value
from aparallel._wire.outbox import LOGGED
from aparallel._wire.records import LOG, PLAIN, WARNING, pieces_of

TYPE_CHECKING = False  # as in aparallel/__init__.py
if TYPE_CHECKING:
    from typing import Any

_UNSET = object()


class WorkerLogs:
    """Writes records and warnings to the parent, and follows its levels and filters.

    Args:
        fd: the pipe's end to write to.
        head: the head of the outbox: it says when something was written last.
        variables: the context variables whose values go along, by their pickles; filled as they are met.
    """

    def __init__(self, fd: int, head: memoryview, variables: dict[bytes, Any]) -> None:
        self._fd = fd
        self._head = head
        self._variables = variables
        self._numbers = count()
        self._filters = _Filters()
        # The parent's levels, and what applies them once logging is there.
        self._levels: Any = None
        self._follow: Any = None
        self._print = warnings.showwarning
        warnings.showwarning = self._show_warning
        if "logging" in sys.modules:
            self._on_logging()
        else:
            sys.meta_path.insert(0, _LoggingFinder(self._on_logging))

    def configure(self, levels: Any, filters: list[Any]) -> None:
        """Take in the parent's levels and filters."""
        self._filters.apply(filters)
        self._levels = levels
        if self._follow is not None:
            self._follow(levels)

    def _on_logging(self) -> None:
        from aparallel._worker.log_handler import begin

        self._follow = begin(self._send_log)
        if self._levels is not None:
            self._follow(self._levels)

    def _send_log(self, *described: Any) -> None:
        """Write a log record. What comes last are attributes that may be of any kind."""
        *plain, others = described
        self._send(LOG, *plain, {name: _portable(value) for name, value in others.items()})

    def _send(self, *content: Any) -> None:
        """Write a record. Once this has returned, the parent gets it whatever happens here."""
        data = marshal((*content, self._values()))
        try:
            for piece in pieces_of(data, os.getpid(), next(self._numbers)):
                os.write(self._fd, piece)
        except BrokenPipeError:  # the parent is gone, or has closed the pool: nobody is left to tell
            return
        # Written after the record. Any new value makes the parent look, so forked children may write it too.
        self._head[LOGGED] = monotonic_ns()

    def _values(self) -> list[tuple[bytes, object]]:
        if not self._variables:
            return []
        values = [(blob, variable.get(_UNSET)) for blob, variable in list(self._variables.items())]
        return [(blob, _portable(value)) for blob, value in values if value is not _UNSET]

    def _show_warning(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: Any = None,
        line: str | None = None,
    ) -> None:
        """Stand in for ``warnings.showwarning``."""
        if file is not None:
            self._print(message, category, filename, lineno, file, line)
            return
        base = next(kind for kind in category.__mro__ if kind.__module__ == "builtins")
        text = str(message)
        is_simple = base is category and type(message) is category and message.args == (text,)
        whole = pickle_chain(message) if isinstance(message, Warning) and not is_simple else None
        try:
            self._send(WARNING, base.__name__, text, whole, filename, lineno, _module_at(filename), line)
        except (OSError, ValueError):  # the user's code closed the pipe; its warnings must not raise for that
            self._print(message, category, filename, lineno, file, line)


def _portable(value: object) -> object:
    """Return plain data for *value*: itself, a list of its pickle, or its repr if it cannot be pickled."""
    if type(value) in PLAIN:
        return value
    try:
        return [_pickle(value)]
    except Exception:  # __reduce__ may raise anything
        return _repr(value)


def _pickle(value: object) -> bytes:
    """Pickle *value*, by value only if ``__main__`` is the reason: what cannot be pickled is met again and again."""
    try:
        data = dumps(value, 5)
    except Exception as error:
        if "__main__" not in str(error):
            raise
        return pickle_by_value(value)
    return pickle_by_value(value) if MAIN in data else data


def _repr(value: object) -> str:
    try:
        return "".join([repr(value)])
    except Exception as error:
        return f"<{type(value).__qualname__}, whose repr() raised {type(error).__name__}>"


def _module_at(filename: str) -> str | None:
    """Return the name of the module in *filename* that is running: filters of the parent may name it."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename == filename:
            name = frame.f_globals.get("__name__")
            return name if type(name) is str else None
        frame = frame.f_back
    return None


class _Filters:
    """The warnings filters of the parent, behind those that code in this process has added."""

    def __init__(self) -> None:
        self._applied: list[tuple[Any, ...]] | None = None

    def apply(self, filters: list[Any]) -> None:
        own: list[Any] = []
        if self._applied is not None:
            known = set(map(id, self._applied))
            own = [entry for entry in warnings.filters if id(entry) not in known]
        self._applied = [
            (action, _pattern(message), _categories(named), _pattern(module), lineno)
            for action, message, named, module, lineno in filters
        ]
        # This also makes every "once per location" begin anew, as any change of filters does.
        warnings.resetwarnings()
        warnings.filters[:] = own + self._applied  # type: ignore[index]


def _pattern(described: Any) -> Any:
    return _Pattern(*described) if type(described) is tuple else described


class _Pattern:
    """A regular expression that is compiled, and ``re`` imported, when it is needed."""

    def __init__(self, pattern: str, flags: int) -> None:
        self.pattern = pattern
        self.flags = flags
        self._compiled: Any = None

    def match(self, text: str) -> Any:
        if self._compiled is None:
            import re

            self._compiled = re.compile(self.pattern, self.flags)
        return self._compiled.match(text)


class _ByName(type):
    """The type of stand-ins for categories: importing the modules of the real ones could take a second.

    The subclasses of a stand-in are those of the class that it names.
    """

    named: tuple[str, str]

    def __subclasscheck__(cls, kind: type) -> bool:
        return any((base.__module__, base.__qualname__) == cls.named for base in kind.__mro__)


def _categories(named: list[tuple[str, str]]) -> type | tuple[type, ...]:
    kinds = tuple(_category(*name) for name in named)
    return kinds[0] if len(kinds) == 1 else kinds


def _category(module: str, qualname: str) -> type:
    if module == "builtins":
        import builtins

        kind = getattr(builtins, qualname, None)
        if isinstance(kind, type):
            return kind
    return _ByName(qualname, (Warning,), {"named": (module, qualname)})


class _LoggingFinder:
    """Stands first among the finders of imports until ``logging`` has been imported, then calls *imported*."""

    def __init__(self, imported: Any) -> None:
        self._imported = imported

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != "logging":
            return None
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        for finder in sys.meta_path:
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                self._announce(spec.loader)
                return spec
        return None

    def _announce(self, loader: Any) -> None:
        """Have *loader* call us after it has executed its module, this once."""
        execute = loader.exec_module

        def exec_module(module: Any) -> None:
            del loader.exec_module
            execute(module)
            self._imported()

        loader.exec_module = exec_module
