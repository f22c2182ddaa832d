"""What a code object does and which globals it reads, whatever file and line it stands in."""

from __future__ import annotations

import dis
from types import CodeType
from typing import TYPE_CHECKING

from aparallel._memory.canonical import encode
from aparallel._memory.plain import Kind, combine, encode_content, plain_encoding

if TYPE_CHECKING:
    from collections.abc import Iterator

_READS_GLOBAL = frozenset({"LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"})
_READS_ATTRIBUTE = frozenset({"LOAD_ATTR", "LOAD_METHOD"})
_WRITES_GLOBAL = frozenset({"STORE_GLOBAL", "DELETE_GLOBAL"})


def encode_code(code: CodeType) -> bytes:
    """Encode what decides how *code* runs: not its file, its lines, its annotations or its docstring."""
    constants = list(code.co_consts)
    if constants and isinstance(constants[0], str) and not _loads_first_constant(code):
        constants[0] = None  # the docstring
    names = (code.co_name, code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
    counts = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
    shape = plain_encoding((names, counts))
    assert shape is not None
    body = [encode_content(b"b", code.co_code), encode_content(b"b", code.co_exceptiontable), shape]
    return combine(b"C", Kind.ORDERED, [*body, *map(_encode_constant, constants)])


def _encode_constant(constant: object) -> bytes:
    return encode_code(constant) if isinstance(constant, CodeType) else encode(constant)


def _loads_first_constant(code: CodeType) -> bool:
    return any(step.arg == 0 and step.opcode in dis.hasconst for step in dis.get_instructions(code))


def globals_read(code: CodeType) -> list[tuple[str, ...]]:
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
    return sorted(chain for chain in found if chain[0] not in written)


def _with_inner(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _with_inner(constant)
