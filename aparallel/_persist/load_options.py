"""What the keyword arguments of load mean, checked."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from aparallel._ground.cpus import cpu_count, effective_n_jobs
from aparallel._ground.sharing import check_mmap_mode
from aparallel._persist.given import checked_key

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from aparallel._ground.sharing import MmapMode
    from aparallel.abc import Compressor


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
            tuple(compressors),
        )
