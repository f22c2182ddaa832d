"""What aparallel set out to reach: the table in its design, as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class RatioTarget:
    """aparallel is to be better than a contender by a factor."""

    work: str
    figure: str
    contender: str
    at_least: float
    ours: str = "aparallel"

    @property
    def text(self) -> str:
        return f"{self.work}, {self.figure}: {self.contender} / {self.ours} ≥ {self.at_least:g}"


@dataclass(frozen=True, slots=True)
class LagTarget:
    """aparallel's lag p99 during a work is to stay below a number of milliseconds."""

    work: str
    at_most_ms: float = 2.0

    @property
    def text(self) -> str:
        return f"{self.work}: lag p99 ≤ {self.at_most_ms:g} ms"


@dataclass(frozen=True, slots=True)
class MostTarget:
    """A figure of aparallel's is not to be above a number, in the figure's unit."""

    work: str
    figure: str
    at_most: float

    @property
    def text(self) -> str:
        return f"{self.work}, {self.figure} ≤ {self.at_most:g}"


Target: TypeAlias = RatioTarget | LagTarget | MostTarget

TARGETS: tuple[Target, ...] = (
    RatioTarget("tiny_calls", "per call", "joblib", 3),
    RatioTarget("tiny_calls", "per call", "run_in_executor", 40),
    RatioTarget("one_call", "median", "anyio.to_process", 1),
    RatioTarget("one_call", "median", "run_in_executor", 2),
    RatioTarget("one_payload", "16 KB", "anyio.to_process", 1),
    RatioTarget("one_payload", "64 KB", "anyio.to_process", 1),
    RatioTarget("one_payload", "256 KB", "anyio.to_process", 2),
    RatioTarget("one_payload", "1000 KB", "anyio.to_process", 2),
    RatioTarget("separate_calls", "per call", "run_in_executor", 20),
    RatioTarget("cold_start", "first result", "joblib", 4),
    RatioTarget("one_array", "from a list", "joblib", 4),
    RatioTarget("one_array", "from a generator", "joblib", 2.5),
    RatioTarget("one_array", "from a list", "ray", 1),
    RatioTarget("array_results", "8 of 50 MB", "joblib", 5),
    RatioTarget("array_results", "8 of 50 MB", "ray", 1),
    LagTarget("one_array"),
    LagTarget("shared_array"),
    LagTarget("array_results"),
    LagTarget("array_traffic"),
    RatioTarget("cache_small", "miss", "joblib", 1),
    RatioTarget("cache_small", "repeated hit", "diskcache", 1),
    RatioTarget("cache_small", "first hit", "joblib in a thread", 1),
    RatioTarget("cache_big_argument", "hit", "joblib", 6),
    LagTarget("cache_small"),
    LagTarget("cache_big_argument"),
    LagTarget("cache_big_result"),
    LagTarget("cache_mapped_result"),
    LagTarget("cache_callers"),
    LagTarget("cache_many"),
    LagTarget("tiny_calls"),
    LagTarget("one_call"),
    LagTarget("one_payload"),
    LagTarget("separate_calls"),
    LagTarget("pool_start"),
    LagTarget("mixed_calls"),
    LagTarget("long_stream"),
    RatioTarget("array_file", "dump", "np.save", 1),
    RatioTarget("array_file", "load", "np.save", 1),
    RatioTarget("array_file", "dump", "joblib zlib-3", 5, "aparallel numeric"),
    RatioTarget("array_file", "file", "joblib zlib-3", 1, "aparallel numeric"),
    RatioTarget("integers_file", "dump", "joblib zlib-3", 5, "aparallel numeric"),
    RatioTarget("integers_file", "file", "joblib zlib-3", 1, "aparallel numeric"),
    RatioTarget("dicts_file", "dump", "joblib", 8),
    RatioTarget("dicts_file", "load", "joblib", 8),
    LagTarget("array_file"),
    LagTarget("dicts_file", 15.0),
    LagTarget("small_arrays_file"),
    LagTarget("forest_file"),
    LagTarget("frame_file"),
    RatioTarget("web_light", "light, p99", "blocking", 10),
    RatioTarget("web_light", "light, p99", "thread pool", 10),
    RatioTarget("web_light", "light, p99", "run_in_executor", 1),
    RatioTarget("web_light", "light, p99", "anyio.to_process", 1),
    RatioTarget("web_light", "heavy", "run_in_executor", 0.9),
    # Within 200 ms of a client's leave its worker is free or replaced: the next request is served by then.
    MostTarget("web_left", "next answer", 0.2),
    RatioTarget("web_left", "CPU spent afterwards", "run_in_executor", 5),
    # The request that crashes, and no other.
    MostTarget("web_crash", "failed requests", 1),
    # Per cent: who cannot be served is told so, and nobody waits in vain.
    MostTarget("web_overload", "given up on", 1),
    RatioTarget("web_overload", "served in time", "run_in_executor", 1),
)
