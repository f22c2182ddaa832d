"""Arithmetic with a number of workers, such as ``pre_dispatch="2*n_jobs"``. Loaded when there is some."""

from __future__ import annotations

import ast
import operator
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

# No powers: 9**9**9 would take for ever.
_OPERATORS: Mapping[type, Callable[..., float]] = MappingProxyType(
    {
        ast.Add: operator.add,
        ast.Sub: operator.sub,
        ast.Mult: operator.mul,
        ast.Div: operator.truediv,
        ast.FloorDiv: operator.floordiv,
        ast.Mod: operator.mod,
        ast.USub: operator.neg,
        ast.UAdd: operator.pos,
    }
)


def evaluate(expression: str, n_jobs: int) -> float:
    """Return what *expression* is: numbers, ``n_jobs``, the basic operators and parentheses.

    Raises:
        SyntaxError: it is something else.
        ArithmeticError: it has no value.
    """
    try:
        return _value(ast.parse(expression.strip(), mode="eval").body, n_jobs)
    except (ValueError, LookupError, RecursionError, MemoryError):  # of which some are the parser's
        raise SyntaxError("not arithmetic") from None


def _value(node: ast.expr, n_jobs: int) -> float:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool):
        return node.value
    if isinstance(node, ast.Name) and node.id == "n_jobs":
        return n_jobs
    if isinstance(node, ast.BinOp):
        return _OPERATORS[type(node.op)](_value(node.left, n_jobs), _value(node.right, n_jobs))
    if isinstance(node, ast.UnaryOp):
        return _OPERATORS[type(node.op)](_value(node.operand, n_jobs))
    raise LookupError(ast.dump(node))
