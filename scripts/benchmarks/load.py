"""Many at once: the same mixed jobs for every server, in a closed loop at saturation, then as open-loop arrivals."""

import asyncio
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx2
import numpy as np

from scripts.benchmarks.report import Goal, Outcome
from scripts.benchmarks.servers import KINDS, OURS, REFERENCE, Kind, running
from scripts.benchmarks.single import upload

CLIENTS = 16
JOBS = 64
ROUNDS = 2
PROMPTS = ("a wizard", "a dog", "a castle", "a rose", "a rocket", "a pizza", "a cat", "an owl")


@dataclass(frozen=True)
class Load:
    """What a server did with one run of the jobs; times in seconds."""

    elapsed: float
    latencies: list[float]

    @property
    def throughput(self) -> float:
        """Pictures per second."""
        return len(self.latencies) / self.elapsed

    def percentile(self, percent: int) -> float:
        """The latency that so many percent of the requests stay below."""
        return statistics.quantiles(self.latencies, n=100, method="inclusive")[percent - 1]


def jobs(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Form fields: every other one the default pass, the rest of 1 to 8 steps at any strength that they allow."""
    draw, found = np.random.default_rng(seed), []
    for index in range(count):
        steps, strength = (4, 0.9) if index % 2 else (int(draw.integers(1, 9)), float(draw.uniform(0.3, 1.0)))
        # Rounded up, or a third of three steps would be none.
        strength = max(strength, math.ceil(1e6 / steps) / 1e6)
        found.append(
            {
                "prompt": str(draw.choice(PROMPTS)),
                "num_inference_steps": str(steps),
                "strength": f"{strength:.6f}",
                "seed": str(index),
            }
        )
    return found


async def _post(client: httpx2.AsyncClient, image: bytes, fields: dict[str, str]) -> None:
    answer = await client.post("/img2img", files={"image": ("start.jpg", image)}, data=fields)
    answer.raise_for_status()


async def closed(url: str, todo: Sequence[dict[str, str]], clients: int = CLIENTS) -> Load:
    """So many clients, each with one request after the other."""
    image, queue, latencies = upload(), list(todo), []
    limits = httpx2.Limits(max_connections=None)
    async with httpx2.AsyncClient(base_url=url, trust_env=False, timeout=600, limits=limits) as client:

        async def one() -> None:
            while queue:
                fields = queue.pop(0)
                start = time.perf_counter()
                await _post(client, image, fields)
                latencies.append(time.perf_counter() - start)

        start = time.perf_counter()
        await asyncio.gather(*(one() for _ in range(clients)))
        return Load(time.perf_counter() - start, latencies)


async def opened(url: str, todo: Sequence[dict[str, str]], rate: float, seed: int = 0) -> Load:
    """Requests that arrive at random (Poisson), `rate` per second, whether others are done or not."""
    image, latencies, draw = upload(), [], np.random.default_rng(seed)
    limits = httpx2.Limits(max_connections=None)
    async with httpx2.AsyncClient(base_url=url, trust_env=False, timeout=600, limits=limits) as client:

        async def one(fields: dict[str, str]) -> None:
            start = time.perf_counter()
            await _post(client, image, fields)
            latencies.append(time.perf_counter() - start)

        start, tasks = time.perf_counter(), []
        due = start
        for fields in todo:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            tasks.append(asyncio.create_task(one(fields)))
            due += float(draw.exponential(1 / rate))
        await asyncio.gather(*tasks)
        return Load(time.perf_counter() - start, latencies)


def case(model: Path, peers: Sequence[str] = ()) -> Outcome:
    """Ours and the peers, one after the other, in rounds."""
    kinds = [OURS, REFERENCE, *(KINDS[name] for name in peers)]
    saturated: dict[str, list[Load]] = {kind.name: [] for kind in kinds}
    arriving: dict[str, list[Load]] = {kind.name: [] for kind in kinds}
    for _ in range(ROUNDS):
        for kind in kinds:
            saturated[kind.name].append(_run(kind, model, None))
    rate = 0.9 * statistics.median(load.throughput for load in saturated["reference"])
    for _ in range(ROUNDS):
        for kind in kinds:
            arriving[kind.name].append(_run(kind, model, rate))
    rows = []
    for kind in kinds:
        full, open_loop = saturated[kind.name], arriving[kind.name]
        rows.append(
            (
                kind.name,
                statistics.median(load.throughput for load in full),
                statistics.median(load.percentile(95) for load in full),
                statistics.median(load.percentile(50) for load in open_loop),
                statistics.median(load.percentile(95) for load in open_loop),
            )
        )
    ours, others = rows[0], rows[1:]
    return Outcome(
        "load",
        f"{CLIENTS} clients, {JOBS} mixed jobs of 1 to 8 steps; then arrivals at {rate:.2f} per second",
        ("server", "pictures/s, saturated", "p95 s, saturated", "p50 s, arrivals", "p95 s, arrivals"),
        rows,
        [
            Goal("pictures/s, of the best peer's", ours[1] / max(row[1] for row in others), at_least=1.3),
            Goal("p95 of arrivals, of the best peer's", ours[4] / min(row[4] for row in others), at_most=0.6),
        ],
    )


def _run(kind: Kind, model: Path, rate: float | None) -> Load:
    with running(kind, model) as url:
        asyncio.run(closed(url, jobs(4, seed=1), 1))
        todo = jobs(JOBS)
        return asyncio.run(closed(url, todo) if rate is None else opened(url, todo, rate))
