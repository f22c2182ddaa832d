"""The functions that the workers of all contenders run. Standard library only: every worker imports this module."""

import time


def increment(number: int) -> int:
    """The least that a call can do and still be checked."""
    return number + 1


def same(data: bytes) -> bytes:
    """What comes is what goes."""
    return data


def nap(seconds: float) -> float:
    """Take *seconds* without using a core, so that only the scheduling of calls is measured, not the machine's load."""
    time.sleep(seconds)
    return seconds
