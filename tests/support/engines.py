"""The engine with real worker processes, which run the torch-free model of `tests.support.fakes`."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from app.engine.engine import Engine
from app.engine.liveness import LivenessLimits
from app.engine.messages import Job
from app.errors import EngineStopped
from app.observability.metrics import Metrics
from app.pixels import Pixels
from app.settings import Settings
from tests.support.fakes import FAKE


@asynccontextmanager
async def running(loader: str = FAKE, limits: LivenessLimits | None = None, **knobs: Any) -> AsyncIterator[Engine]:
    failures: list[EngineStopped] = []
    engine = Engine(Settings(**{"devices": "cpu", **knobs}), Metrics(), loader, failures.append, limits)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


def job(name: str = "job", prompt: str = "", steps: int = 4, seconds: float = 50.0, seed: int = 0) -> Job:
    deadline = time.monotonic() + seconds
    return Job(name, Pixels(8, 8, bytes(192)), prompt, None, steps, 1.0, 0.0, seed, deadline)


def deaths(engine: Engine, cause: str) -> float:
    return engine.metrics.registry.get_sample_value("img2img_worker_deaths_total", {"cause": cause}) or 0.0


async def until(condition: Callable[[], Any]) -> None:
    while not condition():  # noqa: ASYNC110  what is awaited happens in another process
        await asyncio.sleep(0.01)


def pid_of(engine: Engine) -> int:
    pid = engine.workers[0].pid
    assert pid is not None
    return pid
