"""The types hold: of the package itself, and as those who use it see them (the folder typing beside this file)."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROMISES = sorted((ROOT / "tests" / "typing").glob("*.py"))

MISSING = [name for name in ("mypy", "aiohttp", "fastapi", "litestar") if find_spec(name) is None]
needs_mypy = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {MISSING}, of the extras lint and web-test")


def run_mypy(*targets: Path, cache: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            *(sys.executable, "-m", "mypy", "--strict", "--config-file", str(ROOT / "pyproject.toml")),
            *("--cache-dir", str(cache), "--no-error-summary", "--no-pretty", "--hide-error-context"),
            *map(str, targets),
        ],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mypy")


@needs_mypy
@pytest.mark.soak  # it is a step of .ci/run, too
def test_the_package_and_the_promises_pass_mypy_strict(cache: Path) -> None:
    result = run_mypy(ROOT / "aparallel", ROOT / "tests" / "typing", cache=cache)
    assert result.returncode == 0, result.stdout + result.stderr


@needs_mypy
def test_a_promise_that_does_not_hold_is_found(cache: Path, tmp_path: Path) -> None:
    """Were the results Any, every promise would seem to hold."""
    lines = [
        "from typing import Any, assert_type",
        "from aparallel import Pool, delayed, gather_parallel, stream_parallel",
        "async def promises(pool: Pool) -> None:",
        "    assert_type(delayed(len)('x')(), Any)",
        "    assert_type(await gather_parallel([delayed(len)('x')]), Any)",
        "    assert_type(await gather_parallel(delayed(len)('x'), delayed(str)(1)), Any)",
        "    async with stream_parallel([delayed(len)('x')]) as results:",
        "        async for result in results:",
        "            assert_type(result, Any)",
        "    assert_type(await pool.run(len, 'x'), Any)",
        "    assert_type(await pool.map(len, ['x']), Any)",
        "    assert_type(await pool.gather([delayed(len)('x')]), Any)",
    ]
    wrong = tmp_path / "wrong.py"
    wrong.write_text("\n".join(lines) + "\n")
    result = run_mypy(wrong, cache=cache)
    found = [int(line) for line in re.findall(r"wrong\.py:(\d+): error: .*\[assert-type\]", result.stdout)]
    assert found == [number for number, line in enumerate(lines, start=1) if "assert_type(" in line], result.stdout


@pytest.mark.parametrize("path", PROMISES, ids=lambda path: path.name)
def test_each_promise_file_both_grants_and_refuses(path: Path) -> None:
    text = path.read_text()
    assert "assert_type(" in text
    assert "# type: ignore[" in text


def test_the_package_says_that_it_is_typed() -> None:
    assert (ROOT / "aparallel" / "py.typed").exists()
