"""What the memoized functions of a Memory share: the store, and the newest results in memory before it."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import sys
import time
import warnings
import weakref
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from aparallel._ground.hop import in_thread
from aparallel._ground.store import Limits, Store
from aparallel._memory import notes
from aparallel._memory.disk.store import DiskStore
from aparallel._memory.entry import Body, Damaged, NotOurs
from aparallel._memory.sealed import SealedStore
from aparallel._memory.tier import Tier
from aparallel.errors import MissingResultError, NotStoredWarning, StoreError, UntrustedDirectoryError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable
    from types import FrameType

    from aparallel._ground.sharing import MmapMode
    from aparallel._ground.store import Place
    from aparallel._memory.options import MemoryOptions

T = TypeVar("T")

_logger = logging.getLogger("aparallel.memory")

_SILENT_FOR = 60.0  # seconds

_HINTS: Final[dict[int | None, str]] = {
    errno.EACCES: "Do it as a user who may write there",
    errno.EPERM: "Do it as a user who may write there",
    errno.EROFS: "Do it where its file system is mounted for writing",
    errno.ENOTDIR: "Give Memory the path of a directory, or one where nothing is yet",
}


class Home(NamedTuple):
    """Where results live: a directory with its bounds, a store of the user's, or, with neither, nowhere."""

    location: str | None = None
    limits: Limits = Limits()
    trust_group: bool = False
    store: Store | None = None

    @classmethod
    def at(cls, location: str | os.PathLike[str] | Store | None, limits: Limits, trust_group: bool) -> Home:
        """Return the home that a memory is given.

        Raises:
            TypeError, ValueError: it is none, or what was said with it is about a directory and it is a store.
        """
        if not isinstance(location, Store):
            if not isinstance(location, str | bytes | os.PathLike | None):
                raise TypeError(f"Memory({location!r}): {type(location).__name__} is neither a path nor a Store.")
            return cls(None if location is None else os.path.abspath(os.fsdecode(location)), limits, trust_group)
        if limits != (None, None) or trust_group:
            raise ValueError(
                f"max_bytes=, max_entries= and trust_group= are about a directory, and {type(location).__name__} is a "
                f"store, which bounds and protects itself. Tell the store."
            )
        return cls(store=location)

    def check_can_map(self, mmap_mode: MmapMode | None) -> None:
        """Refuse to map files where none are kept."""
        if mmap_mode is not None and self.store is not None and not self.store.keeps_files:
            raise ValueError(f"mmap_mode={mmap_mode!r} maps files, and {type(self.store).__name__} keeps none.")

    @property
    def name(self) -> str | int | None:
        """What tells it from others, for as long as it lives: the directory, or which object the store is."""
        return self.location if self.store is None else id(self.store)

    def open(self, *, is_signed: bool) -> Store | None:
        """Return the store. Raises what a :class:`DiskStore` does."""
        if self.location is None:
            return self.store
        return DiskStore(self.location, is_signed=is_signed, trust_group=self.trust_group, limits=self.limits)


class Shelf:
    """The results of one Memory. It pickles, and equal ones that arrive in a process are one there.

    Attributes:
        store: where they live; None if nothing is remembered.
        sealed: the same, as entries that were checked; unusable without a store.
        tier: the newest ones in memory.
        name: what computations are known by in this process: two memories of one place share them.
    """

    def __init__(self, home: Home, options: MemoryOptions) -> None:
        self.home = home
        self.options = options
        self.store = home.open(is_signed=options.signing_key is not None)
        if self.store is not None:
            self.sealed = SealedStore(self.store, options.signing_key, options.compress)
        self.tier = Tier(options.memory_bytes)
        self.name = (home.name, options.signing_key)
        self._warned: set[str] = set()
        # By errno: until when, on time.monotonic's clock, more of the same trouble is not worth a warning.
        self._silent_until: dict[int | None, float] = {}
        # How often results were removed or invalidated through this object; and single ones removed, by key.
        self._removals = 0
        self._forgets = [0] * 256
        # Computations that no caller waits for; a loop forgets a task that nobody holds.
        self._background: set[asyncio.Task[None]] = set()

    async def reach(self, what: str, ask: Callable[..., T], *args: object) -> T:
        """Have a thread ask the store for something; *what* is for the error.

        Raises:
            StoreError: the store cannot be read or written.
            UntrustedDirectoryError: it is not to be believed.
        """
        try:
            return await in_thread(ask, *args)
        except UntrustedDirectoryError:
            raise
        except OSError as error:
            where = self.home.location or repr(self.home.store)
            hint = _HINTS.get(error.errno, "Try again when it can be reached")
            raise StoreError(f"The memory in {where} cannot {what}: {error}. {hint}.", location=where) from error

    async def get(self, place: Place, function: str, mmap_mode: MmapMode | None) -> Any:
        """Return a stored result of a function, by its name.

        Raises:
            MissingResultError: it is not there any more.
            StoreError: it cannot be read.
        """
        problem = "it was cleared, evicted or replaced"
        if self.store is not None:
            try:
                found = await self.reach("load a result", self._load, place, mmap_mode)
                if found is not None:
                    is_error, value = found
                    if is_error:
                        raise value
                    return value
            except (Damaged, NotOurs) as error:
                problem = str(error)
        raise MissingResultError(
            f"The result of {function} with the key {place.key.hex()[:12]}… is not there: {problem}. "
            f"Call the function again.",
            call=function,
        )

    def _load(self, place: Place, mmap_mode: MmapMode | None) -> tuple[bool, Any] | None:
        found = self.sealed.read(place, mapped=mmap_mode is not None)
        if found is None:
            return None
        with found:
            return found.entry.body_kind is Body.ERROR, self.sealed.value_of(found, mmap_mode)

    async def has(self, place: Place) -> bool:
        """Whether a result is stored."""
        return self.store is not None and await self.reach("find a result", self.store.version, place) is not None

    async def forget(self, place: Place) -> bool:
        """Remove one result, and return whether it was there."""
        if self.store is None:
            return False
        self._forgets[place.key[0]] += 1
        self.tier.drop(place.key)
        removed = await self.reach("forget a result", self._remove, self.store, place)
        self._forgets[place.key[0]] += 1  # who has read it in the meantime keeps it no more
        self.tier.drop(place.key)
        return removed

    def _remove(self, store: Store, place: Place) -> bool:
        store.note_removal(place)
        return store.remove(place)

    async def clear(self, function: str | None = None) -> int:
        """Remove all results, or all of one function. Return how many there were."""
        if self.store is None:
            return 0
        self._removals += 1  # who asks from now on shares no computation that is under way
        removed = await self.reach("clear results", self._clear, self.store, function)
        self._removals += 1  # as in forget()
        self.tier.clear()
        return removed

    def _clear(self, store: Store, function: str | None) -> int:
        store.note_removal(None)
        return store.clear(function)

    async def invalidate(self, tags: Iterable[str]) -> None:
        """Make all results with one of these tags misses."""
        if self.store is not None:
            self._removals += 1
            await self.reach("invalidate tags", notes.invalidate, self.store, tags)
            self._removals += 1  # as in forget()
            self.tier.clear()

    def generation(self, place: Place) -> tuple[int, int]:
        """What changes when results at *place* are removed or invalidated here, before and after.

        Computations are shared within one, and what was read in one is kept in memory in no other.
        """
        return self._removals, self._forgets[place.key[0]]

    async def reduce(self, limits: Limits, unused_for: float | None) -> int:
        """Remove what was not used for so many seconds, and what is over *limits*. Return how many results went."""
        store = self.store
        if store is None:
            return 0
        removed = await self.reach("remove results", lambda: store.reduce(limits, unused_for=unused_for))
        if removed:
            self.tier.clear()
        return removed

    def in_background(self, doing: Coroutine[Any, Any, Any]) -> None:
        """Compute without anyone waiting; what it raises is the next caller's to see."""
        task = asyncio.get_running_loop().create_task(_quietly(doing))
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def log_trouble(self, about: str, error: OSError) -> None:
        """Log that the store cannot be reached: once in a while, however many calls find it so."""
        now = time.monotonic()
        is_news = now >= self._silent_until.get(error.errno, 0.0)
        if is_news:
            self._silent_until[error.errno] = now + _SILENT_FOR
        _logger.log(logging.WARNING if is_news else logging.DEBUG, "%s: %s", about, str(error))

    def warn_once(self, what: str, message: str) -> None:
        """Warn that something is not stored, once for each *what*."""
        if what not in self._warned:
            self._warned.add(what)
            text = f"{message.rstrip('.')}. The function works as without a memory."
            warnings.warn(text, NotStoredWarning, stacklevel=1 + _frames_of_ours())

    def __reduce__(self) -> Any:
        return _same_shelf, (self.home, self.options)

    def __repr__(self) -> str:
        return f"Memory({self.home.store if self.home.store is not None else self.home.location!r})"


def _frames_of_ours() -> int:
    """How many frames, from the caller's on, are this package's: below them is who awaits the memoized function."""
    count = 0
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and str(frame.f_globals.get("__name__")).partition(".")[0] == "aparallel":
        count += 1
        frame = frame.f_back
    return count


# Shelves that came out of a pickle: equal ones are one, so that they share what they hold in memory.
_arrived: weakref.WeakValueDictionary[Any, Shelf] = weakref.WeakValueDictionary()


def _same_shelf(home: Home, options: MemoryOptions) -> Shelf:
    name = (home.name, home.limits, home.trust_group, repr(options))
    shelf = _arrived.get(name)
    if shelf is None:
        shelf = _arrived[name] = Shelf(home, options)
    return shelf


async def _quietly(doing: Coroutine[Any, Any, Any]) -> None:
    try:
        await doing
    except Exception:
        _logger.warning("Computing a stale result anew failed; the old one is served on.", exc_info=True)
