"""Repeated worker deaths: a request that kills every worker, and a device on which no worker starts."""

import asyncio
import signal
import subprocess
import tempfile
from pathlib import Path

import httpx2

from scripts.benchmarks.report import Goal, Outcome
from scripts.resilience.faults import CLIENTS, EVERY_SECONDS, KNOBS, load, requests
from scripts.resilience.model import FILE, NO_START
from scripts.resilience.target import FAULTY, noise_png, serving

_END_SECONDS = 60.0


def case(count: int, every: float = EVERY_SECONDS) -> Outcome:
    """Send a fatal request every few seconds under load; then kill the worker, and let every restart fail."""
    innocent, poison = _poison(count, every)
    ended = _no_start()
    return Outcome(
        "deaths",
        f"{count} requests of {CLIENTS} clients with poison among them every {every:g} s; then no worker that starts",
        ("what", "as promised", "of"),
        [
            ("innocent requests, each answered with its own image", sum(innocent), len(innocent)),
            ("poison, answered 500 worker_lost and not to be sent again", sum(poison), len(poison)),
            ("no worker that starts: ended by itself, not with 0, and with the reason last in the log", int(ended), 1),
        ],
        [
            Goal("count", "innocent requests without their image", innocent.count(False), at_most=0),
            Goal("count", "poison answered otherwise", poison.count(False), at_most=0),
            Goal("count", "poison that was sent", len(poison), at_least=1),
            Goal("count", "ends for want of a worker, as promised", int(ended), at_least=1),
        ],
    )


def _poison(count: int, every: float) -> tuple[list[bool], list[bool]]:
    todo = requests(count)
    answers: list[httpx2.Response | None] = []
    with tempfile.TemporaryDirectory() as name, serving(Path(name), FAULTY, KNOBS) as target:
        right = asyncio.run(load(target, todo)).answers

        def poison() -> bool:
            form, files = {"prompt": "poison"}, {"image": noise_png()}
            # Appended first, so that a request without an answer counts too.
            answers.append(None)
            answers[-1] = httpx2.post(f"{target.url}/img2img", data=form, files=files, trust_env=False, timeout=60)
            return True

        run = asyncio.run(load(target, todo, poison, every))
    innocent = [run.answers[number] == right[number] for number in right]
    return innocent, [
        answer is not None
        and answer.status_code == 500
        and answer.json()["code"] == "worker_lost"
        and answer.headers["x-should-retry"] == "false"
        for answer in answers
    ]


def _no_start() -> bool:
    """Whether the process ended with a code other than 0 and the reason in the last line of its log."""
    with tempfile.TemporaryDirectory() as name, serving(folder := Path(name), FAULTY, KNOBS) as target:
        (folder / FILE).write_text(NO_START)
        target.signal_worker(signal.SIGKILL)
        try:
            code = target.process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            code = 0
        last = target.log.read_text().splitlines()[-1]
    return code != 0 and "ended: " in last and "in a row died" in last
