"""Ten times the load that the service can bear, and one caller who wants it all."""

import asyncio
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx2

from scripts.benchmarks.report import Goal, Outcome
from scripts.resilience.model import TICK_SECONDS
from scripts.resilience.target import Target, picture, serving

TIMES = 10
STEPS = 20
"""Of each request, alone in its calls: six pictures a second, so that sixty requests a second are ten times as many."""

DEADLINE = 5.0
KNOBS = {"max_batch": 1, "deadline_seconds": DEADLINE, "queue_size": 64}
FORM = {"prompt": "anything", "num_inference_steps": str(STEPS), "strength": "1"}


@dataclass
class Answers:
    """Seconds that answers took, by their status."""

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
    """Of sorted values; 0 if there are none."""
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
    """Pictures a second of four clients who wait for each other's pictures and for nothing else."""
    answers, image, end = Answers(), picture(), time.perf_counter() + seconds
    async with _client(target) as client:

        async def one() -> None:
            while time.perf_counter() < end:
                await _ask(client, image, answers)

        start = time.perf_counter()
        await asyncio.gather(*(one() for _ in range(4)))
        return len(answers.of(200)) / (time.perf_counter() - start)


async def _flood(target: Target, rate: float, seconds: float) -> tuple[Answers, list[int]]:
    """So many requests a second, whether others are done or not; and the server's memory, once a second."""
    answers, image, memory, tasks = Answers(), picture(), [], []
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
    """What is offered is ten times what can be made."""
    with tempfile.TemporaryDirectory() as name, serving(Path(name), knobs=KNOBS) as target:
        capacity = asyncio.run(_capacity(target, min(seconds, 10)))
        answers, memory = asyncio.run(_flood(target, TIMES * capacity, seconds))
    made, refused = answers.of(200), answers.of(429, 503)
    others = sum(len(found) for status, found in answers.seconds.items() if status not in (200, 429, 503))
    # The queue is full at the start and at the end, so that what is made takes a little longer than what is offered.
    goodput = len(made) / (seconds + percentile(made, 50))
    settled = memory[len(memory) // 4 :]
    growth = max(settled) - settled[0] if settled else 0
    return Outcome(
        "overload",
        f"{TIMES * capacity:.0f} requests a second for {seconds:g} s, and {capacity:.2f} pictures a second can be made",
        ("pictures", "refused", "other answers", "p99 of pictures, s", "p99 of refusals, ms", "slowest", "MiB more"),
        [
            (
                *(len(made), len(refused), others, percentile(made, 99)),
                *(1000 * percentile(refused, 99), 1000 * percentile(refused, 100), growth / 2**20),
            )
        ],
        [
            Goal("time", "pictures a second, of what can be made", goodput / capacity, at_least=0.9),
            Goal("time", "p99 of pictures, s", percentile(made, 99), at_most=DEADLINE),
            Goal("time", "p99 of refusals, ms", 1000 * percentile(refused, 99), at_most=50),
            Goal("count", "answers that are neither", others, at_most=0),
            Goal("count", "refusals that do not say when to come back", answers.without_advice, at_most=0),
            Goal("memory", "MiB more at the end", growth / 2**20, at_most=16),
        ],
    )


async def _together(target: Target, seconds: float, greedy: int) -> tuple[Answers, Answers]:
    """One caller with so many connections, another with one; both go on asking."""
    image, end = picture(), time.perf_counter() + seconds
    wants_all, modest = Answers(), Answers()

    async def go_on(client: httpx2.AsyncClient, answers: Answers) -> None:
        while time.perf_counter() < end:
            await _ask(client, image, answers)
            # As a client does that is told to come back; only sooner.
            await asyncio.sleep(0.1)

    async with _client(target, "greedy") as one, _client(target, "modest") as other:
        tasks = [go_on(one, wants_all) for _ in range(greedy)]
        await asyncio.gather(*tasks, go_on(other, modest))
    return wants_all, modest


def fairness(seconds: float, greedy: int = 50) -> Outcome:
    """A caller with fifty connections beside one with a single one."""
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
        ("caller", "pictures", "429", "503", "p50 of pictures, s"),
        rows,
        [
            Goal("count", "refused to the modest one", len(modest.of(429, 503)), at_most=0),
            Goal("count", "refused to the greedy one with 429", len(wants_all.of(429)), at_least=1),
            # Its turn comes after what is on board, in reserve, and one more of the other.
            Goal("time", "p50 of the modest one, in pictures' times", rows[1][4] / least, at_most=6),
        ],
    )
