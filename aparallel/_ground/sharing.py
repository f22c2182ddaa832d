"""Something shared with all workers of a pool, for any number of calls."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, Literal, NoReturn, Self, TypeVar, get_args

from aparallel.errors import SharingError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator
    from types import TracebackType

T = TypeVar("T")

MmapMode = Literal["r", "c", "r+"]
MMAP_MODES = get_args(MmapMode)


class Shared(Generic[T]):
    """What :meth:`aparallel.Pool.share` gives: an object that workers share, until it is closed.

    Pass it to calls of its pool in the object's place; their functions get the object. It is released by :meth:`close`
    or at the end of its ``async with`` block, or when nothing refers to it; calls that have it already keep it.

    Attributes:
        value: the object as it was given.
        mode: how workers map it.
        closed: whether it was released.
    """

    def __init__(
        self, value: T, mode: MmapMode, *, array: Any = None, travel: Any = None, release: Callable[[], object] | None
    ) -> None:
        self.value = value
        self.mode = mode
        self.closed = False
        self._array = array
        # What the backend made of it; it alone knows.
        self.travel = travel
        self._release = release

    @property
    def array(self) -> Any:
        """The shared memory as a NumPy array, where an array was shared: writable with ``mode="r+"``, else read-only.

        It and its views can be passed to calls in place of this object. Its memory stays while it is referred to, and
        can be read (and written) after this object was closed; only workers get it no more.

        Raises:
            TypeError: no array was shared.
        """
        if self._array is None:
            raise TypeError(
                f"What was shared is no NumPy array but {type(self.value).__name__}; .value is that object."
            )
        return self._array

    def close(self) -> None:
        """Release it. Idempotent. Calls that were given it before keep it; further ones raise SharingError."""
        if not self.closed:
            self.closed = True
            release, self._release = self._release, None
            self.travel = None
            if release is not None:
                release()

    def check_open(self) -> None:
        """Make sure that it was not closed.

        Raises:
            SharingError: it was.
        """
        if self.closed:
            raise SharingError(
                f"{self!r} was closed before a call that gets it was drawn. Close it when the calls are done."
            )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError("A Shared object travels only to workers of the pool that shared it.")

    def __repr__(self) -> str:
        state = ", closed" if self.closed else ""
        return f"<Shared {type(self.value).__name__} mode={self.mode!r}{state}>"


class Opening(Generic[T]):
    """What a method returns whose result can be awaited, or entered at once: ``async with pool.share(a) as shared``."""

    def __init__(self, open_it: Callable[[], Awaitable[Shared[T]]]) -> None:
        self._open = open_it
        self._opened: Shared[T] | None = None

    def __reduce__(self) -> NoReturn:
        raise TypeError("not shared yet: write shared = await pool.share(a), or async with pool.share(a) as shared")

    def __await__(self) -> Generator[Any, Any, Shared[T]]:
        return self._open().__await__()

    async def __aenter__(self) -> Shared[T]:
        self._opened = await self._open()
        return self._opened

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._opened is not None:
            self._opened.close()


def check_mmap_mode(mode: object, name: str = "mmap_mode", hint: str = "") -> None:
    if mode not in MMAP_MODES:
        raise ValueError(
            f"{name}={mode!r} is not 'r' (read-only), 'c' (a private copy on write) or 'r+' (shared both ways).{hint}"
        )


def unwrap(args: tuple[Any, ...], keywords: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Return arguments with what is shared in the place of each Shared object; None if there is none."""
    for value in args:
        if type(value) is Shared:
            break
    else:
        if not any(type(value) is Shared for value in keywords.values()):
            return None

    def value_of(argument: Any) -> Any:
        if type(argument) is not Shared:
            return argument
        argument.check_open()
        return argument.value

    return tuple(map(value_of, args)), {name: value_of(value) for name, value in keywords.items()}
