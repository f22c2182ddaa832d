"""What tests have workers run. Importable by name, and light: a worker that imports a test module imports pytest."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any


def same(x: Any) -> Any:
    return x


def double(x: int) -> int:
    return 2 * x


def add(x: int, y: int = 0) -> int:
    return x + y


def leave_and_wait(path: str) -> None:
    """Tell by a file that it has begun."""
    Path(path).touch()
    time.sleep(60)


async def add_later(x: int, y: int = 0) -> int:
    return x + y


def collect(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return args, kwargs


class Broken:
    """What can be pickled, into so many bytes, and not be rebuilt."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __reduce__(self) -> Any:
        return divmod, (1, 0, bytes(self.size))


def fail(error: Any) -> Any:
    raise error


async def fail_later(error: Any) -> None:
    raise error


def thread_of() -> tuple[int, int]:
    return os.getpid(), threading.get_ident()


def spin(seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass


def nap(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def many_dicts(count: int) -> list[dict[str, Any]]:
    return [{"id": x, "name": f"item {x}"} for x in range(count)]


def wait_for_file(path: Path, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists():
        if time.monotonic() > deadline:
            raise TimeoutError(str(path))
        time.sleep(0.002)


def touch_and_wait(mine: Path, other: Path) -> str:
    """Run until *other* exists: the test decides when."""
    mine.touch()
    wait_for_file(other)
    return mine.name
