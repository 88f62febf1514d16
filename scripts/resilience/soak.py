"""Hours of good, bad, cancelled and slow requests, with memory, descriptors, threads and latency over time."""

import argparse
import asyncio
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
from rich.console import Console

from app.engine.engine import LOADER
from scripts.benchmarks import report
from scripts.benchmarks.report import Goal, Outcome
from scripts.resilience.disconnects import raw_request
from scripts.resilience.target import FAULTY, Target, noise_png, serving

CLIENTS = 6
SAMPLES = 240
"""The approximate number of samples of a run."""

WARM = 0.25
"""The fraction of the run after which nothing may grow."""


@dataclass
class Sample:
    """Measurements at one time. Memory in bytes, latency in seconds."""

    second: float
    memory: int
    all_memory: int
    descriptors: int
    threads: int
    latency: float


@dataclass
class Traffic:
    """The requests sent so far, and unexpected answers."""

    target: Target
    draw: random.Random
    latencies: list[float] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    surprises: list[str] = field(default_factory=list)

    def note(self, what: str, answer: httpx2.Response | None, *expected: int) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1
        if answer is not None and answer.status_code not in expected:
            self.surprises.append(f"{what}: {answer.status_code} {answer.text[:200]}")

    async def good(self, client: httpx2.AsyncClient) -> None:
        """A valid request."""
        steps = str(self.draw.randrange(1, 9))
        form = {"prompt": f"wizard {self.draw.randrange(50)}", "num_inference_steps": steps, "strength": "1"}
        start = time.perf_counter()
        side = self.draw.choice((64, 256, 512, 700))
        image = await asyncio.to_thread(noise_png, self.draw.randrange(20), side)
        answer = await client.post("/img2img", data=form, files={"image": image})
        self.latencies.append(time.perf_counter() - start)
        self.note("good", answer, 200)

    async def bad(self, client: httpx2.AsyncClient) -> None:
        """A request that must be refused."""
        image = noise_png()
        form, file = self.draw.choice(
            [
                ({"prompt": "x", "strength": "0.1"}, image),
                ({"prompt": "x", "strenght": "1"}, image),
                ({"prompt": "x"}, image[: len(image) // 2]),
                ({"prompt": "x"}, b""),
                ({"prompt": "x"}, b"GIF89a" + bytes(100)),
                ({"prompt": "x"}, bytes(21 * 1024**2)),
                ({}, image),
            ]
        )
        self.note("bad", await client.post("/img2img", data=form, files={"image": file}), 413, 415, 422)

    async def gone(self, client: httpx2.AsyncClient) -> None:
        """A client that disconnects."""
        await self._raw(self.draw.uniform(0, 0.3), 1.0)
        self.note("gone", None)

    async def slow(self, client: httpx2.AsyncClient) -> None:
        """A body that arrives slowly and stops."""
        await self._raw(self.draw.uniform(0.5, 2), 0.0)
        self.note("slow", None)

    async def _raw(self, seconds: float, part: float) -> None:
        address = urlsplit(self.target.url)
        data = raw_request(noise_png(), 0)
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        with suppress(ConnectionError, TimeoutError):
            if part:
                writer.write(data[: self.draw.randrange(len(data))] if self.draw.random() < 0.5 else data)
                async with asyncio.timeout(seconds):
                    await reader.read(1)
            else:
                for byte in data[:100]:
                    writer.write(bytes([byte]))
                    await asyncio.sleep(seconds / 100)
        writer.transport.abort()

    async def probe(self, client: httpx2.AsyncClient) -> None:
        """The requests of a monitoring system."""
        for path in ("/health/ready", "/metrics", "/nowhere"):
            self.note("probe", await client.get(path), 200, 404)


async def _mix(traffic: Traffic, seconds: float) -> None:
    kinds: list[Callable[[httpx2.AsyncClient], Awaitable[None]]]
    kinds = [*[traffic.good] * 10, *[traffic.bad] * 3, *[traffic.gone] * 3, traffic.slow, traffic.probe]
    end = time.monotonic() + seconds
    async with httpx2.AsyncClient(base_url=traffic.target.url, trust_env=False, timeout=120) as client:

        async def one() -> None:
            while time.monotonic() < end:
                await traffic.draw.choice(kinds)(client)

        await asyncio.gather(*(one() for _ in range(CLIENTS)))


async def _soak(target: Target, seconds: float) -> tuple[Traffic, list[Sample]]:
    traffic, seen, start = Traffic(target, random.Random(0)), [], time.monotonic()
    mixing = asyncio.create_task(_mix(traffic, seconds))
    while not mixing.done():
        await asyncio.wait({mixing}, timeout=max(0.5, seconds / SAMPLES))
        lately, traffic.latencies = traffic.latencies, []
        seen.append(
            Sample(
                *(time.monotonic() - start, target.memory(), target.all_memory()),
                *(target.descriptors(), target.threads(), statistics.median(lately or [0.0])),
            )
        )
    await mixing
    return traffic, seen


def case(minutes: float, loader: str = FAULTY, **knobs: object) -> tuple[Outcome, list[Sample]]:
    """Run the traffic; returns the outcome and the samples.

    Args:
        minutes: the duration of the traffic.
        loader: the `module:function` that loads the worker's model: by default a fake one.
        knobs: settings by name.
    """
    with tempfile.TemporaryDirectory() as name, serving(Path(name), loader, knobs) as target:
        traffic, seen = asyncio.run(_soak(target, 60 * minutes))
        deaths = target.log.read_text().count(" died ")
        tracebacks = target.log.read_text().count("Traceback")
    warm = seen[int(len(seen) * WARM) :]
    half = len(warm) // 2 or 1
    growth = {
        what: statistics.median(getattr(one, what) for one in warm[half:] or warm)
        - statistics.median(getattr(one, what) for one in warm[:half])
        for what in ("memory", "all_memory", "descriptors", "threads")
    }
    late = statistics.median(one.latency for one in warm[half:] or warm)
    early = statistics.median(one.latency for one in warm[:half])
    for surprise in traffic.surprises[:5]:
        print(surprise)
    counts = traffic.counts
    return Outcome(
        "soak",
        f"{minutes:g} minutes of mixed traffic by {CLIENTS} clients; growth from half to half of the last 3/4",
        ("good", "bad", "hung up", "slow", "MiB", "MiB with workers", "descriptors", "threads", "latency, s", "before"),
        [
            (
                *(counts.get(what, 0) for what in ("good", "bad", "gone", "slow")),
                *(growth["memory"] / 2**20, growth["all_memory"] / 2**20),
                *(growth["descriptors"], growth["threads"], late, early),
            )
        ],
        [
            Goal("count", "images, at least", counts.get("good", 0), at_least=1),
            Goal("count", "answers that surprise", len(traffic.surprises), at_most=0),
            Goal("count", "workers and decoders that died", deaths, at_most=0),
            Goal("count", "tracebacks in the log", tracebacks, at_most=0),
            Goal("memory", "MiB more in the API process", growth["memory"] / 2**20, at_most=16),
            Goal("memory", "MiB more in all", growth["all_memory"] / 2**20, at_most=64),
            Goal("count", "descriptors more", growth["descriptors"], at_most=8),
            Goal("count", "threads more", growth["threads"], at_most=2),
        ],
    ), seen


def draw(seen: list[Sample], file: Path) -> None:
    """Draw four curves over time into an image file."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot

    figure, places = pyplot.subplots(1, 4, figsize=(14, 3), layout="constrained")
    minutes = [one.second / 60 for one in seen]
    curves = (
        ("memory, MiB", [one.all_memory / 2**20 for one in seen]),
        ("descriptors", [one.descriptors for one in seen]),
        ("threads", [one.threads for one in seen]),
        ("latency, median, s", [one.latency for one in seen]),
    )
    for axes, (name, values) in zip(places, curves, strict=True):
        axes.plot(minutes, values)
        axes.set(xlabel="minutes", title=name)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    places[0].plot(minutes, [one.memory / 2**20 for one in seen], color="tab:orange", label="the API process")
    places[0].legend()
    facts = report.machine()
    figure.supxlabel(f"{facts['processor']}, {facts['cores']} cores, {facts['date']}", fontsize="small", color="grey")
    figure.savefig(file, dpi=80)


def main() -> int:
    """Run the soak test; returns 1 if a goal was missed."""
    parser = argparse.ArgumentParser(prog="scripts/soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=1, help="duration (default: 1)")
    parser.add_argument("--embedded", action="store_true", help="use the embedded model instead of a fake one")
    parser.add_argument(
        "--plot",
        type=Path,
        metavar="FILE",
        help="draw the samples over time into this file, relative to the project's folder",
    )
    parser.add_argument("--samples", type=Path, metavar="FILE", help="write the samples as JSON lines")
    options = parser.parse_args()
    if options.minutes <= 0:
        parser.error("--minutes must be more than 0")
    model = {"loader": LOADER, "model": "embedded"} if options.embedded else {}
    outcome, seen = case(options.minutes, **model)
    report.show(outcome, Console())
    if options.samples:
        options.samples.write_text("".join(json.dumps(vars(one)) + "\n" for one in seen))
    if options.plot:
        draw(seen, options.plot)
    print(report.line([outcome]))
    return 0 if all(goal.met for goal in outcome.goals) else 1


if __name__ == "__main__":
    sys.exit(main())
