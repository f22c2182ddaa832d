"""What the calls of test_logs do in workers: a module of its own, which workers import without pytest."""

from __future__ import annotations

import contextvars
import logging
import os
import signal
import threading
import warnings
from typing import Any

logger = logging.getLogger("logged.sub")
request_id: contextvars.ContextVar[str] = contextvars.ContextVar("request_id")


class NotHere:
    """Cannot be rebuilt in the parent."""

    def __reduce__(self) -> Any:
        return _only_in_worker, ()


class NoRepr:
    def __reduce__(self) -> Any:
        raise TypeError

    def __repr__(self) -> str:
        raise ValueError


def _only_in_worker() -> None:
    raise RuntimeError("not in the parent")


class Odd(UserWarning):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


def say(
    message: str = "hello", *args: object, level: int = logging.INFO, name: str = "logged.sub", **extra: Any
) -> int:
    logging.getLogger(name).log(level, message, *args, extra=extra)
    return os.getpid()


def say_what_is_not_here() -> None:
    say("second", gone=NotHere())


def say_all(count: int, size: int = 0) -> None:
    for number in range(count):
        logger.info("%d%s", number, "." * size)


def say_levels() -> list[bool]:
    for level in (logging.DEBUG, logging.INFO, logging.WARNING):
        logger.log(level, logging.getLevelName(level))
    return [logger.isEnabledFor(level) for level in (logging.DEBUG, logging.INFO, logging.WARNING)]


def fail() -> None:
    try:
        raise ZeroDivisionError("by the test")
    except ZeroDivisionError:
        logger.exception("it failed", stack_info=True)
    raise LookupError("after the record")


def say_and_die(count: int, how: str) -> None:
    say_all(count)
    if how == "exit":
        os._exit(3)
    os.kill(os.getpid(), signal.SIGSEGV if how == "segfault" else signal.SIGKILL)


def say_and_note(path: str, count: int, size: int) -> None:
    """Log records, and after each note in a file how many have been handed over."""
    fd = os.open(path, os.O_WRONLY)
    for number in range(count):
        logger.info("%d%s", number, "." * size)
        os.pwrite(fd, b"%12d" % (number + 1), 0)


def say_in_threads_and_forks(count: int, size: int) -> None:
    def talk(who: str) -> None:
        for number in range(count):
            logger.info("%s %d %s", who, number, who * size)

    children = []
    for who in "xy":
        if child := os.fork():
            children.append(child)
        else:
            talk(who)
            os._exit(0)
    threads = [threading.Thread(target=talk, args=(who,)) for who in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for child in children:
        os.waitpid(child, 0)


def warn(text: str = "look", category: type[Warning] = UserWarning) -> int:
    warnings.warn(text, category, stacklevel=1)
    return os.getpid()


def warn_odd() -> None:
    warnings.warn(Odd(1, 2), stacklevel=1)


def warn_here() -> int:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.warn("stays here", stacklevel=1)
    return len(caught)


def ignore_warnings() -> None:
    warnings.simplefilter("ignore")


def configure(force: bool) -> None:
    logging.basicConfig(level=logging.DEBUG, force=force, filename=os.devnull)


def handlers_of_root() -> list[str | None]:
    return [handler.get_name() for handler in logging.getLogger().handlers]


async def say_in_nested_pool() -> int:
    from aparallel import Pool

    async with Pool(1, "process") as pool:
        return await pool.run(say, "from the inner one")


def set_and_say(value: str) -> None:
    request_id.set(value)
    say()
