"""Rank the most complex functions of the installed standard library, first in a plain loop, then on every core.

``python quickstart.py FOLDER`` ranks those of your own code.
"""

import ast
import asyncio
import heapq
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from aparallel import cpu_count, delayed, gather_parallel

TESTS = {"test", "tests", "idle_test", "site-packages", "dist-packages"}
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
BRANCHES = (ast.If, ast.IfExp, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.comprehension, ast.match_case)


class Function(NamedTuple):
    complexity: int
    name: str
    module: str
    line: int


def cyclomatic_complexity(function: ast.AST) -> int:
    """One, and one for each decision; functions and classes inside are counted on their own (McCabe 1976)."""
    complexity = 1
    unseen = list(ast.iter_child_nodes(function))
    while unseen:
        node = unseen.pop()
        if isinstance(node, (*FUNCTIONS, ast.ClassDef)):
            continue
        if isinstance(node, BRANCHES):
            complexity += 1
        elif isinstance(node, ast.BoolOp):
            complexity += len(node.values) - 1
        unseen.extend(ast.iter_child_nodes(node))
    return complexity


def functions_in(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Every function below *tree*, with its qualified name."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (*FUNCTIONS, ast.ClassDef)):
            yield from functions_in(node, f"{prefix}{node.name}.")
            if isinstance(node, FUNCTIONS):
                yield prefix + node.name, node
        else:
            yield from functions_in(node, prefix)


def most_complex(path: Path, module: str) -> list[Function]:
    """The ten most complex functions of one module: this is the work of one call."""
    tree = ast.parse(path.read_bytes())
    found = (Function(cyclomatic_complexity(node), name, module, node.lineno) for name, node in functions_in(tree))
    return heapq.nlargest(10, found)


def modules_in(root: Path) -> list[tuple[Path, str]]:
    """Path and dotted name of every module, without the test packages."""
    paths = (path for path in sorted(root.rglob("*.py")) if TESTS.isdisjoint(path.relative_to(root).parts))
    return [(path, ".".join(path.relative_to(root).with_suffix("").parts)) for path in paths]


def print_table(functions: list[Function]) -> None:
    width = max(len(function.name) for function in functions)
    print(f"\n{'complexity':>10}  {'function':{width}}  where")
    for complexity, name, module, line in functions:
        print(f"{complexity:>10}  {name:{width}}  {module}:{line}")


async def main() -> None:
    root = Path(sys.argv[1] if len(sys.argv) > 1 else sysconfig.get_path("stdlib"))
    modules = modules_in(root)
    if not modules:
        sys.exit(f"There are no Python modules in {root}. Name a folder that has some, or none at all.")
    size = sum(len(path.read_bytes()) for path, _ in modules)  # also warms the page cache, for both runs alike
    where = "the standard library" if len(sys.argv) == 1 else str(root)
    print(f"{len(modules)} modules of {where}, {size / 1e6:.1f} MB")

    start = time.perf_counter()
    expected = [most_complex(path, module) for path, module in modules]
    serial = time.perf_counter() - start
    print(f"one after the other  {serial:6.2f} s")

    start = time.perf_counter()
    ranked = await gather_parallel(delayed(most_complex)(path, module) for path, module in modules)
    parallel = time.perf_counter() - start
    print(f"gather_parallel      {parallel:6.2f} s, start-up included")
    print(f"ratio                {serial / parallel:6.2f}   on {cpu_count()} cores")

    assert ranked == expected
    print_table(heapq.nlargest(10, (function for functions in ranked for function in functions)))


if __name__ == "__main__":  # a Python habit; aparallel does not need it
    asyncio.run(main())
