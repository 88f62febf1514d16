"""Ten times the load that the service can handle, and one caller with many connections beside one with few."""

import asyncio
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx2

from scripts.benchmarks.report import Goal, Outcome
from scripts.resilience.model import TICK_SECONDS
from scripts.resilience.target import Target, noise_png, serving

TIMES = 10
STEPS = 20
"""Steps of each request: without batching six images a second, so sixty requests a second are ten times the load."""

DEADLINE = 5.0
KNOBS = {"max_batch": 1, "deadline_seconds": DEADLINE, "queue_size": 64}
FORM = {"prompt": "anything", "num_inference_steps": str(STEPS), "strength": "1"}


@dataclass
class Answers:
    """Latencies of answers in seconds, by their status."""

    seconds: dict[int, list[float]] = field(default_factory=dict)
    without_advice: int = 0
    """Refusals without `Retry-After`."""

    def add(self, answer: httpx2.Response, seconds: float) -> None:
        self.seconds.setdefault(answer.status_code, []).append(seconds)
        if answer.status_code in (429, 503) and "retry-after" not in answer.headers:
            self.without_advice += 1

    def of(self, *statuses: int) -> list[float]:
        return sorted(second for status in statuses for second in self.seconds.get(status, ()))


def percentile(values: list[float], percent: int) -> float:
    """A percentile of sorted values; 0 if there are none."""
    return values[min(len(values) - 1, len(values) * percent // 100)] if values else 0.0


def _client(target: Target, key: str = "") -> httpx2.AsyncClient:
    return httpx2.AsyncClient(
        base_url=target.url,
        trust_env=False,
        timeout=60,
        limits=httpx2.Limits(max_connections=None, max_keepalive_connections=200),
        headers={"X-API-Key": key} if key else {},
    )


async def _ask(client: httpx2.AsyncClient, image: bytes, answers: Answers) -> None:
    start = time.perf_counter()
    answer = await client.post("/img2img", data=FORM, files={"image": image})
    answers.add(answer, time.perf_counter() - start)


async def _capacity(target: Target, seconds: float) -> float:
    """Images a second in a closed loop of four clients."""
    answers, image, end = Answers(), noise_png(), time.perf_counter() + seconds
    async with _client(target) as client:

        async def one() -> None:
            while time.perf_counter() < end:
                await _ask(client, image, answers)

        start = time.perf_counter()
        await asyncio.gather(*(one() for _ in range(4)))
        return len(answers.of(200)) / (time.perf_counter() - start)


async def _flood(target: Target, rate: float, seconds: float) -> tuple[Answers, list[int]]:
    """An open loop of `rate` requests a second; returns answers, and the server's memory sampled once a second."""
    answers, image, memory, tasks = Answers(), noise_png(), [], []
    async with _client(target) as client:
        start = time.perf_counter()
        for number in range(int(rate * seconds)):
            await asyncio.sleep(max(0.0, start + number / rate - time.perf_counter()))
            tasks.append(asyncio.create_task(_ask(client, image, answers)))
            if number % max(1, int(rate)) == 0:
                memory.append(target.memory())
        await asyncio.gather(*tasks)
    return answers, memory


def overload(seconds: float) -> Outcome:
    """Offer ten times the requests that the service can handle."""
    with tempfile.TemporaryDirectory() as name, serving(Path(name), knobs=KNOBS) as target:
        capacity = asyncio.run(_capacity(target, min(seconds, 10)))
        answers, memory = asyncio.run(_flood(target, TIMES * capacity, seconds))
    made, refused = answers.of(200), answers.of(429, 503)
    others = sum(len(found) for status, found in answers.seconds.items() if status not in (200, 429, 503))
    # The last queued requests finish after the last arrival, so the time is a little longer than `seconds`.
    goodput = len(made) / (seconds + percentile(made, 50))
    settled = memory[len(memory) // 4 :]
    growth = max(settled) - settled[0] if settled else 0
    return Outcome(
        "overload",
        f"{TIMES * capacity:.0f} requests a second for {seconds:g} s, and {capacity:.2f} images a second can be made",
        ("images", "refused", "other answers", "p99 of images, s", "p99 of refusals, ms", "slowest", "MiB more"),
        [
            (
                *(len(made), len(refused), others, percentile(made, 99)),
                *(1000 * percentile(refused, 99), 1000 * percentile(refused, 100), growth / 2**20),
            )
        ],
        [
            Goal("time", "images a second, of what can be made", goodput / capacity, at_least=0.9),
            Goal("time", "p99 of images, s", percentile(made, 99), at_most=DEADLINE),
            Goal("time", "p99 of refusals, ms", 1000 * percentile(refused, 99), at_most=50),
            Goal("count", "answers that are neither", others, at_most=0),
            Goal("count", "refusals that do not say when to come back", answers.without_advice, at_most=0),
            Goal("memory", "MiB more at the end", growth / 2**20, at_most=16),
        ],
    )


async def _together(target: Target, seconds: float, greedy: int) -> tuple[Answers, Answers]:
    """One caller with `greedy` connections and another with one, both in a closed loop."""
    image, end = noise_png(), time.perf_counter() + seconds
    wants_all, modest = Answers(), Answers()

    async def go_on(client: httpx2.AsyncClient, answers: Answers) -> None:
        while time.perf_counter() < end:
            await _ask(client, image, answers)
            # A client waits before it retries; this one waits less than `Retry-After`.
            await asyncio.sleep(0.1)

    async with _client(target, "greedy") as one, _client(target, "modest") as other:
        tasks = [go_on(one, wants_all) for _ in range(greedy)]
        await asyncio.gather(*tasks, go_on(other, modest))
    return wants_all, modest


def fairness(seconds: float, greedy: int = 50) -> Outcome:
    """A caller with fifty connections beside a caller with one."""
    knobs = {**KNOBS, "queue_size": 16, "deadline_seconds": 60, "api_keys": "greedy,modest"}
    with tempfile.TemporaryDirectory() as name, serving(Path(name), knobs=knobs) as target:
        _, alone = asyncio.run(_together(target, seconds / 2, 0))
        wants_all, modest = asyncio.run(_together(target, seconds, greedy))
    rows = []
    for who, answers in (("modest, alone", alone), ("modest", modest), ("greedy", wants_all)):
        made = answers.of(200)
        rows.append((who, len(made), len(answers.of(429)), len(answers.of(503)), statistics.median(made or [0.0])))
    least = STEPS * TICK_SECONDS * 2
    return Outcome(
        "fairness",
        f"One caller with {greedy} connections, one with a single one, for {seconds:g} s",
        ("caller", "images", "429", "503", "p50 of images, s"),
        rows,
        [
            Goal("count", "refused to the modest one", len(modest.of(429, 503)), at_most=0),
            Goal("count", "refused to the greedy one with 429", len(wants_all.of(429)), at_least=1),
            # It waits for the image on board, the one in reserve, and one more of the other caller.
            Goal("time", "p50 of the modest one, in images' times", rows[1][4] / least, at_most=6),
        ],
    )
