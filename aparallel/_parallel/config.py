"""The options that a gather or stream takes, and defaults for those of a block."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Unpack

from aparallel._parallel.options import configured
from aparallel._parallel.typed import BackendName, PoolOptions

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aparallel._parallel.pool import LimitedPool, Pool
    from aparallel.abc import Backend


class GatherOptions(PoolOptions, total=False):
    """What ``gather_parallel``, ``stream_parallel`` and ``parallel_config`` accept."""

    backend: BackendName | Backend
    pool: Pool | LimitedPool | None
    inner_max_num_threads: int | None


@contextlib.contextmanager
def parallel_config(**options: Unpack[GatherOptions]) -> Iterator[None]:
    """Set defaults for every gather and stream inside the block, and for no other task.

    Takes the options of :func:`aparallel.gather_parallel`. Blocks nest; an option given to a call wins.

    Raises:
        TypeError: an unknown option.
        ValueError: an option has a bad value.
    """
    with configured({**options}):
        yield
