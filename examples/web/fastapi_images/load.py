"""Visit the service in every way that hurts, and say how long visitors wait: ``python load.py [--seconds 20]``.

Needs nothing but the standard library and a service that runs.
"""

import argparse
import asyncio
import itertools
import json
import math
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

PICTURE = "/landscapes/{}?look=oil&width=400"
HEALTH_RATE = 50
"""Requests a second: a visitor in a hurry every 20 ms, whether the one before has an answer or not."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a visitor got, and the seconds since the request was due."""

    status: int
    seconds: float
    body: bytes
    retry_after: float
    """Seconds, as the header of a 503 says."""


class Site:
    """The service under load."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.host, self.port = parts.hostname or "127.0.0.1", parts.port or 80

    async def get(self, path: str, *, tenant: str = "", due: float | None = None) -> Answer:
        """Request *path* on a connection of its own. Cancelling it closes the connection: the visitor leaves."""
        due = time.perf_counter() if due is None else due
        reader, writer = await asyncio.open_connection(self.host, self.port)
        try:
            head = f"GET {path} HTTP/1.1\r\nHost: {self.host}\r\nX-Tenant: {tenant}\r\nConnection: close\r\n\r\n"
            writer.write(head.encode())
            answer, _, body = (await reader.read()).partition(b"\r\n\r\n")
        finally:
            writer.close()
        first, *fields = answer.decode("latin-1").lower().split("\r\n")
        headers = dict(field.split(": ", 1) for field in fields)
        return Answer(int(first.split()[1]), time.perf_counter() - due, body, float(headers.get("retry-after", 0)))

    async def busy_workers(self) -> int:
        """Ask how many workers compute at the moment."""
        return int(json.loads((await self.get("/statistics")).body)["busy workers"])


async def in_a_hurry(site: Site, seconds: float) -> list[Answer]:
    """Ask for /health at a steady rate. Each wait counts from when the request was due."""
    start = time.perf_counter()
    tasks = []
    for number in range(max(1, round(seconds * HEALTH_RATE))):
        due = start + number / HEALTH_RATE
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        tasks.append(asyncio.create_task(site.get("/health", due=due)))
    return await asyncio.gather(*tasks)


@asynccontextmanager
async def visitors(site: Site, tenants: Sequence[str], seeds: Iterator[int]) -> AsyncIterator[list[Answer]]:
    """Have one visitor of each of *tenants* look at one picture after the other. Gives their answers, as they grow.

    Who is refused comes back when he was told to.
    """
    answers: list[Answer] = []

    async def look_around(tenant: str) -> None:
        for seed in seeds:
            answer = await site.get(PICTURE.format(seed), tenant=tenant)
            answers.append(answer)
            await asyncio.sleep(answer.retry_after)

    tasks = [asyncio.create_task(look_around(tenant)) for tenant in tenants]
    try:
        yield answers
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def at_rest(site: Site) -> float:
    """Wait until no worker computes any more, and say how many seconds that took."""
    started = time.perf_counter()
    while await site.busy_workers() > 0:
        pass
    return time.perf_counter() - started


async def leave(site: Site, number: int, seeds: Iterator[int]) -> float:
    """Have so many visitors come and leave at once; say after how many seconds no worker works for them."""
    await at_rest(site)
    tasks = [asyncio.create_task(site.get(PICTURE.format(seed))) for seed in itertools.islice(seeds, number)]
    while await site.busy_workers() == 0 and not all(task.done() for task in tasks):
        pass
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return await at_rest(site)


def row(what: str, answers: Sequence[Answer], seconds: float) -> str:
    served = sorted(answer.seconds for answer in answers if answer.status == 200)
    refused = sum(answer.status == 503 for answer in answers)
    failed = len(answers) - len(served) - refused

    def milliseconds(share: float) -> str:
        return f"{served[math.ceil(share * len(served)) - 1] * 1e3:,.1f}" if served else "-"

    return (
        f"{what:32}{len(served):>8}{refused:>9}{failed:>8}{milliseconds(0.5):>10}{milliseconds(0.99):>10}"
        f"{len(served) / seconds:>9.1f}"
    )


async def visit(url: str, seconds: float) -> None:
    site = Site(url)
    await site.get("/health")  # so that nobody waits in vain
    each = seconds / 4  # what follows are four spells
    fresh = itertools.count(time.time_ns() // 1000)  # numbers that nobody has asked for yet

    hurried = await in_a_hurry(site, each)
    print(f"{'':32}{'served':>8}{'refused':>9}{'failed':>8}{'p50 ms':>10}{'p99 ms':>10}{'per s':>9}")
    print(row("health, nothing else to do", hurried, each), flush=True)
    async with visitors(site, ["ann", "bob"] * 4, fresh) as pictures:
        hurried = await in_a_hurry(site, each)
    print(row("health, beside new pictures", hurried, each))
    print(row("new pictures, 8 visitors", pictures, each), flush=True)
    first = next(fresh)
    await site.get(PICTURE.format(first))
    async with visitors(site, ["ann", "bob"] * 4, itertools.repeat(first)) as pictures:
        await asyncio.sleep(each)
    print(row("one picture again, 8 visitors", pictures, each), flush=True)
    async with visitors(site, ["crowd"] * 100, fresh) as pictures, visitors(site, ["ann"], fresh) as others:
        hurried = await in_a_hurry(site, each)
    print(row("new pictures, 100 of one tenant", pictures, each))
    print(row("new pictures, 1 of another", others, each))
    print(row("health, beside those", hurried, each), flush=True)
    print(f"\n20 visitors left: no worker worked for them {await leave(site, 20, fresh) * 1e3:.0f} ms later")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--seconds", type=float, default=20.0, help="for everything together")
    options = parser.parse_args()
    try:
        asyncio.run(asyncio.wait_for(visit(options.url, options.seconds), 2 * options.seconds + 30))
    except TimeoutError:
        sys.exit(f"The service at {options.url} does not answer any more.")
    except ConnectionError as error:
        sys.exit(f"No service answers at {options.url} ({error}). Start it first: uvicorn app:app")
