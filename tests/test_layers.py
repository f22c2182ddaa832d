"""Imports run one way, and what starts small stays small.

The layers are the design's: a module may use its own layer, those below it, and the ground.
"""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

import aparallel

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

PACKAGE = Path(aparallel.__file__).parent

DIRECTLY_BELOW = {
    "web": {"_parallel", "_memory"},
    "_parallel": {"_backends"},
    "_backends": {"_transfer"},
    "_worker": {"_transfer"},
    "_transfer": {"_wire"},
    "_wire": set(),
    "_memory": {"_persist"},
    "_persist": set(),
}
GROUND = {"_ground", "abc", "errors"}
# They may use everything, and nothing in the house uses them.
FRONT_DOORS = {"__init__", "__main__", "_backend_suite", "_cli", "testing"}

HEAVY = {"aiofiles", "anyio", "asyncio", "cloudpickle", "concurrent", "multiprocessing", "numpy", "tqdm", "uvloop"}


@functools.cache
def modules() -> dict[str, Path]:
    """Every module by its dotted name; a package is named after its folder."""
    return {
        ".".join(["aparallel", *path.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__"): path
        for path in sorted(PACKAGE.rglob("*.py"))
    }


def layer_of(module: str) -> str:
    inner = module.split(".")[1:]
    return inner[0] if inner else "__init__"


def may_use(layer: str) -> set[str]:
    if layer in FRONT_DOORS:
        return {*DIRECTLY_BELOW, *GROUND, *FRONT_DOORS}
    if layer in GROUND:
        return GROUND
    return {layer, *GROUND}.union(*map(may_use, DIRECTLY_BELOW[layer]))


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield the line and dotted name of every import in *tree*, wherever it stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def layer_used(name: str) -> str | None:
    """The layer that an imported name belongs to, None for other people's packages."""
    if name != "aparallel" and not name.startswith("aparallel."):
        return None
    layer = layer_of(name)
    # `from aparallel import Pool` goes through the front door.
    return layer if layer in {*DIRECTLY_BELOW, *GROUND, *FRONT_DOORS} else "__init__"


def violations(module: str, source: str) -> list[str]:
    layer = layer_of(module)
    if layer not in {*DIRECTLY_BELOW, *GROUND, *FRONT_DOORS}:
        return [f"{module} is in no layer: say in this test which it uses"]
    found = []
    for line, name in imports(ast.parse(source)):
        used = layer_used(name)
        if name.startswith("."):
            found.append(f"{module}:{line} imports {name}: write the whole name")
        elif used is not None and used not in may_use(layer):
            found.append(f"{module}:{line} imports {name}: {layer} may not use {used}")
    return found


@pytest.mark.parametrize("module", modules())
def test_imports_run_one_way(module: str) -> None:
    assert violations(module, modules()[module].read_text()) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("aparallel._wire.frames", "from aparallel._transfer import pickling"),
        ("aparallel._wire.frames", "def f():\n    import aparallel._transfer.pickling"),
        ("aparallel._worker.loop", "from aparallel._backends.process import x"),
        ("aparallel._backends.process", "from aparallel._worker.loop import main"),
        ("aparallel._memory.memory", "from aparallel._parallel.pool import Pool"),
        ("aparallel._parallel.pool", "if TYPE_CHECKING:\n    from aparallel._memory.memory import Memory"),
        ("aparallel._ground.hop", "from aparallel._wire import frames"),
        ("aparallel.errors", "from aparallel._parallel import call"),
        ("aparallel._parallel.gather", "from aparallel import Pool"),
        ("aparallel._parallel.gather", "import aparallel"),
        ("aparallel._parallel.gather", "import aparallel.testing"),
        ("aparallel._parallel.gather", "from . import pool"),
        ("aparallel._parallel.gather", "from .._backends import process"),
        ("aparallel._new.thing", ""),
    ],
)
def test_an_import_against_the_layers_is_found(module: str, source: str) -> None:
    assert len(violations(module, source)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("aparallel._parallel.gather", "from aparallel._parallel import pool\nfrom aparallel import errors, abc"),
        ("aparallel._parallel.gather", "import aparallel._wire.frames\nfrom aparallel._ground.cpus import cpu_count"),
        ("aparallel._worker.loop", "from aparallel._wire import frames"),
        ("aparallel.web._asgi", "from aparallel._memory.memory import Memory\nimport aparallelogram, numpy"),
        ("aparallel.testing", "from aparallel import Pool"),
        ("aparallel", "from aparallel._parallel.pool import Pool"),
    ],
)
def test_an_import_along_the_layers_is_not(module: str, source: str) -> None:
    assert violations(module, source) == []


WITH_A_MAP = sorted({name.rpartition(".")[0] for name in modules() if name.split(".")[1:2] != ["_backend_suite"]})


@pytest.mark.parametrize("package", [name for name in WITH_A_MAP if name.count(".")])
def test_a_package_says_in_its_docstring_what_each_of_its_modules_is_for(package: str) -> None:
    told = ast.get_docstring(ast.parse(modules()[package].read_text())) or ""
    inside = {name.rpartition(".")[2] for name in modules() if name.rpartition(".")[0] == package} - {"__main__"}
    public = {name for name in inside if package == "aparallel.web" and not name.startswith("_")}
    assert {name for name in inside - public if not re.search(rf"\b{name}\b", told)} == set()


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def used_by(path: Path, known: Iterable[str]) -> set[str]:
    """Those of *known* modules that *path* imports, wherever that stands, be it for type checkers only."""
    names = {name for _, name in imports(parsed(path))}
    # `from package import module` and `from module import name` look the same.
    return {name if name in known else name.rpartition(".")[0] for name in names} & set(known)


def circle_through(start: str, used: dict[str, set[str]]) -> list[str] | None:
    """A way from *start* back to itself, if there is one."""
    ways = [[start]]
    seen: set[str] = set()
    for way in ways:
        for name in used.get(way[-1], ()):
            if name == start:
                return [*way, name]
            if name not in seen:
                seen.add(name)
                ways.append([*way, name])
    return None


def test_modules_import_in_no_circle_not_even_for_types() -> None:
    known = modules()
    used = {name: used_by(path, known) for name, path in known.items() if layer_of(name) not in FRONT_DOORS}
    assert [circle for name in used if (circle := circle_through(name, used))] == []


def test_a_circle_is_found() -> None:
    assert circle_through("a", {"a": {"b", "x"}, "b": {"c"}, "c": {"a"}}) == ["a", "b", "c", "a"]
    assert circle_through("a", {"a": {"b"}, "b": {"c"}, "c": {"b"}}) is None


def foreign_privates(source: str, *, inherited: bool = False) -> set[str]:
    """Private attributes that *source* uses of something and nowhere makes or sets itself.

    *inherited*: a class may use what it has from another module's class, as its own.
    """
    tree = ast.parse(source)
    own = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    attributes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    own |= {node.attr for node in attributes if not isinstance(node.ctx, ast.Load)}
    constants = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    own |= {value for value in constants if isinstance(value, str)}  # of __slots__, or checked with hasattr
    if inherited:
        attributes = [node for node in attributes if not (isinstance(node.value, ast.Name) and node.value.id == "self")]
    used = {node.attr for node in attributes if isinstance(node.ctx, ast.Load)}
    return {name for name in used - own if name.startswith("_") and not name.endswith("__")}


# Public in spite of their underscore: names of enums and named tuples, of pandas, os and sys.
DOCUMENTED = {
    *("_name_", "_value_", "_asdict", "_field_defaults", "_fields", "_replace"),
    *("_metadata", "_exit", "_getframe"),
}

# What other people's packages have no public name for.
OF_OTHER_PACKAGES = {
    "aparallel._backends.child": {"_args_from_interpreter_flags"},
    "aparallel._backends.log_settings": {"_cache"},
    "aparallel._persist.pickling": {"_data", "_mask"},
    "aparallel._persist.trust": {"_internal"},
    "aparallel._transfer.arrays": {"_data", "_hardmask", "_mask"},
    "aparallel._transfer.by_value": {
        "_function_setstate",
        "_make_cell",
        "_make_empty_cell",
        "_make_function",
    },
    "aparallel._transfer.classes": {
        "_DYNAMIC_CLASS_TRACKER_BY_CLASS",
        "_DYNAMIC_CLASS_TRACKER_BY_ID",
        "_make_skeleton_class",
        "_member_type_",
    },
}


@pytest.mark.parametrize("module", modules())
def test_modules_use_no_private_names_of_others(module: str) -> None:
    source = modules()[module].read_text()
    assert foreign_privates(source, inherited=True) <= DOCUMENTED | OF_OTHER_PACKAGES.get(module, set())
    for _, name in imports(ast.parse(source)):
        last = name.rpartition(".")[2]
        is_private = last.startswith("_") and not last.endswith("__")
        assert not (layer_used(name) and is_private and name not in modules()), name


def test_a_private_name_of_another_module_is_found() -> None:
    assert foreign_privates("def f(memory): return memory._store.get(memory.tier)") == {"_store"}
    assert foreign_privates("class A:\n    def __init__(self): self._x = 1\n    def f(self, a): return a._x") == set()
    assert foreign_privates("class A(B):\n    def f(self): self._x.append(self._y)", inherited=True) == set()
    assert foreign_privates("class A(B):\n    def f(self): self._x[0] = self.pool._y", inherited=True) == {"_y"}


def loaded_by(code: str) -> set[str]:
    """Top-level packages that a fresh interpreter has loaded after *code* and had not before."""
    script = f"import sys; before = set(sys.modules)\n{code}\nprint(*(set(sys.modules) - before))"
    result = subprocess.run(
        [sys.executable, "-c", script], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stderr
    return {name.partition(".")[0] for name in result.stdout.split()}


def test_importing_aparallel_loads_nothing_but_itself_and_the_standard_library() -> None:
    loaded = loaded_by("import aparallel")
    assert not loaded & HEAVY
    assert loaded - sys.stdlib_module_names == {"aparallel"}


@pytest.mark.parametrize("name", ["delayed", "cpu_count", "errors"])
def test_light_names_stay_light_when_used(name: str) -> None:
    assert not loaded_by(f"import aparallel; aparallel.{name}") & HEAVY


# Each takes milliseconds of a script's first result, and a gather has no use for them.
SLOW = {"aiofiles", "anyio", "blake3", "hashlib", "numbers", "numpy", "pathlib", "queue", "random", "secrets", "xxhash"}


def test_a_script_that_gathers_loads_little_before_its_first_result() -> None:
    # cloudpickle is loaded while the workers start.
    assert not loaded_by("from aparallel import delayed, gather_parallel; gather_parallel") & (SLOW | {"cloudpickle"})
    gather = "import asyncio, aparallel as a; asyncio.run(a.gather_parallel(a.delayed(lambda: 1)()))"
    assert not loaded_by(gather) & SLOW


async def test_a_first_load_imports_nothing_that_only_dumps_need() -> None:
    content = await aparallel.dumps([1, "text", np.arange(9)])
    loading = f"import asyncio, aparallel as a; asyncio.run(a.loads({content!r})); assert 'numpy.ma' not in sys.modules"
    assert loaded_by(loading) & {"cloudpickle", "numpy"} == {"numpy"}


FRAMEWORKS = {"aiohttp", "fastapi", "litestar", "pydantic", "starlette"}


def test_the_web_loads_nothing_until_a_name_is_used_and_then_no_framework() -> None:
    import aparallel.web

    assert not loaded_by("import aparallel.web") & (HEAVY | FRAMEWORKS)
    names = ", ".join(aparallel.web.__all__)
    assert not loaded_by(f"from aparallel.web import {names}") & FRAMEWORKS
    assert set(aparallel.web.__all__) <= set(dir(aparallel.web))
    with pytest.raises(AttributeError, match="no attribute 'no_such_name'"):
        aparallel.web.no_such_name  # noqa: B018


def test_modules_of_the_web_without_an_underscore_are_named_after_frameworks_and_say_what_is_public() -> None:
    public = {path.stem: path for path in (PACKAGE / "web").glob("*.py") if not path.stem.startswith("_")}
    assert set(public) < FRAMEWORKS
    assert [name for name, path in public.items() if "\n__all__ = [" not in path.read_text()] == []


def test_every_public_name_is_there_and_is_listed() -> None:
    for name in aparallel.__all__:
        assert getattr(aparallel, name) is not None
    assert set(aparallel.__all__) <= set(dir(aparallel))
    with pytest.raises(AttributeError, match="no attribute 'no_such_name'"):
        aparallel.no_such_name  # noqa: B018


def test_a_worker_starts_with_the_standard_library_alone() -> None:
    loaded = loaded_by("import aparallel._worker.loop")
    assert not loaded & HEAVY
    assert loaded - sys.stdlib_module_names == {"aparallel"}


@pytest.mark.parametrize("module", [name for name in modules() if layer_of(name) in {"_worker", "_wire"}])
def test_the_worker_and_the_wire_use_the_standard_library_even_in_their_functions(module: str) -> None:
    roots = {name.partition(".")[0] for _, name in imports(ast.parse(modules()[module].read_text()))}
    assert roots <= {*sys.stdlib_module_names, "aparallel"}


def documented_order(docstring: str) -> list[str]:
    """The modules that the map in a package's docstring names, from the top down."""
    lines = re.findall(r"^ {4,8}([a-z_]+(?:, [a-z_]+)*)(?: {2,}|$)", docstring, re.MULTILINE)
    return [name for line in lines for name in line.split(", ")]


def test_the_map_of_parallel_names_every_module_above_those_that_it_uses() -> None:
    prefix = "aparallel._parallel."
    known = {name: path for name, path in modules().items() if name.startswith(prefix)}
    order = documented_order(ast.get_docstring(ast.parse((PACKAGE / "_parallel/__init__.py").read_text())) or "")
    assert sorted(order) == sorted(name.removeprefix(prefix) for name in known)
    above = {
        (name.removeprefix(prefix), used.removeprefix(prefix))
        for name, path in known.items()
        for used in used_by(path, known)
        if order.index(used.removeprefix(prefix)) < order.index(name.removeprefix(prefix))
    }
    assert above == set()
