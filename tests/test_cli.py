"""``aparallel cache``: what people do to a memory's directory by hand."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from memory_support import files_of

from aparallel import Memory, __version__
from aparallel._cli import main
from aparallel._memory.disk.store import DiskStore
from aparallel._persist import reader
from aparallel.errors import UnsupportedPlatformError


def small(x: int) -> int:
    return x


def large(n: int) -> object:
    return np.arange(n)


@pytest.fixture
def filled(tmp_path: Path) -> str:
    location = str(tmp_path / "cache")
    memory = Memory(location, store_arguments=True)

    async def fill() -> None:
        for x in range(5):
            await memory.cache(small, tags=["numbers"])(x)
        await memory.cache(large)(200_000)

    asyncio.run(fill())
    return location


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(["cache", *arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_it_tells_its_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"aparallel {__version__}\n"


def test_ls_tells_functions_sizes_and_ages(filled: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "ls", filled)
    assert code == 0
    head, *rows = (line.split() for line in out.splitlines())
    assert head[:3] == ["function", "entries", "size"]
    assert [row[:2] for row in rows] == [["test_cli.large", "1"], ["test_cli.small", "5"]]
    assert rows[0][2:4] == ["1.5", "MB"]
    _, out, _ = run(capsys, "ls", filled, "--json")
    (first, second) = json.loads(out)
    assert (first["function"], first["entries"], second["entries"]) == ("test_cli.large", 1, 5)
    assert first["bytes"] > 1_600_000
    assert abs(first["oldest"] - time.time()) < 60


def test_show_tells_entries_and_arguments(filled: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "show", filled, "test_cli.small")
    assert code == 0
    assert len(out.splitlines()) == 6
    assert "numbers x=3" in out
    _, out, _ = run(capsys, "show", filled, "--json")
    entries = json.loads(out)
    assert len(entries) == 6
    _, out, _ = run(capsys, "show", filled, entries[0]["key"][:20], "--json")
    assert json.loads(out) == entries[:1]
    code, out, err = run(capsys, "show", filled, "nothing")
    assert (code, out, "no function or key nothing" in err) == (1, "", True)


def test_show_takes_a_functions_name_before_the_beginning_of_a_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def named(number: int) -> None: ...

    named.__module__, location = "__main__", str(tmp_path / "cache")

    async def fill() -> None:
        for named.__qualname__ in "abcdef":
            for number in range(5):
                await Memory(location).cache(named)(number)

    asyncio.run(fill())
    for name in "abcdef":
        shown = json.loads(run(capsys, "show", location, name, "--json")[1])
        assert [entry["function"] for entry in shown] == [name] * 5


def test_prune_and_clear_remove(filled: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "prune", filled, "--max-bytes", "1MB", "--json")
    assert code == 0
    told = json.loads(out)
    assert told["removed"] >= 1
    assert told["bytes"] <= 1 << 20
    code, out, _ = run(capsys, "prune", filled, "--max-entries", "2")
    assert (code, len([path for path in files_of(filled) if path.suffix == ""])) == (0, min(2, told["entries"]))
    assert out == "removed 0 entries, left 0 entries (0 B)\n"
    assert (
        run(capsys, "prune", filled, "--unused-for", "1d", "--json")[1]
        == run(capsys, "prune", filled, "--unused-for", "1d", "--json")[1]
    )
    assert run(capsys, "clear", filled)[0] == 0
    assert files_of(filled) == []


def test_one_entry_is_counted_as_one(filled: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "prune", filled, "--max-entries", "1")[1].startswith("removed 5 entries, left 1 entry (")
    assert run(capsys, "verify", filled)[:2] == (0, "1 entry, 0 damaged\n")


def test_clear_removes_one_function(filled: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "clear", filled, "test_cli.small", "--json")
    assert (code, json.loads(out)["removed"], json.loads(out)["entries"]) == (0, 5, 1)
    code, _, err = run(capsys, "clear", filled, "no.such")
    assert code == 2
    assert "no function no.such" in err


def test_verify_finds_damage_in_small_and_large_entries(filled: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "verify", filled)[:2] == (0, "6 entries, 0 damaged\n")
    by_size = sorted(files_of(filled), key=lambda path: path.stat().st_size)
    for path in (by_size[0], by_size[-1]):
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2] + b"\xff\xfe" + data[len(data) // 2 + 2 :])
    code, out, _ = run(capsys, "verify", filled)
    assert code == 1
    assert "6 entries, 2 damaged" in out
    code, out, _ = run(capsys, "verify", filled, "--remove", "--json")
    assert code == 0
    assert (json.loads(out)["removed"], len(json.loads(out)["damaged"])) == (2, 2)
    assert run(capsys, "verify", filled)[1] == "4 entries, 0 damaged\n"


def test_a_signed_directory_is_verified_with_its_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    location, key = str(tmp_path / "cache"), tmp_path / "key"
    key.write_text("secret\n")
    asyncio.run(Memory(location, signing_key="secret").cache(large)(200_000))
    assert run(capsys, "verify", location)[0] == 1
    assert run(capsys, "verify", location, "--signing-key-file", str(key))[0] == 0


def test_show_tells_how_many_it_cannot_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    location = str(tmp_path / "cache")
    asyncio.run(Memory(location, signing_key="secret").cache(small)(1))
    code, out, err = run(capsys, "show", location, "--json")
    assert (code, json.loads(out), err) == (0, [], "aparallel: 1 entry could not be read; `verify` says why.\n")


def test_verify_removes_nothing_that_it_cannot_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    location, key = str(tmp_path / "cache"), tmp_path / "key"
    memory = Memory(location, signing_key="secret")
    asyncio.run(memory.cache(small)(1))
    asyncio.run(memory.cache(large)(200_000))
    code, out, _ = run(capsys, "verify", location, "--remove")
    assert (code, out.splitlines()[-1]) == (1, "2 entries, 0 damaged and removed, 2 could not be checked")
    key.write_text("another")
    code, out, _ = run(capsys, "verify", location, "--remove", "--json", "--signing-key-file", str(key))
    assert code == 1
    assert (json.loads(out)["removed"], len(json.loads(out)["unchecked"])) == (0, 2)
    key.write_text("\n")
    assert "signing_key is empty" in run(capsys, "verify", location, "--signing-key-file", str(key))[2]
    key.write_text("secret\n")
    assert run(capsys, "verify", location, "--signing-key-file", str(key)) == (0, "2 entries, 0 damaged\n", "")


def test_verify_removes_what_changed_under_a_signature(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    location, key = str(tmp_path / "cache"), tmp_path / "key"
    key.write_bytes(b"\xff\x00secret\n")  # no text: the line break is part of it
    memory = Memory(location, signing_key=key.read_bytes())
    for x in range(3):
        asyncio.run(memory.cache(small)(x))
    path = files_of(location)[0]
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    code, out, _ = run(capsys, "verify", location, "--remove", "--signing-key-file", str(key))
    assert (code, out.splitlines()[-1]) == (0, "3 entries, 1 damaged and removed")
    assert run(capsys, "verify", location, "--signing-key-file", str(key))[1] == "2 entries, 0 damaged\n"


def test_verify_goes_on_where_a_codec_is_not_installed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*args: Any) -> None:
        raise ModuleNotFoundError("the package zstandard is not installed")

    location = str(tmp_path / "cache")
    asyncio.run(Memory(location).cache(small)(1))
    asyncio.run(Memory(location, compress="zlib").cache(large)(200_000))
    monkeypatch.setattr(reader, "decompressor", missing)
    code, out, _ = run(capsys, "verify", location, "--remove")
    assert (code, out.splitlines()[-1]) == (1, "2 entries, 0 damaged and removed, 1 could not be checked")
    assert "zstandard is not installed" in out


@pytest.mark.parametrize("action", ["ls", "clear", "verify"])
def test_where_there_are_no_file_locks_it_says_so(
    action: str, filled: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(UnsupportedPlatformError, match="this is Windows"):
        Memory(filled)
    code, _, err = run(capsys, action, filled)
    assert (code, "this is Windows" in err) == (2, True)


def test_what_cannot_be_done_says_why(filled: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "is not the directory of a Memory" in run(capsys, "ls", str(tmp_path))[2]
    assert "Say how far" in run(capsys, "prune", filled)[2]
    os.chmod(filled, 0o777)
    code, _, err = run(capsys, "ls", filled)
    assert code == 2
    assert "everybody may write" in err


@pytest.mark.parametrize(
    ("limit", "told"),
    [
        (["--max-entries", "-1"], "'-1' is not a whole number, 0 or more"),
        (["--max-entries", "many"], "'many' is not a whole number"),
        (["--max-bytes", "1XB"], "'1XB' is not a number of bytes"),
        (["--unused-for", "1y"], "'1y' is not a time span"),
    ],
)
def test_a_bad_limit_removes_nothing(
    limit: list[str], told: str, filled: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exited:
        run(capsys, "prune", filled, *limit)
    assert exited.value.code == 2
    assert told in capsys.readouterr().err
    assert len(files_of(filled)) == 6


def test_who_reads_only_the_beginning_is_told_no_error(filled: str) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "aparallel", "cache", "show", filled]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


def test_with_its_output_closed_it_does_its_work(filled: str) -> None:
    command = f"{shlex.quote(sys.executable)} -m aparallel cache clear {shlex.quote(filled)} >&-"
    done = subprocess.run(["sh", "-c", command], stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr, files_of(filled)) == (0, "", [])


def test_an_interruption_shows_no_traceback(
    filled: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(DiskStore, "entries", interrupted)
    assert run(capsys, "verify", filled) == (130, "", "")


def test_it_is_a_command_and_a_module(filled: str) -> None:
    module = [sys.executable, "-m", "aparallel"]
    command = [str(Path(sys.executable).parent / "aparallel")]
    outputs = [
        subprocess.run([*start, "cache", "show", filled, "--json"], capture_output=True, text=True, check=True).stdout
        for start in (module, *([command] if Path(command[0]).exists() else []))
    ]
    assert all(len(json.loads(output)) == 6 for output in outputs)
    run = subprocess.run([*module, "cache", "frobnicate", filled], capture_output=True, text=True)
    assert run.returncode == 2
    assert "invalid choice" in run.stderr
