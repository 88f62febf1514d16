"""One device's worker over its life: canaries, sleep, too little memory, a lost device."""

import asyncio
import os
import random
import selectors
import signal
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from app.engine.engine import Engine
from app.engine.liveness import LivenessLimits
from app.engine.messages import Cancel, Done, Job, ModelInfo, Ready, Result, Started
from app.engine.supervisor import WorkerState
from app.errors import DeadlineExceeded, OutOfMemory, ShuttingDown, Unavailable, WorkerLost
from app.observability.metrics import Metrics
from app.pixels import Pixels
from app.settings import Settings
from tests.support.engines import deaths, in_a_loop, job, pid_of, running, until


def sample(engine: Engine, name: str, **labels: str) -> float | None:
    return engine.metrics.registry.get_sample_value(name, labels)


class TestCanary:
    @in_a_loop
    async def test_an_idle_worker_that_stops_computing_is_not_ready_and_is_replaced(self) -> None:
        async with running() as engine:
            await until(lambda: engine.ready)
            pid = pid_of(engine)
            os.kill(pid, signal.SIGSTOP)
            await until(lambda: not engine.ready)
            assert (await engine.run(job(seed=1))).pixels.data[0] == 1 + 4
            assert pid_of(engine) != pid
            assert deaths(engine, "hang") == 1

    @in_a_loop
    async def test_a_worker_that_answers_but_makes_no_pictures_is_replaced(self, tmp_path: Path) -> None:
        broken = tmp_path / "broken"
        async with running(limits=LivenessLimits(canary=0.3), model=f"until={broken}") as engine:
            await until(lambda: engine.ready)
            broken.touch()
            await until(lambda: not engine.ready)
            broken.unlink()
            await until(lambda: engine.ready)
            assert deaths(engine, "canary") >= 1

    @in_a_loop
    async def test_an_idle_worker_that_computes_is_left_alone(self) -> None:
        async with running(limits=LivenessLimits(canary=0.05, watch=0.02)) as engine:
            await until(lambda: engine.ready)
            pid = pid_of(engine)
            for _ in range(20):
                await asyncio.sleep(0.1)
                assert engine.ready
            assert pid_of(engine) == pid
            assert engine.workers[0].deaths_in_a_row == 0

    @in_a_loop
    async def test_a_busy_worker_that_falls_silent_is_not_ready_though_its_job_may_still_come(self) -> None:
        async with running(limits=LivenessLimits(silence=0.3, watch=0.05)) as engine:
            await until(lambda: engine.ready)
            task = asyncio.create_task(engine.run(job(prompt="tick=1.5", steps=1, seed=1)))
            await until(lambda: not engine.ready)
            assert (await task).pixels.data[0] == 2
            assert engine.ready
            assert engine.workers[0].deaths_in_a_row == 0

    @in_a_loop
    async def test_a_silence_in_which_this_process_did_not_run_itself_is_no_fault_of_the_worker(self) -> None:
        async with running(limits=LivenessLimits(late=0.5, watch=0.1), tick_timeout_seconds=1.2) as engine:
            await until(lambda: engine.ready)
            task = asyncio.create_task(engine.run(job(prompt="tick=2", steps=1)))
            await until(lambda: engine.workers[0].tickets)
            await asyncio.sleep(0.1)
            time.sleep(1.4)  # noqa: ASYNC251  as if the whole machine had been suspended
            await task
            assert deaths(engine, "hang") == 0

    @in_a_loop
    async def test_a_call_that_hangs_costs_no_request_under_the_settings_that_everybody_has(
        self, tmp_path: Path
    ) -> None:
        async with running(limits=LivenessLimits(hang=0.5)) as engine:
            await until(lambda: engine.ready)
            assert engine.settings.tick_timeout_seconds > engine.settings.deadline_seconds
            result = await engine.run(job(prompt=f"hang_at=2 once={tmp_path / 'hung'}", seed=4))
            assert result.pixels.data[0] == 4 + 4
            assert deaths(engine, "hang") == 1

    @in_a_loop
    async def test_a_worker_that_stands_still_is_noticed_though_nobody_waits_long_for_it(self) -> None:
        async with running(limits=LivenessLimits(silence=1.0, hang=2.5)) as engine:
            await until(lambda: engine.ready)
            pid, seen = pid_of(engine), set()
            os.kill(pid, signal.SIGSTOP)
            while engine.workers[0].pid == pid:
                with suppress(DeadlineExceeded):
                    await engine.run(job(f"j{time.monotonic()}", seconds=0.3))
                seen.add(engine.ready)
            assert seen == {True, False}
            await until(lambda: engine.ready)
            assert deaths(engine, "hang") == 1

    @in_a_loop
    async def test_a_job_that_was_taken_back_at_once_is_no_hang(self) -> None:
        async with running(limits=LivenessLimits(silence=0.5, watch=0.05)) as engine:
            await until(lambda: engine.ready)
            for number in range(20):
                task = asyncio.create_task(engine.run(job(f"j{number}")))
                await asyncio.sleep(0)
                task.cancel()
                await asyncio.sleep(0.1)
                assert engine.ready
            assert deaths(engine, "hang") == 0


class TestTrouble:
    @in_a_loop
    async def test_too_little_memory_halves_the_batch_for_good_and_shows_in_the_metrics(self) -> None:
        async with running(max_batch=8) as engine:
            await until(lambda: engine.ready)
            assert sample(engine, "img2img_batch_limit", device="cpu") == 8
            jobs = [job(f"j{seed}", "oom_above=2 tick=0.05", seed=seed) for seed in range(8)]
            results = await asyncio.gather(*(engine.run(each) for each in jobs))
            assert [result.pixels.data[0] for result in results] == [seed + 4 for seed in range(8)]
            limit = sample(engine, "img2img_batch_limit", device="cpu")
            assert limit in (1, 2)
            # Under the next worker too.
            os.kill(pid_of(engine), signal.SIGKILL)
            await until(lambda: not engine.workers[0].takes_jobs)
            await until(lambda: engine.ready)
            assert sample(engine, "img2img_batch_limit", device="cpu") == engine.workers[0].capacity == limit

    @in_a_loop
    async def test_a_job_for_which_there_is_never_enough_memory_is_refused_but_may_be_sent_again(self) -> None:
        async with running() as engine:
            with pytest.raises(OutOfMemory) as error:
                await engine.run(job(prompt="oom_at=1"))
            assert (error.value.status, error.value.retryable) == (503, True)
            assert (await engine.run(job(seed=1))).pixels.data[0] == 1 + 4
            assert engine.workers[0].deaths_in_a_row == 0

    @in_a_loop
    async def test_a_lost_device_costs_the_worker_and_only_time(self, tmp_path: Path) -> None:
        async with running() as engine:
            result = await engine.run(job(prompt=f"sick_at=2 once={tmp_path / 'sick'}", seed=1))
            assert result.pixels.data[0] == 1 + 4
            assert deaths(engine, "device") == 1
            with pytest.raises(WorkerLost):
                await engine.run(job(prompt="sick_at=2"))


class TestDevice:
    @in_a_loop
    async def test_lost_gpu_ends_the_engine_and_is_not_replaced_by_the_cpu(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        gpu = tmp_path / "gpu"
        gpu.touch()
        async with running("tests.support.fakes:removable", devices="auto", model=str(gpu)) as engine:
            await until(lambda: engine.ready)
            gpu.unlink()
            os.kill(pid_of(engine), signal.SIGKILL)
            await until(lambda: engine.failure or (deaths(engine, "exit") and engine.ready))
            assert str(engine.failure) == "The worker on cuda:0 cannot be replaced: there is no cuda:0"
            assert f"the engine gives up: {engine.failure}" in caplog.messages
            assert engine.info is not None
            assert engine.info.device == "cuda:0"
            assert deaths(engine, "exit") == 1

    @in_a_loop
    async def test_lost_gpu_ends_the_engine_when_a_sleeping_worker_wakes(self, tmp_path: Path) -> None:
        gpu = tmp_path / "gpu"
        gpu.touch()
        async with running(
            "tests.support.fakes:removable", devices="auto", model=str(gpu), idle_unload_seconds=0.3
        ) as engine:
            await until(lambda: engine.workers[0].asleep)
            gpu.unlink()
            with pytest.raises(Unavailable, match="stopped"):
                await engine.run(job())
            assert "cuda:0 cannot be replaced" in str(engine.failure)

    @in_a_loop
    async def test_gpu_that_comes_later_leaves_the_next_worker_on_the_cpu(self, tmp_path: Path) -> None:
        gpu = tmp_path / "gpu"
        async with running("tests.support.fakes:removable", devices="auto", model=str(gpu)) as engine:
            await until(lambda: engine.ready)
            pid = pid_of(engine)
            gpu.touch()
            os.kill(pid, signal.SIGKILL)
            await until(lambda: deaths(engine, "exit") and engine.ready)
            assert pid_of(engine) != pid
            assert engine.info is not None
            assert engine.info.device == "cpu"


class TestSleep:
    @in_a_loop
    async def test_an_idle_worker_goes_and_the_next_job_starts_another(self) -> None:
        async with running(idle_unload_seconds=0.3) as engine:
            await until(lambda: engine.ready)
            pid = pid_of(engine)
            lane = engine.workers[0]
            await until(lambda: lane.asleep and not Path(f"/proc/{pid}").exists())
            assert engine.ready, "it can still be asked"
            assert engine.info
            with engine.admit(3) as deadline:
                assert deadline > time.monotonic()
            assert (await engine.run(job(seed=1))).pixels.data[0] == 1 + 4
            assert not lane.asleep
            assert deaths(engine, "exit") == 0
            await until(lambda: lane.asleep)

    @in_a_loop
    async def test_one_that_wakes_up_is_ready_for_those_who_would_turn_away(self) -> None:
        async with running(idle_unload_seconds=0.3) as engine:
            await until(lambda: engine.workers[0].asleep)
            task = asyncio.create_task(engine.run(job(seed=1)))
            await asyncio.sleep(0)
            while not task.done():
                assert engine.ready
                await asyncio.sleep(0.01)
            assert (await task).pixels.data[0] == 1 + 4

    @in_a_loop
    async def test_one_that_dies_when_it_wakes_up_is_not(self) -> None:
        async with running(idle_unload_seconds=0.3) as engine:
            await until(lambda: engine.workers[0].asleep and not engine.workers[0].pid)
            task = asyncio.create_task(engine.run(job(seed=1)))
            await until(lambda: engine.workers[0].pid)
            os.kill(pid_of(engine), signal.SIGKILL)
            await until(lambda: not engine.ready)
            assert (await task).pixels.data[0] == 1 + 4
            assert engine.ready

    @in_a_loop
    async def test_it_does_not_go_while_it_works(self) -> None:
        async with running(idle_unload_seconds=0.2) as engine:
            await until(lambda: engine.ready)
            await engine.run(job(prompt="tick=0.3", steps=4))
            assert deaths(engine, "exit") == 0

    @in_a_loop
    async def test_only_as_many_wake_as_are_needed(self) -> None:
        async with running(idle_unload_seconds=0.3, devices="cpu,cpu", max_batch=1) as engine:
            first, second = engine.workers
            await until(lambda: first.asleep and second.asleep)
            await engine.run(job("one", seed=1))
            assert [first.asleep, second.asleep] == [False, True]
            await until(lambda: first.asleep)
            await asyncio.gather(*(engine.run(job(f"j{n}", "tick=0.02")) for n in range(8)))
            assert not second.asleep

    @in_a_loop
    async def test_a_sleeping_engine_ends_like_any_other(self) -> None:
        async with running(idle_unload_seconds=0.2) as engine:
            await until(lambda: engine.workers[0].asleep)


class TestDrain:
    @in_a_loop
    async def test_what_was_admitted_is_finished_and_nothing_else(self) -> None:
        async with running() as engine:
            await until(lambda: engine.ready)
            with engine.admit(4):
                task = asyncio.create_task(engine.run(job(prompt="tick=0.1", seed=1)))
                drained = asyncio.create_task(engine.drain(20))
                await asyncio.sleep(0.05)
                assert engine.draining
                assert not engine.ready
                with pytest.raises(ShuttingDown), engine.admit(1):
                    pass
                assert (await task).pixels.data[0] == 1 + 4
                assert not drained.done()
            await drained

    @in_a_loop
    async def test_what_takes_too_long_is_refused(self) -> None:
        async with running() as engine:
            await until(lambda: engine.ready)
            with engine.admit(50):
                task = asyncio.create_task(engine.run(job(prompt="tick=0.2", steps=50)))
                await engine.drain(0.3)
                with pytest.raises(ShuttingDown):
                    await task
                with pytest.raises(ShuttingDown):
                    await engine.run(job("late"))


class VirtualTime(asyncio.SelectorEventLoop):
    """An event loop on which every wait is over at once, and the clock says that it was not."""

    def __init__(self) -> None:
        self.now = 1000.0
        selector = selectors.SelectSelector()
        super().__init__(selector)
        real = selector.select

        def select(timeout: float | None = None) -> Any:
            assert timeout is not None, "everybody waits, and nothing is going to happen"
            self.now += max(0.0, timeout)
            return real(0)

        selector.select = select  # type: ignore[method-assign]

    def time(self) -> float:
        return self.now


class PretendProcess:
    """What the lane sees of a worker process. A word to one whose pipe is closed is lost, as with a real one."""

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


def test_no_request_is_lost_in_ten_thousand_random_moments_around_the_worker_s_going(
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
            asked = Job(f"job {seed}", pixels, "", None, 1, 1.0, 0.0, seed, loop.time() + 60)
            result = await engine.run(asked)
            answered += result.pixels.data[0] == seed % 251
            # Around the moment when the worker goes, and the second in which the next one is on its way.
            await asyncio.sleep(max(0.0, draw.gauss(idle + 0.5, 0.6)))
        assert engine.metrics.registry.get_sample_value("img2img_worker_deaths_total", {"cause": "exit"}) == 0
        await engine.stop()
        return answered

    try:
        assert loop.run_until_complete(all_of_them()) == 10_000
    finally:
        loop.close()
    # It went and came back thousands of times, and stayed thousands of times.
    assert 2000 < PretendProcess.started < 9000


class MuteProcess(PretendProcess):
    """Says that it is ready, and no more."""

    def send(self, message: Any) -> None:
        pass


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "with a job"])
def test_a_mute_worker_is_killed_in_time_under_the_default_settings(
    monkeypatch: pytest.MonkeyPatch, busy: bool
) -> None:
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
        asked = Job("job", Pixels(1, 1, bytes(3)), "", None, 1, 1.0, 0.0, 0, start + settings.deadline_seconds)
        task = asyncio.create_task(engine.run(asked)) if busy else None
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


@in_a_loop
async def test_a_caller_with_one_job_is_served_among_the_fifty_of_another() -> None:
    async with running(max_batch=1) as engine:
        await until(lambda: engine.ready)
        order: list[str] = []

        async def ask(caller: str, name: str) -> None:
            await engine.run(job(name, "tick=0.01", steps=2), caller=caller)
            order.append(caller)

        greedy = [asyncio.create_task(ask("greedy", f"g{n}")) for n in range(50)]
        await until(lambda: len(order) >= 3)
        await ask("modest", "m")
        assert order.index("modest") < 10
        await asyncio.gather(*greedy)


@in_a_loop
async def test_a_timeout_of_the_caller_ends_its_job() -> None:
    async with running() as engine:
        await until(lambda: engine.ready)
        with engine.admit(50, timeout=0.3) as deadline:
            late = job("late", "tick=0.1", steps=50, seconds=deadline - time.monotonic())
            with pytest.raises(DeadlineExceeded, match=r"within 0\.\d+ s"):
                await engine.run(late)


@in_a_loop
async def test_a_word_to_a_lane_that_sleeps_is_lost_without_harm() -> None:
    async with running(idle_unload_seconds=0.2) as engine:
        lane = engine.workers[0]
        await until(lambda: lane.asleep and lane.pid is None)
        lane._send(Cancel("nobody"))
        lane.lower_capacity(2)
        lane.unload_if_idle(0.0)
        lane.check(0.0, 0.0)
        assert lane.state is WorkerState.ASLEEP
        assert deaths(engine, "hang") == 0


@in_a_loop
async def test_a_job_that_cannot_be_done_in_what_is_left_of_its_time_never_costs_a_tick() -> None:
    async with running() as engine:
        await until(lambda: engine.ready)
        engine.admission.measured(1, 100.0)
        with pytest.raises(DeadlineExceeded):
            await engine.run(job("late", seconds=20))
        assert sample(engine, "img2img_tick_duration_seconds_count") == 0


@in_a_loop
async def test_the_state_of_a_worker_over_its_life_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", "app.engine.supervisor")
    async with running(idle_unload_seconds=0.3) as engine:
        worker = engine.workers[0]
        await until(lambda: worker.state is WorkerState.ASLEEP)
        await engine.run(job())
        os.kill(pid_of(engine), signal.SIGKILL)
        await until(lambda: deaths(engine, "exit"))
        await until(lambda: worker.state is WorkerState.READY)
    assert worker.state is WorkerState.STOPPED
    changes = [record.getMessage().partition(": ")[2] for record in caplog.records if record.levelname == "DEBUG"]
    assert changes == [
        "starting -> ready",
        "ready -> unloading",
        "unloading -> asleep",
        "asleep -> waking",
        "waking -> ready",
        "ready -> dead",
        "dead -> starting",
        "starting -> ready",
        "ready -> dead",
        "dead -> stopped",
    ]
