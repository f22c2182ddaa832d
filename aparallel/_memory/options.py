"""What can be said of a memory and of its functions, checked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack

from aparallel._ground.store import Limits
from aparallel._ground.units import parse_bytes, parse_seconds, whole_number
from aparallel._persist.compressors import chosen

if TYPE_CHECKING:
    from datetime import timedelta

    from aparallel._ground.sharing import MmapMode
    from aparallel._memory.tracking import Track


@dataclass(frozen=True, slots=True)
class MemoryOptions:
    """How a memory works, wherever its results live. Sizes are in bytes, times in seconds.

    Raises:
        TypeError, ValueError: a bad option.
    """

    verbose: int = 0
    mmap_mode: MmapMode | None = None
    compress: Any = None
    ttl: float | None = None
    signing_key: bytes | None = None
    store_arguments: bool = False
    memory_bytes: int = 0
    track: Track = "deep"

    def __post_init__(self) -> None:
        check_mmap_mode(self.mmap_mode, is_compressed=self.is_compressed)
        checked_track(self.track)
        checked_verbose(self.verbose)
        chosen(self.compress, None)  # raises what dump would

    @property
    def is_compressed(self) -> bool:
        return self.compress not in (None, False, 0)


class FunctionSettings(TypedDict, total=False):
    """The keyword arguments of :meth:`Memory.cache`, which says what they mean."""

    ignore: Sequence[str] | None
    ttl: str | float | timedelta | None
    stale_while_revalidate: str | float | timedelta
    tags: Sequence[str] | Callable[..., Iterable[str]]
    mmap_mode: Literal["r", "c"] | None
    validate: Callable[[Mapping[str, Any]], bool] | None
    cache_validation_callback: Callable[[Mapping[str, Any]], bool] | None
    depends_on: Sequence[Any]
    track: Track | None
    cache_errors: bool | type[BaseException] | tuple[type[BaseException], ...]
    pool: Any
    verbose: int | None


@dataclass(frozen=True, slots=True)
class FunctionOptions:
    """How one function is memoized. Times are in seconds."""

    ignore: tuple[str, ...] = ()
    ttl: float | None = None
    stale_while_revalidate: float = 0.0
    tags: tuple[str, ...] | Callable[..., Iterable[str]] = ()
    mmap_mode: MmapMode | None = None
    validate: Callable[[Mapping[str, Any]], bool] | None = None
    depends_on: tuple[Any, ...] = ()
    track: Track = "deep"
    cache_errors: bool | tuple[type[BaseException], ...] = False
    pool: Any = None
    verbose: int = 0

    @property
    def lifetime(self) -> float | None:
        """Seconds after which a result is of no use to anybody."""
        return None if self.ttl is None else self.ttl + self.stale_while_revalidate


def function_options(own: MemoryOptions, **given: Unpack[FunctionSettings]) -> FunctionOptions:
    """Return what was said of one function, all of it given, and of the memory where nothing was.

    Raises:
        TypeError, ValueError: a bad option.
    """
    validate, callback = given["validate"], given["cache_validation_callback"]
    if validate is not None and callback is not None:
        raise TypeError("validate= and cache_validation_callback= are the same. Give one.")
    validate = callback if validate is None else validate
    if validate is not None and not callable(validate):
        raise TypeError(
            f"validate={validate!r} is no function. It is called with a mapping, and returns True or False."
        )
    ttl = own.ttl if given["ttl"] is None else parse_seconds(given["ttl"])
    stale = parse_seconds(given["stale_while_revalidate"])
    if ttl == 0 and not stale:
        raise ValueError(
            "ttl=0 has every result expire at once. Memory(None) caches nothing; "
            "stale_while_revalidate= serves the last result while a new one is computed."
        )
    mmap_mode = own.mmap_mode if given["mmap_mode"] is None else given["mmap_mode"]
    check_mmap_mode(mmap_mode, is_compressed=own.is_compressed)
    ignore, tags, depends_on = given["ignore"], given["tags"], given["depends_on"]
    if isinstance(depends_on, str) or not isinstance(depends_on, Iterable):
        raise TypeError(f"depends_on={depends_on!r} is no list. Write depends_on=[{depends_on!r}].")
    return FunctionOptions(
        ignore=ignore if isinstance(ignore, str) else tuple(ignore or ()),  # type: ignore[arg-type]  # refused later
        ttl=ttl,
        stale_while_revalidate=stale,
        tags=tags if callable(tags) else checked_tags(tags),
        mmap_mode=mmap_mode,
        validate=validate,
        depends_on=tuple(depends_on),
        track=checked_track(own.track if given["track"] is None else given["track"]),
        cache_errors=_checked_errors(given["cache_errors"]),
        pool=checked_pool(given["pool"]),
        verbose=own.verbose if given["verbose"] is None else checked_verbose(given["verbose"]),
    )


def _checked_errors(errors: Any) -> bool | tuple[type[BaseException], ...]:
    if isinstance(errors, bool):
        return errors
    kinds = (errors,) if isinstance(errors, type) else errors
    if not isinstance(kinds, list | tuple | set | frozenset) or not all(
        isinstance(kind, type) and issubclass(kind, BaseException) for kind in kinds
    ):
        raise TypeError(f"cache_errors={errors!r} is neither True or False nor types of exceptions.")
    return tuple(kinds)


def check_mmap_mode(mmap_mode: object, *, is_compressed: bool) -> None:
    if mmap_mode not in (None, "r", "c"):
        raise ValueError(
            f"mmap_mode={mmap_mode!r}: results can be mapped with 'r' or 'c'. "
            f"What others share must not be changed in place."
        )
    if mmap_mode is not None and is_compressed:
        raise ValueError("mmap_mode= and compress= exclude each other: what is compressed cannot be mapped.")


def checked_pool(pool: Any) -> Any:
    if pool is not None and not callable(getattr(pool, "run", None)):
        raise TypeError(f"pool={pool!r} has no method run. Give a Pool, or leave it out to compute in threads.")
    return pool


def checked_verbose(verbose: int) -> int:
    if not isinstance(verbose, int | float):
        raise TypeError(f"verbose={verbose!r} is no number. 1 tells what is computed, 10 also what is found.")
    return verbose


def checked_track(track: Track) -> Track:
    if track not in ("deep", "own", "none"):
        raise ValueError(f"track={track!r} is none of 'deep', 'own', 'none'.")
    return track


def checked_limits(max_entries: int | None, max_bytes: str | int | None) -> Limits:
    """Return what a memory's directory may hold."""
    limits = Limits(checked_count(max_entries, "max_entries"), checked_bytes(max_bytes))
    if limits.entries == 0 or limits.bytes == 0:
        bound = f"max_entries={max_entries!r}" if limits.entries == 0 else f"max_bytes={max_bytes!r}"
        raise ValueError(f"{bound} leaves no room for any result. Memory(None) caches nothing.")
    return limits


def checked_count(count: int | None, name: str) -> int | None:
    if count is None:
        return None
    number = whole_number(count)
    if number is None:
        raise TypeError(f"{name}={count!r} is not a whole number.")
    if number < 0:
        raise ValueError(f"{name}={count!r} is negative.")
    return number


def checked_bytes(size: str | int | None) -> int | None:
    return None if size is None else parse_bytes(size)


def checked_tags(tags: Iterable[str]) -> tuple[str, ...]:
    if isinstance(tags, str):
        raise TypeError(f"tags={tags!r} is a text. Write tags=[{tags!r}].")
    names = tuple(tags) if isinstance(tags, Iterable) else (tags,)
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"tags={tags!r}: tags are texts, and {name!r} ({type(name).__name__}) is none.")
    return names
