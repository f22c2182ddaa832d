"""What the keyword arguments of dump and load mean, checked."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from aparallel._ground.cpus import cpu_count, effective_n_jobs
from aparallel._ground.sharing import check_mmap_mode

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from aparallel._ground.sharing import MmapMode
    from aparallel._persist.compressors import Choice, Compress
    from aparallel.abc import Compressor


@dataclasses.dataclass(frozen=True, slots=True)
class DumpOptions:
    """What the keyword arguments of dump mean, checked.

    Attributes:
        choice: the codec, or None.
        durable: survive a crash of the machine, too.
        signing_key: the secret, or None.
        threads: that compress at a time.
    """

    choice: Choice | None = None
    durable: bool = True
    signing_key: bytes | None = None
    threads: int = 1

    @classmethod
    def checked(
        cls,
        compress: Compress = None,
        *,
        path: str | None = None,
        durable: bool = True,
        signing_key: str | bytes | None = None,
        n_jobs: int = -1,
    ) -> DumpOptions:
        """Check what a user gave.

        Raises:
            ValueError: a codec, level or key that cannot be.
            TypeError: something of another type.
        """
        from aparallel._persist.compressors import chosen  # loads the standard library's

        threads = effective_n_jobs(n_jobs, cpu_count())
        return cls(chosen(compress, path), durable, checked_key(signing_key), threads)


@dataclasses.dataclass(frozen=True, slots=True)
class LoadOptions:
    """What the keyword arguments of load mean, checked.

    Attributes:
        mmap_mode: "r", "r+", "c", or None.
        trusted: what the user trusts, or None for everything.
        signing_key: the secret, or None.
        verify: compare the checksums of mapped arrays too.
        threads: that read or decompress at a time.
        compressors: of the user's own.
    """

    mmap_mode: MmapMode | None = None
    trusted: tuple[Any, ...] | None = None
    signing_key: bytes | None = None
    verify: bool = False
    threads: int = 1
    compressors: tuple[Compressor, ...] = ()

    @classmethod
    def checked(
        cls,
        mmap_mode: MmapMode | None = None,
        *,
        trusted: Iterable[Any] | None = None,
        signing_key: str | bytes | None = None,
        verify: bool = False,
        compressors: Sequence[Compressor] = (),
        n_jobs: int = -1,
    ) -> LoadOptions:
        """Check what a user gave.

        Raises:
            ValueError: a mode or key that cannot be.
            TypeError: something of another type.
        """
        if mmap_mode is not None:
            check_mmap_mode(mmap_mode)
        if isinstance(trusted, (str, bytes, bool)) or (trusted is not None and not hasattr(trusted, "__iter__")):
            raise TypeError(
                f"trusted must be a list of types, functions or names such as 'module.Name', got {trusted!r}. "
                f"An empty list trusts plain data and NumPy's data types."
            )
        return cls(
            mmap_mode,
            None if trusted is None else tuple(trusted),
            checked_key(signing_key),
            verify,
            effective_n_jobs(n_jobs, cpu_count()),
            checked_compressors(compressors),
        )


def checked_compressors(given: Iterable[Compressor]) -> tuple[Compressor, ...]:
    """Return the compressors that a user gave.

    Raises:
        TypeError: they are no compressors, or one that is in no list.
    """
    if given == ():
        return ()
    from aparallel.abc import Compressor

    compressors = tuple(given) if hasattr(given, "__iter__") else None
    if compressors is None or not all(isinstance(compressor, Compressor) for compressor in compressors):
        raise TypeError(f"compressors must be a list of instances of aparallel.abc.Compressor, got {given!r}.")
    return compressors


def checked_key(key: str | bytes | None) -> bytes | None:
    """Return a secret as bytes, text in UTF-8.

    Raises:
        ValueError: it is empty.
        TypeError: it is neither text nor bytes.
    """
    if key is None:
        return None
    if isinstance(key, str):
        key = key.encode()
    if not isinstance(key, (bytes, bytearray, memoryview)):
        raise TypeError(f"signing_key must be bytes or text, got {type(key).__name__}.")
    if not len(key):
        raise ValueError("signing_key is empty, so anyone could sign. Use secrets.token_bytes(32), and keep it secret.")
    return bytes(key)
