"""Large files that were replaced are freed when nobody waits for it, and nothing holds them for longer."""

from __future__ import annotations

import asyncio
import errno
import os
import pathlib
import sys
import threading
import weakref
from collections.abc import Iterator

import numpy as np
import pytest
from memory_support import until

from aparallel import dump, load
from aparallel._ground.hop import in_thread
from aparallel._ground.stoppable import Stop
from aparallel._persist import files, freeing
from aparallel._persist.dump import dump_to_path
from aparallel._persist.freeing import Freeing
from aparallel._persist.load import load_from_path
from aparallel._persist.options import DumpOptions, LoadOptions

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="files are held so on Linux alone")

QUICKLY = DumpOptions(durable=False)


@pytest.fixture(autouse=True)
def all_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(freeing, "_WORTH", 1)


@pytest.fixture
def path(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "file.apl"
    dump_to_path(["old"], str(path), QUICKLY)
    return path


@pytest.fixture
def closing(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Closing what was replaced waits for this."""
    may_close = threading.Event()
    let_go = Freeing._let_go

    def late(self: Freeing, busy: object) -> None:
        may_close.wait(10)
        let_go(self, busy)  # type: ignore[arg-type]

    monkeypatch.setattr(Freeing, "_let_go", late)
    yield may_close
    may_close.set()
    files._freeing.wait(Stop())


def replaced() -> list[str]:
    """What this process holds that has no name any more."""
    links = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            links.append(os.readlink(f"/proc/self/fd/{fd}"))
        except OSError:  # the descriptor of the listing itself
            continue
    return [link for link in links if "file.apl" in link]


async def test_the_new_file_is_there_and_the_old_one_is_freed_later(
    path: pathlib.Path, closing: threading.Event
) -> None:
    await dump(np.arange(5), path, durable=False)
    assert replaced() == [f"{path} (deleted)"]
    assert load_from_path(str(path), LoadOptions()).tolist() == [0, 1, 2, 3, 4]
    closing.set()
    await until(lambda: not replaced())


async def test_the_next_dump_waits_until_the_space_is_there(path: pathlib.Path, closing: threading.Event) -> None:
    await dump("new", path, durable=False)
    begun = threading.Event()

    def other() -> None:
        begun.set()
        dump_to_path("newer", str(path.with_name("other.apl")), QUICKLY)

    thread = threading.Thread(target=other)
    thread.start()
    assert begun.wait(10)
    assert not path.with_name("other.apl").exists()
    closing.set()
    thread.join()
    assert await load(path.with_name("other.apl")) == "newer"


async def test_a_dump_that_waits_for_the_space_stops_when_it_is_cancelled(
    path: pathlib.Path, closing: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    await dump("new", path, durable=False)
    waits = threading.Event()
    wait = Freeing.wait

    def told(self: Freeing, stop: Stop) -> None:
        waits.set()
        wait(self, stop)

    monkeypatch.setattr(Freeing, "wait", told)
    waiting = asyncio.create_task(dump("newer", path, durable=False))
    await until(waits.is_set)
    waiting.cancel()
    done, _ = await asyncio.wait([waiting], timeout=5)
    assert done
    assert waiting.cancelled()
    assert await load(path) == "new"


async def test_what_was_dumped_is_not_held_while_the_old_file_is_freed(
    path: pathlib.Path, closing: threading.Event
) -> None:
    array = np.arange(5)
    held = weakref.ref(array)
    await dump(array, path, durable=False)
    del array
    assert held() is None


async def test_a_job_may_write_over_one_file_after_the_other(path: pathlib.Path) -> None:
    def write_twice() -> None:
        dump_to_path("new", str(path), QUICKLY)
        assert replaced()
        dump_to_path("newer", str(path), QUICKLY)

    job = asyncio.ensure_future(in_thread(write_twice))
    done, _ = await asyncio.wait([job], timeout=5)
    assert done
    job.result()
    assert await load(path) == "newer"


def test_who_has_no_loop_to_tell_frees_it_at_once(path: pathlib.Path) -> None:
    dump_to_path("new", str(path), QUICKLY)
    assert not replaced()


async def test_a_rename_that_fails_leaves_the_old_file_and_holds_nothing(
    path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EBUSY, "not now")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="not now"):
        await dump("new", path, durable=False)
    assert await load(path) == ["old"]
    await until(lambda: not replaced())


class Removing:
    """Removes a file while it is pickled."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        self.path.unlink()
        return int, ()


async def test_an_old_file_that_is_removed_meanwhile_is_replaced_all_the_same(path: pathlib.Path) -> None:
    await dump(["new", Removing(path)], path, durable=False)
    assert await load(path) == ["new", 0]


async def test_an_old_file_for_which_no_descriptor_is_left_is_replaced_all_the_same(
    path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = os.open

    def open_(name: str, flags: int, *rest: int) -> int:
        if flags == freeing._HOLD:
            raise OSError(errno.EMFILE, "Too many open files")
        return opened(name, flags, *rest)

    monkeypatch.setattr(os, "open", open_)
    await dump("new", path, durable=False)
    assert await load(path) == "new"
    assert not replaced()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
async def test_a_forked_child_holds_nothing_and_can_dump(path: pathlib.Path, closing: threading.Event) -> None:
    await dump("new", path, durable=False)
    assert replaced()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            if not replaced():
                dump_to_path("the child's", str(path.with_name("other.apl")), QUICKLY)
                status = 0
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0  # noqa: ASYNC222 - it ends soon
    closing.set()
    assert await load(path.with_name("other.apl")) == "the child's"


async def test_where_files_cannot_be_held_they_are_replaced_all_the_same(
    path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(freeing, "_HOLD", None)
    await dump("new", path)
    assert await load(path) == "new"
    assert not replaced()
