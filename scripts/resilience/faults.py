"""Faults under load. Every accepted request must get the image that it gets without faults."""

import asyncio
import hashlib
import itertools
import signal
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx2

from scripts.benchmarks.report import Goal, Outcome
from scripts.resilience.model import FILE, STARTS
from scripts.resilience.target import FAULTY, Target, noise_png, serving

CLIENTS = 16
EVERY_SECONDS = 3.0
KNOBS = {"tick_timeout_seconds": 1.0, "load_timeout_seconds": 2.0, "queue_size": 64, "max_batch": 4}

Fault = Callable[[Target, Path], bool]
"""Causes a fault; returns False if there was no worker to cause it in."""
Fields = dict[str, str]


def _instruct(what: str) -> Fault:
    """A fault that the fake model causes in itself."""

    def do(target: Target, folder: Path) -> bool:
        taken = not (folder / FILE).exists()
        # Renamed into place, so that the model never reads half of it.
        (folder / "next").write_text(what)
        (folder / "next").rename(folder / FILE)
        if what in STARTS:
            target.signal_worker(signal.SIGKILL)
        return taken

    return do


def _signal(number: signal.Signals) -> Fault:
    return lambda target, folder: target.signal_worker(number)


FROM_OUTSIDE: dict[str, Fault] = {"SIGKILL": _signal(signal.SIGKILL), "SIGSTOP": _signal(signal.SIGSTOP)}
FROM_INSIDE: dict[str, Fault] = {
    what: _instruct(what)
    for what in (
        "exit in a call",
        "hang in a call",
        "exception",
        "out of memory once",
        "out of memory for more than two",
        "device lost",
        "garbage on the pipe",
        *STARTS,
    )
}


@dataclass
class Run:
    """The answers of one run. Times are readings of `time.monotonic()`."""

    answers: dict[int, str] = field(default_factory=dict)
    """By request number: the SHA-256 of the image, or the error as text."""

    done: list[float] = field(default_factory=list)
    faults: list[float] = field(default_factory=list)

    def silences(self) -> list[float]:
        """For each fault, the longest time without an answer between it and the next one, in seconds."""
        found = []
        for start, end in zip(self.faults, [*self.faults[1:], float("inf")], strict=False):
            inside = [start, *(moment for moment in self.done if start <= moment < end)]
            found.append(max((b - a for a, b in itertools.pairwise(inside)), default=0.0))
        return found


def requests(count: int) -> list[Fields]:
    """Different requests of one to eight steps, each with its own seed."""
    return [
        {"prompt": f"number {seed}", "seed": str(seed), "num_inference_steps": str(1 + seed % 8), "strength": "1"}
        for seed in range(count)
    ]


async def ask(client: httpx2.AsyncClient, fields: Fields, image: bytes) -> str:
    """The SHA-256 of the image, or the error as text."""
    try:
        answer = await client.post("/img2img", data=fields, files={"image": image})
    except httpx2.HTTPError as error:
        return repr(error)
    return hashlib.sha256(answer.content).hexdigest() if answer.is_success else f"{answer.status_code} {answer.text}"


async def load(
    target: Target, todo: Sequence[Fields], fault: Callable[[], bool] | None = None, every: float = EVERY_SECONDS
) -> Run:
    """Send all requests from `CLIENTS` clients, each one at a time, with a fault every few seconds."""
    run, queue, image = Run(), list(enumerate(todo)), noise_png()
    limits = httpx2.Limits(max_connections=None)
    async with httpx2.AsyncClient(base_url=target.url, trust_env=False, timeout=120, limits=limits) as client:

        async def one() -> None:
            while queue:
                number, fields = queue.pop(0)
                run.answers[number] = await ask(client, fields, image)
                run.done.append(time.monotonic())

        async def disturb() -> None:
            while fault:
                await asyncio.sleep(every if run.faults else 1.0)
                moment = time.monotonic()
                if await asyncio.to_thread(fault):
                    run.faults.append(moment)

        disturbing = asyncio.create_task(disturb())
        await asyncio.gather(*(one() for _ in range(CLIENTS)))
        disturbing.cancel()
        # An exception of the fault itself must fail the run.
        with suppress(asyncio.CancelledError):
            await disturbing
    return run


def case(count: int, every: float = EVERY_SECONDS, loader: str = FAULTY, **knobs: object) -> Outcome:
    """Each fault on a server of its own: all faults with the fake model, signals to the worker with any model."""
    chosen = {**FROM_OUTSIDE, **(FROM_INSIDE if loader == FAULTY else {})}
    todo, rows = requests(count), []
    with tempfile.TemporaryDirectory() as name, serving(Path(name), loader, {**KNOBS, **knobs}) as target:
        right = asyncio.run(load(target, todo)).answers
    for what, fault in chosen.items():
        with tempfile.TemporaryDirectory() as name, serving(folder := Path(name), loader, {**KNOBS, **knobs}) as target:
            # A start that hangs has to be found first: an earlier fault would count as the same one.
            pause = 2 * every if what in STARTS else every
            run = asyncio.run(load(target, todo, lambda: fault(target, folder), pause))  # noqa: B023
        wrong = [number for number, answer in run.answers.items() if answer != right[number]]
        lost = [number for number in wrong if " " in run.answers[number]]
        silences = run.silences() or [0.0]
        rows.append(
            (
                *(what, count, len(run.faults), count - len(wrong), len(wrong) - len(lost), len(lost)),
                *(statistics.median(silences), max(silences)),
            )
        )
        for number in lost[:3]:
            print(f"{what}: request {number}: {run.answers[number]}")
    return Outcome(
        "faults",
        f"{count} requests of {CLIENTS} clients, a fault every {every:g} s",
        ("fault", "requests", "faults", "right", "wrong", "lost", "s without an answer, median", "at most"),
        rows,
        [
            Goal("count", "wrong", sum(row[4] for row in rows), at_most=0),
            Goal("count", "lost", sum(row[5] for row in rows), at_most=0),
            Goal("count", "faults of a kind, at least", min(row[2] for row in rows), at_least=1),
        ],
    )
