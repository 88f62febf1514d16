"""When a worker that sends nothing is killed, on a clock that runs ahead."""

import asyncio
import random
from typing import Any

import pytest

from app.engine.engine import Engine
from app.engine.messages import Job
from app.observability.metrics import Metrics
from app.pixels import Pixels
from app.settings import Settings
from tests.support.engines import deaths, pid_of, until
from tests.support.virtual_time import PretendProcess, VirtualTime, pretend_workers


class MuteProcess(PretendProcess):
    """Sends that it is ready, and nothing more."""

    def send(self, message: Any) -> None:
        pass


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "with a job"])
def test_mute_worker_is_killed_in_time_under_the_default_settings(monkeypatch: pytest.MonkeyPatch, busy: bool) -> None:
    """Idle: within the ten seconds that `LivenessLimits` promises. With a job: long before the job's deadline."""
    loop, draw, settings = VirtualTime(), random.Random(0), Settings(devices="cpu")

    async def spawn(start: Any) -> MuteProcess:
        return MuteProcess(draw)

    pretend_workers(monkeypatch, loop, spawn)

    async def seconds_until_killed() -> float:
        engine = Engine(settings, Metrics(), "pretended:load", lambda failure: None)
        await engine.start()
        await until(lambda: engine.ready)
        start, pid = loop.time(), pid_of(engine)
        sent_job = Job("job", Pixels(1, 1, bytes(3)), "", None, 1, 1.0, 0.0, 0, start + settings.deadline_seconds)
        task = asyncio.create_task(engine.run(sent_job)) if busy else None
        await until(lambda: engine.workers[0].pid != pid)
        seconds = loop.time() - start
        if task:
            task.cancel()
        await until(lambda: deaths(engine, "hang") == 1)
        await engine.stop()
        return seconds

    try:
        seconds = loop.run_until_complete(seconds_until_killed())
    finally:
        loop.close()
    assert seconds < (settings.deadline_seconds / 2 if busy else 10)
