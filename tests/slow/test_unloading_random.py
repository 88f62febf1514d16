"""A worker that is unloaded and woken at random times, on a clock that runs ahead."""

import asyncio
import random
from typing import Any

import pytest

from app.engine.engine import Engine
from app.engine.messages import Job
from app.observability.metrics import Metrics
from app.pixels import Pixels
from app.settings import Settings
from tests.support.virtual_time import PretendProcess, VirtualTime, pretend_workers


def test_no_request_is_lost_at_10_000_random_times_around_unloading(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop, draw = VirtualTime(), random.Random(0)

    async def spawn(start: Any) -> PretendProcess:
        await asyncio.sleep(draw.uniform(0, 0.5))
        return PretendProcess(draw)

    pretend_workers(monkeypatch, loop, spawn)
    PretendProcess.started = 0
    idle = 5.0

    async def all_of_them() -> int:
        settings = Settings(devices="cpu", idle_unload_seconds=idle)
        engine = Engine(settings, Metrics(), "pretended:load", lambda failure: None)
        await engine.start()
        answered = 0
        for seed in range(10_000):
            pixels = Pixels(1, 1, bytes(3))
            sent_job = Job(f"job {seed}", pixels, "", None, 1, 1.0, 0.0, seed, loop.time() + 60)
            result = await engine.run(sent_job)
            answered += result.pixels.data[0] == seed % 251
            # Around the time when the worker is unloaded, and the second in which the next one starts.
            await asyncio.sleep(max(0.0, draw.gauss(idle + 0.5, 0.6)))
        assert engine.metrics.registry.get_sample_value("img2img_worker_deaths_total", {"cause": "exit"}) == 0
        await engine.stop()
        return answered

    try:
        assert loop.run_until_complete(all_of_them()) == 10_000
    finally:
        loop.close()
    # It was unloaded thousands of times, and kept thousands of times.
    assert 2000 < PretendProcess.started < 9000
