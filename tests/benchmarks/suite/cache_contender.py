"""What every cache on disk can be asked to do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import Any

from suite.contender import NotOffered

Memoized = Callable[[Any], Awaitable[Any]]


class CacheContender(ABC):
    """A cache on disk, used from a coroutine in the quickest way that its documentation shows."""

    @abstractmethod
    async def open(self, directory: str) -> None:
        """Use *directory*, as a new process would: with nothing in memory."""

    @abstractmethod
    async def close(self) -> None:
        """Leave nothing behind but the directory."""

    @abstractmethod
    def memoize(self, fn: Callable[[Any], Any]) -> Memoized:
        """Remember what a plain function returns."""

    def memoize_arrays(self, fn: Callable[[Any], Any]) -> Memoized:
        """The same for arguments that are big arrays."""
        return self.memoize(fn)

    def memoize_mapped(self, fn: Callable[[Any], Any]) -> Memoized:
        """The same, with arrays in results mapped from disk."""
        raise NotOffered("it does not map arrays")

    async def prune(self, entries: int) -> None:
        """Remove what was used least recently, until about *entries* are left."""
        raise NotOffered("it cannot be told to")
