"""Every Python block of the documents runs, in order, and prints what the text block after it says.

The blocks of one document share one namespace, the ``__main__`` of a process of its own. Blocks that await at the top
level run on one event loop, as in a notebook. In a text block, ``...`` stands for anything.
"""

import doctest
import itertools
import re
import subprocess
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple, TypeAlias

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TIME_LIMIT = 120  # seconds for one document
INFO_STRINGS = {"python", "text", "shell"}  # what a block may be; only shell blocks are not checked

# What a document's code needs beyond the extra test.
NEEDS = {"docs/how-to/servers.md": ("aiohttp", "fastapi", "httpx", "litestar")}

Runs: TypeAlias = dict[Path, subprocess.CompletedProcess[str]]

FENCE = re.compile(r"^```(?P<info>[^\n]*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:)(?P<path>[^)#]*)(?:#(?P<anchor>[^)]*))?\)")

# Blocks keep their line numbers, so that a traceback points into the document. A mark before each block, in both
# streams, lets the output be cut by block. Lines are flushed at once, as in a terminal: workers write in between.
RUN_DOCUMENT = """
import ast, asyncio, inspect, sys, types

sys.stdout.reconfigure(line_buffering=True)

def run_blocks(path, blocks):
    with asyncio.Runner() as runner:
        for line, text in blocks:
            for stream in (sys.stdout, sys.stderr):
                print(chr(30), line, file=stream, flush=True)
            code = compile("\\n" * line + text, path, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            if code.co_flags & inspect.CO_COROUTINE:
                runner.run(types.FunctionType(code, globals())())
            else:
                exec(code, globals())
"""


class Block(NamedTuple):
    line: int  # of the fence that opens it
    info: str
    text: str
    expected: str | None  # the text block that follows at once


def blocks_of(document: Path) -> list[Block]:
    source = document.read_text()
    fences = list(FENCE.finditer(source))
    return [
        Block(
            line=source.count("\n", 0, fence.start()) + 1,
            info=fence["info"],
            text=fence["text"],
            expected=after["text"] if after and shows_output(after, source[fence.end() : after.start()]) else None,
        )
        for fence, after in itertools.zip_longest(fences, fences[1:])
    ]


def shows_output(fence: re.Match[str], between: str) -> bool:
    return fence["info"] == "text" and not between.strip()


def by_block(output: str) -> dict[int, str]:
    """What each block printed, by its line."""
    _, *pieces = re.split(r"\x1e (\d+)\n", output)
    return {int(line): text for line, text in zip(pieces[::2], pieces[1::2], strict=True)}


def lacks_framework(text: str) -> bool:
    """Whether a block is for a framework that is not installed: the rest of its document runs without it."""
    frameworks = re.findall(r"^from (fastapi|starlette|litestar|aiohttp)\b", text, re.MULTILINE)
    return any(find_spec(framework) is None for framework in frameworks)


def python_blocks(document: Path) -> list[Block]:
    return [block for block in blocks_of(document) if block.info == "python" and not lacks_framework(block.text)]


def slug(heading: str) -> str:
    """The anchor that a heading gets on the usual code hosts."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def headings_of(document: Path) -> set[str]:
    prose = FENCE.sub("", document.read_text())
    return {slug(heading) for heading in re.findall(r"^#+ (.*)$", prose, re.MULTILINE)}


def name_of(document: Path) -> str:
    return document.relative_to(ROOT).as_posix()


@pytest.fixture(scope="module")
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """What the programs of all documents that are asked for did: they run two at a time, the longest first."""
    asked = [
        item.callspec.params["document"]
        for item in request.session.items
        if isinstance(item, pytest.Function)
        and item.function is test_every_python_block_runs_and_prints_what_the_document_says
    ]
    folders = {document: tmp_path_factory.mktemp(document.stem) for document in sorted(asked, key=python_lines)}
    with ThreadPoolExecutor(2) as threads:
        return dict(zip(folders, threads.map(run_document, *zip(*folders.items(), strict=True)), strict=True))


def python_lines(document: Path) -> int:
    """Fewer for more, to sort by."""
    return -sum(block.text.count("\n") for block in python_blocks(document))


def run_document(document: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    blocks = [(block.line, block.text) for block in python_blocks(document)]
    return subprocess.run(
        [sys.executable, "-c", f"{RUN_DOCUMENT}\nrun_blocks({str(document)!r}, {blocks!r})\n"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT,
        cwd=folder,
    )


@pytest.mark.parametrize("document", [path for path in DOCUMENTS if "```python" in path.read_text()], ids=name_of)
def test_every_python_block_runs_and_prints_what_the_document_says(document: Path, runs: Runs) -> None:
    for package in NEEDS.get(name_of(document), ()):
        pytest.importorskip(package, reason=f"{package}, of the extra web-test, is not installed")
    run = runs[document]
    assert run.returncode == 0, run.stdout + run.stderr
    stdout, stderr = by_block(run.stdout), by_block(run.stderr)
    for block in python_blocks(document):
        if block.expected is not None:
            got = stdout[block.line] or stderr[block.line]
            assert doctest.OutputChecker().check_output(block.expected, got, doctest.ELLIPSIS), (
                f"{name_of(document)}, the block of line {block.line}, printed:\n{got}\nand not:\n{block.expected}"
            )


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_every_block_says_what_it_is(document: Path) -> None:
    assert {block.info for block in blocks_of(document)} <= INFO_STRINGS


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_every_link_leads_somewhere(document: Path) -> None:
    for link in LINK.finditer(FENCE.sub("", document.read_text())):
        target = document.parent / link["path"] if link["path"] else document
        assert target.exists(), link[0]
        assert not link["anchor"] or link["anchor"] in headings_of(target), link[0]


def test_dependencies_tell_every_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    rows = (ROOT / "docs" / "dependencies.md").read_text()
    extras = {"": project["dependencies"], **project["optional-dependencies"]}
    for extra, requirements in extras.items():
        (told,) = re.findall(rf"^\|.*`{extra}`.*$", rows, re.MULTILINE) if extra else [rows]
        names = {re.split(r"[\[><=;]", requirement)[0] for requirement in requirements}
        if extra in names:
            continue  # a framework, which its extra is named after
        if "the four of them" in told:
            names -= {"aiohttp", "fastapi", "litestar", "starlette"}
        if extra:
            names -= {"anyio"}  # required anyway
        assert not {name for name in names if name.casefold() not in told.casefold()}, extra


def test_docs_tell_every_name_for_those_who_extend() -> None:
    from aparallel import abc, testing

    told = (ROOT / "docs" / "reference.md").read_text() + (ROOT / "docs" / "how-to" / "backends.md").read_text()
    assert [name for name in (*abc.__all__, *testing.__all__) if not re.search(rf"\b{name}\b", told)] == []


FRAMEWORKS = ("aiohttp", "fastapi", "litestar", "starlette")


def test_reference_tells_every_public_name() -> None:
    import aparallel
    import aparallel.web
    from aparallel import errors

    reference = (ROOT / "docs" / "reference.md").read_text()
    web = [aparallel.web, *(import_module(f"aparallel.web.{name}") for name in FRAMEWORKS if find_spec(name))]
    public = (
        {name for module in (aparallel, *web) for name in module.__all__}
        | {name for name in dir(errors) if name.endswith("Error")}
        | {"RemoteTraceback"}
    )
    assert {name for name in public if not re.search(rf"`[^`\n]*\b{name}\b[^`\n]*`", reference)} == set()
