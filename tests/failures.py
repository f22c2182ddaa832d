"""Errors of every kind, and functions that raise them. Importable by name, and light, as those of ``work``."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class Plain(Exception):
    pass


class Custom(Exception):
    """Its __init__ does not take its args."""

    def __init__(self, code: int, *, detail: str) -> None:
        super().__init__(f"code {code}: {detail}")
        self.code = code
        self.detail = detail


class Needy(Exception):
    def __init__(self, a: int, b: int) -> None:
        super().__init__(f"{a} and {b}")


class OwnReduce(Exception):
    def __init__(self, code: int) -> None:
        super().__init__("message")
        self.code = code

    def __reduce__(self) -> Any:
        return OwnReduce, (self.code,)


class Missing(FileNotFoundError):
    """An OSError reduces itself in its own way."""

    def __init__(self, path: str) -> None:
        super().__init__(2, "no settings", path)
        self.path = path


class Needed(ImportError):
    def __init__(self, module: str, *, why: str) -> None:
        super().__init__(f"{module} is needed: {why}", name=module)
        self.why = why


class Slotted(Exception):
    __slots__ = ("__hidden", "code")

    def __init__(self, code: int) -> None:
        super().__init__("message")
        self.code = code
        self.__hidden = code + 1

    def hidden(self) -> int:
        return self.__hidden


@dataclass(slots=True)
class OfData(Exception):
    code: int
    detail: str = "none"


@dataclass(frozen=True)
class OfFrozenData(Exception):
    code: int


class KnowsItsThread(Exception):
    """Knows which thread has rebuilt it."""

    thread = 0

    def __reduce__(self) -> Any:
        return rebuild_here, self.args


def rebuild_here(*args: object) -> KnowsItsThread:
    error = KnowsItsThread(*args)
    error.thread = threading.get_ident()
    return error


class Stop(BaseException):
    pass


def raise_made(make: Callable[..., Exception], *args: Any, **keywords: Any) -> None:
    raise make(*args, **keywords)


def raise_noted() -> None:
    error = Plain("text", 3)
    error.extra = {"key": [1, 2]}  # type: ignore[attr-defined]
    error.add_note("first note")
    error.add_note("second note")
    raise error


def raise_custom() -> None:
    raise Custom(7, detail="broken")


def raise_needy() -> None:
    raise Needy(1, 2)


def deep() -> None:
    raise_needy()


async def deep_later() -> None:
    import asyncio

    await asyncio.sleep(0)
    deep()


def raise_from() -> None:
    try:
        try:
            raise KeyError("root")
        except KeyError as error:
            raise Custom(1, detail="middle") from error
    except Custom as error:
        error.add_note("noted")
        raise Plain("top") from error


def raise_in_a_circle() -> None:
    first, second = Plain("first"), Plain("second")
    first.__cause__, second.__cause__ = second, first
    raise first


def raise_group_of_customs() -> None:
    raise ExceptionGroup("several", [Custom(1, detail="a"), Needy(1, 2)])


class Hostile(Exception):
    def __reduce__(self) -> Any:
        raise RuntimeError("refuses")


class HostileText(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


def raise_with_lock() -> None:
    error = Plain("holds a lock")
    error.lock = threading.Lock()  # type: ignore[attr-defined]
    raise error


def raise_hostile() -> None:
    raise Hostile("cannot travel")


def raise_unbuildable() -> None:
    class Unbuildable(Exception):
        def __reduce__(self) -> Any:
            return int, ("no number",)

    raise Unbuildable("cannot be rebuilt")


def raise_not_an_error() -> None:
    class Liar(Exception):
        def __reduce__(self) -> Any:
            return int, ("7",)

    raise Liar("not an exception when rebuilt")


def raise_from_module_only_there(folder: str) -> None:
    import importlib
    import sys

    Path(folder, "only_in_the_worker.py").write_text("class Foreign(Exception):\n    pass\n")
    sys.path.insert(0, folder)
    try:
        module = importlib.import_module("only_in_the_worker")
    finally:
        sys.path.remove(folder)
    raise module.Foreign("unknown here")
