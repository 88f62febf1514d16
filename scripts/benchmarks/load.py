"""Concurrent load: the same mixed jobs for each server, in a closed loop at saturation, then in an open loop."""

import asyncio
import math
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx2
import numpy as np

from scripts.benchmarks.report import Goal, Outcome
from scripts.benchmarks.servers import KINDS, OURS, REFERENCE, Kind, ours_sharing, running
from scripts.benchmarks.single import upload

CLIENTS = 16
JOBS = 64
ROUNDS = 3
PROMPTS = ("wizard", "dog", "castle", "rose", "rocket", "pizza", "cat", "owl")


@dataclass(frozen=True)
class Load:
    """A server's answers to one run of the jobs; times in seconds."""

    elapsed: float
    latencies: list[float]

    @property
    def throughput(self) -> float:
        """Images per second."""
        return len(self.latencies) / self.elapsed

    def percentile(self, percent: int) -> float:
        """A percentile of the latencies."""
        return statistics.quantiles(self.latencies, n=100, method="inclusive")[percent - 1]


@dataclass(frozen=True)
class Request:
    """A request: an image and the other form fields."""

    image: bytes
    fields: dict[str, str]


def requests(count: int, seed: int = 0) -> list[Request]:
    """Mixed jobs: every second one has the default parameters, the others have 1 to 8 steps and any valid strength.

    All images and prompts are different, so that no cache helps.
    """
    draw, found = np.random.default_rng(seed), []
    for index in range(count):
        steps, strength = (4, 0.9) if index % 2 else (int(draw.integers(1, 9)), float(draw.uniform(0.3, 1.0)))
        # Rounded up: a third of three steps would round down to none.
        strength = max(strength, math.ceil(1e6 / steps) / 1e6)
        fields = {
            "prompt": f"{draw.choice(PROMPTS)} number {seed}-{index}",
            "num_inference_steps": str(steps),
            "strength": f"{strength:.6f}",
            "seed": str(index),
        }
        found.append(Request(upload(seed + 1 + index), fields))
    return found


async def _post(client: httpx2.AsyncClient, request: Request) -> None:
    answer = await client.post("/img2img", files={"image": ("start.jpg", request.image)}, data=request.fields)
    answer.raise_for_status()


async def closed(url: str, todo: Sequence[Request], clients: int = CLIENTS) -> Load:
    """A closed loop: each client sends one request at a time."""
    queue: list[Request] = list(todo)
    latencies: list[float] = []
    limits = httpx2.Limits(max_connections=None)
    async with httpx2.AsyncClient(base_url=url, trust_env=False, timeout=600, limits=limits) as client:

        async def one() -> None:
            while queue:
                request = queue.pop(0)
                start = time.perf_counter()
                await _post(client, request)
                latencies.append(time.perf_counter() - start)

        start = time.perf_counter()
        await asyncio.gather(*(one() for _ in range(clients)))
        return Load(time.perf_counter() - start, latencies)


async def opened(url: str, todo: Sequence[Request], rate: float, seed: int = 0) -> Load:
    """An open loop: Poisson arrivals at `rate` requests a second."""
    latencies: list[float] = []
    draw = np.random.default_rng(seed)
    limits = httpx2.Limits(max_connections=None)
    async with httpx2.AsyncClient(base_url=url, trust_env=False, timeout=600, limits=limits) as client:

        async def one(request: Request) -> None:
            start = time.perf_counter()
            await _post(client, request)
            latencies.append(time.perf_counter() - start)

        start, tasks = time.perf_counter(), []
        due = start
        for request in todo:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            tasks.append(asyncio.create_task(one(request)))
            due += float(draw.exponential(1 / rate))
        await asyncio.gather(*tasks)
        return Load(time.perf_counter() - start, latencies)


def case(model: Path, peers: Sequence[str] = (), policies: Sequence[int] = ()) -> Outcome:
    """Measure our service and the peers, alternating; also our service with other batch limits."""
    others = [REFERENCE, *(KINDS[name] for name in peers)]
    kinds = [OURS, *others, *(ours_sharing(jobs) for jobs in policies)]
    saturated: dict[str, list[Load]] = {kind.name: [] for kind in kinds}
    arriving: dict[str, list[Load]] = {kind.name: [] for kind in kinds}
    for _ in range(ROUNDS):
        for kind in kinds:
            saturated[kind.name].append(_run(kind, model, None))
    rate = 0.9 * statistics.median(load.throughput for load in saturated["reference"])
    for _ in range(ROUNDS):
        for kind in kinds:
            arriving[kind.name].append(_run(kind, model, rate))
    rows = {
        kind.name: (
            statistics.median(load.throughput for load in saturated[kind.name]),
            statistics.median(load.percentile(95) for load in saturated[kind.name]),
            statistics.median(load.percentile(50) for load in arriving[kind.name]),
            statistics.median(load.percentile(95) for load in arriving[kind.name]),
        )
        for kind in kinds
    }
    return Outcome(
        "load",
        f"{CLIENTS} clients, {JOBS} mixed jobs of 1 to 8 steps; then arrivals at {rate:.2f} per second",
        ("server", "images/s, saturated", "p95 s, saturated", "p50 s, arrivals", "p95 s, arrivals"),
        [(name, *found) for name, found in rows.items()],
        list(_goals(rows[OURS.name], {kind.name: rows[kind.name] for kind in others})),
    )


def _goals(ours: Sequence[float], others: Mapping[str, Sequence[float]]) -> Iterator[Goal]:
    best = max(others, key=lambda name: others[name][0])
    yield Goal("time", f"images/s, of the best peer's ({best})", ours[0] / others[best][0], at_least=1.3)
    # At saturation 16 clients wait for 16 / throughput on average: that is the same figure as the line above.
    best = min(others, key=lambda name: others[name][3])
    yield Goal("time", f"p95 of arrivals, of the best peer's ({best})", ours[3] / others[best][3], at_most=0.6)


def _run(kind: Kind, model: Path, rate: float | None) -> Load:
    with running(kind, model) as url:
        asyncio.run(closed(url, requests(4, seed=JOBS), 1))
        todo = requests(JOBS)
        return asyncio.run(closed(url, todo) if rate is None else opened(url, todo, rate))
