"""Caches on disk: aparallel, joblib, diskcache and cashews.

Those with a blocking interface are called on the loop, where they are quickest; what that does to the loop is told
beside the figures.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from suite.cache_contender import CacheContender, Memoized
from suite.contender import NotOffered


def at_once(call: Callable[[Any], Any]) -> Memoized:
    async def memoized(arg: Any) -> Any:
        return call(arg)

    return memoized


class AparallelMemory(CacheContender):
    async def open(self, directory: str) -> None:
        from aparallel import Memory

        self._memory = Memory(directory)
        self._mapping = Memory(directory, mmap_mode="r")

    async def close(self) -> None:
        pass

    def memoize(self, fn: Callable[[Any], Any]) -> Memoized:
        return self._memory.cache(fn)

    def memoize_mapped(self, fn: Callable[[Any], Any]) -> Memoized:
        return self._mapping.cache(fn)

    async def prune(self, entries: int) -> None:
        await self._memory.reduce_size(items_limit=entries)


class JoblibMemory(CacheContender):
    async def open(self, directory: str) -> None:
        from joblib import Memory

        self._memory = Memory(directory, verbose=0)
        self._mapping = Memory(directory, verbose=0, mmap_mode="r")

    async def close(self) -> None:
        pass

    def memoize(self, fn: Callable[[Any], Any]) -> Memoized:
        return at_once(self._memory.cache(fn))

    def memoize_mapped(self, fn: Callable[[Any], Any]) -> Memoized:
        return at_once(self._mapping.cache(fn))

    async def prune(self, entries: int) -> None:
        self._memory.reduce_size(items_limit=entries)


class JoblibInThread(JoblibMemory):
    """What keeps the loop free with joblib."""

    def memoize(self, fn: Callable[[Any], Any]) -> Memoized:
        cached = self._memory.cache(fn)
        return lambda arg: asyncio.to_thread(cached, arg)

    def memoize_mapped(self, fn: Callable[[Any], Any]) -> Memoized:
        cached = self._mapping.cache(fn)
        return lambda arg: asyncio.to_thread(cached, arg)

    async def prune(self, entries: int) -> None:
        await asyncio.to_thread(self._memory.reduce_size, items_limit=entries)


class JoblibCoroutine(JoblibMemory):
    """joblib's memoized coroutine functions."""

    def memoize(self, fn: Callable[[Any], Any]) -> Memoized:
        from suite import cached

        if fn is not cached.small:
            raise NotOffered("measured with small results only")
        memoized: Callable[[Any], Awaitable[Any]] = self._memory.cache(cached.small_coroutine)
        return memoized

    def memoize_mapped(self, fn: Callable[[Any], Any]) -> Memoized:
        raise NotOffered("measured with small results only")


class DiskCache(CacheContender):
    async def open(self, directory: str) -> None:
        from diskcache import Cache

        self._cache = Cache(directory, size_limit=1 << 40, eviction_policy="least-recently-used")

    async def close(self) -> None:
        self._cache.close()

    def memoize(self, fn: Callable[[Any], Any]) -> Memoized:
        return at_once(self._cache.memoize()(fn))

    def memoize_arrays(self, fn: Callable[[Any], Any]) -> Memoized:
        raise NotOffered("its keys hold the whole argument")


class Cashews(CacheContender):
    async def open(self, directory: str) -> None:
        from cashews import Cache

        self._cache = Cache()
        self._cache.setup("disk://", directory=directory)

    async def close(self) -> None:
        await self._cache.close()

    def memoize(self, fn: Callable[[Any], Any]) -> Memoized:
        async def compute(arg: Any) -> Any:
            return fn(arg)

        memoized: Memoized = self._cache(ttl="10d", key=f"{fn.__name__}:{{arg}}")(compute)
        return memoized

    def memoize_arrays(self, fn: Callable[[Any], Any]) -> Memoized:
        raise NotOffered("its keys hold the whole argument")
