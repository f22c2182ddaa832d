"""Price options by simulation, with Litestar: ``uvicorn litestar_options:app``.

curl 'http://127.0.0.1:8000/price?strike=105'
curl -N 'http://127.0.0.1:8000/prices?strikes=95&strikes=100&strikes=105'
"""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from litestar import Litestar, get
from litestar.middleware import DefineMiddleware
from litestar.params import Parameter

from aparallel import Pool, delayed
from aparallel.web import CancelOnDisconnect
from aparallel.web.litestar import NDJSON, PoolPlugin

Strike = Annotated[float, Parameter(gt=0)]
Paths = Annotated[int, Parameter(ge=100, le=10_000_000)]


@dataclass(frozen=True, slots=True)
class Price:
    """What an option is worth today, and the standard error of that."""

    strike: float
    price: float
    error: float


def simulate(strike: float, paths: int, *, days: int = 250, volatility: float = 0.2, rate: float = 0.03) -> Price:
    """The price of a call on the mean of a share's next *days*, for a year, where the share stands at 100.

    An Asian option: its price has no formula, so futures are drawn (geometric Brownian motion) and averaged.
    """
    rng = np.random.default_rng(round(strike * 100))
    payoffs = []
    for size in [10_000] * (paths // 10_000) + [paths % 10_000]:
        steps = rng.normal((rate - volatility**2 / 2) / days, volatility / days**0.5, (size, days))
        means = 100 * np.exp(np.cumsum(steps, axis=1)).mean(axis=1)
        payoffs.append(np.exp(-rate) * np.maximum(means - strike, 0))
    payoff = np.concatenate(payoffs)
    return Price(strike, round(float(payoff.mean()), 4), round(float(payoff.std() / paths**0.5), 4))


@get("/price")
async def price(pool: Pool, strike: Strike, paths: Paths = 50_000) -> Price:
    """One price. A client that does not wait for it stops the simulation; one of 2 seconds is stopped, too."""
    return await pool.run(simulate, strike, paths, timeout=2)


@get("/prices")
async def prices(pool: Pool, strikes: list[float], paths: Paths = 50_000) -> NDJSON:
    """One line for each strike, in their order, as soon as it is known."""
    return NDJSON(pool.stream(delayed(simulate)(strike, paths) for strike in strikes))


@get("/health")
async def health() -> str:
    return "ok"


app = Litestar(
    [price, prices, health],
    plugins=[PoolPlugin(max_queued=100)],
    middleware=[DefineMiddleware(CancelOnDisconnect)],
)
