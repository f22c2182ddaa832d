"""What a code object does and which globals it reads, whatever file and line it stands in."""

from __future__ import annotations

import dis
import functools
from types import CodeType
from typing import TYPE_CHECKING

from aparallel._memory.encoding import encode_content, join, plain_encoding

if TYPE_CHECKING:
    from collections.abc import Iterator

_READS_GLOBAL = frozenset({"LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"})
_READS_ATTRIBUTE = frozenset({"LOAD_ATTR", "LOAD_METHOD"})
_WRITES_GLOBAL = frozenset({"STORE_GLOBAL", "DELETE_GLOBAL"})
_READS_CELL = frozenset({"LOAD_DEREF", "LOAD_CLASSDEREF", "LOAD_FROM_DICT_OR_DEREF"})
_WRITES_CELL = frozenset({"STORE_DEREF", "DELETE_DEREF"})
_WRITES_INTO = frozenset({"STORE_SUBSCR", "DELETE_SUBSCR", "STORE_SLICE", "STORE_ATTR", "DELETE_ATTR"})
_LOADS_CONSTANT = frozenset(dis.hasconst)
_HAS_DOCSTRING = 0x4000000  # inspect.CO_HAS_DOCSTRING, of Python 3.14
# Methods by which the usual containers change in place.
_CHANGES = frozenset(
    {"add", "append", "appendleft", "clear", "discard", "extend", "extendleft", "insert", "move_to_end", "pop"}
    | {"popitem", "popleft", "put", "put_nowait", "remove", "reverse", "rotate", "set", "setdefault", "sort"}
    | {"update", "write"}
)


@functools.lru_cache(maxsize=1024)  # objects of classes that are made in a function have all of those encoded
def encode_code(code: CodeType) -> bytes:
    """Encode what decides how *code* runs: not its file, its lines, its annotations or its docstring."""
    # A docstring is a constant that is never loaded. From Python 3.14 on it moves the others up, and has a flag.
    body, loaded = _without_places(code)
    names = (code.co_name, code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
    flags = code.co_flags & ~_HAS_DOCSTRING
    counts = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, flags)
    places = {place: number for number, place in enumerate(dict.fromkeys(loaded))}
    shape = plain_encoding((names, counts, tuple(places[place] for place in loaded)))
    assert shape is not None
    parts = [encode_content(b"b", body), encode_content(b"b", code.co_exceptiontable), shape]
    return join(b"C", [*parts, *(_encode_constant(code.co_consts[place]) for place in places)])


def _without_places(code: CodeType) -> tuple[bytes, list[int]]:
    """The instructions of *code*, without the places of the constants that they load; and those places, in order."""
    body = bytearray(code.co_code)  # an instruction and its argument in turn; what stands in caches is 0
    loaded: list[int] = []
    argument = 0
    for at in range(0, len(body), 2):
        argument = argument << 8 | body[at + 1]
        if body[at] in _LOADS_CONSTANT:
            loaded.append(argument)
            body[at + 1] = 0
        if body[at] != dis.EXTENDED_ARG:
            argument = 0
    return bytes(body), loaded


def _encode_constant(constant: object) -> bytes:
    if isinstance(constant, CodeType):
        return encode_code(constant)
    encoding = plain_encoding(constant)
    assert encoding is not None  # a compiler makes nothing else
    return encoding


@functools.lru_cache(maxsize=1024)  # closures of one function have the same code
def globals_read(code: CodeType) -> tuple[tuple[str, ...], ...]:
    """The globals that *code* and the code inside it read, sorted: ``("np", "linalg", "norm")`` for np.linalg.norm.

    Left out are those that it also writes: their value is its own doing.
    """
    found: set[tuple[str, ...]] = set()
    written: set[str] = set()
    for inner in _with_inner(code):
        chain: tuple[str, ...] | None = None
        for step in dis.get_instructions(inner):
            if step.opname in _READS_GLOBAL:
                found.update([chain] if chain else [])
                chain = (step.argval,)
            elif step.opname in _READS_ATTRIBUTE and chain is not None:
                chain = (*chain, step.argval)
            elif step.opname not in {"CACHE", "PUSH_NULL"}:
                found.update([chain] if chain else [])
                chain = None
            if step.opname in _WRITES_GLOBAL:
                written.add(step.argval)
        found.update([chain] if chain else [])
    return tuple(sorted(chain for chain in found if chain[0] not in written))


@functools.lru_cache(maxsize=1024)
def imports_made(code: CodeType) -> frozenset[tuple[int, str, str]]:
    """What *code* and the code inside it import when they run: (dots before the module, module, name in it or "")."""
    found: set[tuple[int, str, str]] = set()
    for inner in _with_inner(code):
        steps = [step for step in dis.get_instructions(inner) if step.opname not in {"CACHE", "EXTENDED_ARG"}]
        for position, step in enumerate(steps):
            if step.opname == "IMPORT_NAME":
                level, names = (before.argval for before in steps[position - 2 : position])
                found |= {(level, step.argval, name) for name in names or [""]}
    return frozenset(found)


@functools.lru_cache(maxsize=1024)
def cells_written(code: CodeType) -> frozenset[str]:
    """The closed-over names that *code* assigns to, or visibly changes in place: ``x[k] = …``, ``x.append(…)``.

    What they hold is its own doing, such as a count or a record of calls, and not what its results depend on.
    """
    written: set[str] = set()
    for inner in _with_inner(code):
        read_at: dict[tuple[int | None, int | None], str] = {}
        cell: str | None = None
        for step in dis.get_instructions(inner):
            place = (step.positions.lineno, step.positions.col_offset) if step.positions is not None else (None, None)
            if step.opname in _WRITES_CELL:
                written.add(step.argval)
            elif step.opname in _READS_ATTRIBUTE and cell is not None and step.argval in _CHANGES:
                written.add(cell)
            elif step.opname in _WRITES_INTO and place in read_at:  # the target begins with the name
                written.add(read_at[place])
            if step.opname in _READS_CELL:
                cell = step.argval
                read_at[place] = step.argval
            elif step.opname != "CACHE":
                cell = None
    return frozenset(written)


def _with_inner(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _with_inner(constant)
