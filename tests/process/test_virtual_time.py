"""The engine with pretended workers on a virtual clock."""

import asyncio
import random
import selectors
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from app.engine.engine import Engine
from app.engine.messages import Done, Job, ModelInfo, Ready, Result, Started
from app.observability.metrics import Metrics
from app.pixels import Pixels
from app.settings import Settings
from tests.support.engines import deaths, pid_of, until


class VirtualTime(asyncio.SelectorEventLoop):
    """An event loop whose waits end at once, while its clock moves on by their length."""

    def __init__(self) -> None:
        self.now = 1000.0
        selector = selectors.SelectSelector()
        super().__init__(selector)
        real = selector.select

        def select(timeout: float | None = None) -> Any:
            assert timeout is not None, "all tasks wait, and nothing will happen"
            self.now += max(0.0, timeout)
            return real(0)

        selector.select = select  # type: ignore[method-assign]

    def time(self) -> float:
        return self.now


class PretendProcess:
    """What the supervisor sees of a worker process. A message after `close` is lost, as with a real one."""

    started = 0

    def __init__(self, draw: random.Random) -> None:
        type(self).started += 1
        self.pid = type(self).started
        self.draw = draw
        self.out: asyncio.Queue[Any] = asyncio.Queue()
        self.closed = False
        asyncio.get_running_loop().call_later(draw.uniform(0.1, 3), self._say, self._ready())

    def _ready(self) -> Ready:
        return Ready(ModelInfo("pretended", "", "", "cpu", "", "", "EulerAncestralDiscreteScheduler"), 0.5, 4, 0.0)

    def _say(self, message: Any) -> None:
        if not self.closed:
            self.out.put_nowait(message)

    def send(self, message: Any) -> None:
        if self.closed or not isinstance(message, Job):
            return
        loop, seconds = asyncio.get_running_loop(), self.draw.uniform(0.01, 2)
        loop.call_later(seconds / 2, self._say, Started(message.id))
        result = Result(Pixels(1, 1, bytes([message.seed % 251] * 3)), 1, 999.0)
        loop.call_later(seconds, self._say, Done(message.id, result, 1))

    async def messages(self) -> AsyncIterator[Any]:
        while (message := await self.out.get()) is not None:
            yield message

    def close(self) -> None:
        self.closed = True
        self.out.put_nowait(None)

    kill = close

    async def stop(self) -> int:
        self.close()
        await asyncio.sleep(self.draw.uniform(0, 1))
        return 0


def test_no_request_is_lost_at_10_000_random_times_around_unloading(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop, draw = VirtualTime(), random.Random(0)
    clock = SimpleNamespace(monotonic=loop.time)
    monkeypatch.setattr("app.engine.supervisor.time", clock)
    monkeypatch.setattr("app.engine.liveness.time", clock)
    monkeypatch.setattr("app.engine.engine.time", clock)

    class Spawner:
        @staticmethod
        async def spawn(start: Any) -> PretendProcess:
            await asyncio.sleep(draw.uniform(0, 0.5))
            return PretendProcess(draw)

    monkeypatch.setattr("app.engine.supervisor.WorkerProcess", Spawner)
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


class MuteProcess(PretendProcess):
    """Sends that it is ready, and nothing more."""

    def send(self, message: Any) -> None:
        pass


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "with a job"])
def test_mute_worker_is_killed_in_time_under_the_default_settings(monkeypatch: pytest.MonkeyPatch, busy: bool) -> None:
    """Idle: within the ten seconds that the README promises. With a job: long before the job's deadline."""
    loop, draw, settings = VirtualTime(), random.Random(0), Settings(devices="cpu")
    clock = SimpleNamespace(monotonic=loop.time)
    monkeypatch.setattr("app.engine.supervisor.time", clock)
    monkeypatch.setattr("app.engine.liveness.time", clock)
    monkeypatch.setattr("app.engine.engine.time", clock)

    class Spawner:
        @staticmethod
        async def spawn(start: Any) -> MuteProcess:
            return MuteProcess(draw)

    monkeypatch.setattr("app.engine.supervisor.WorkerProcess", Spawner)

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
