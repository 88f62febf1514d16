"""Idle workers are unloaded, and wake again."""

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest

from app.engine.messages import Cancel
from app.engine.supervisor import WorkerState
from tests.support.engines import deaths, job, pid_of, running, until


class TestUnloading:
    @pytest.mark.anyio
    async def test_idle_worker_ends_and_the_next_job_starts_another(self) -> None:
        async with running(idle_unload_seconds=0.3) as engine:
            await until(lambda: engine.ready)
            pid = pid_of(engine)
            worker = engine.workers[0]
            await until(lambda: worker.asleep and not Path(f"/proc/{pid}").exists())
            assert engine.ready, "it can still be sent_job"
            assert engine.info
            with engine.admit(3) as deadline:
                assert deadline > time.monotonic()
            assert (await engine.run(job(seed=1))).pixels.data[0] == 1 + 4
            assert not worker.asleep
            assert deaths(engine, "exit") == 0
            await until(lambda: worker.asleep)

    @pytest.mark.anyio
    async def test_waking_worker_counts_as_ready(self) -> None:
        async with running(idle_unload_seconds=0.3) as engine:
            await until(lambda: engine.workers[0].asleep)
            task = asyncio.create_task(engine.run(job(seed=1)))
            await asyncio.sleep(0)
            while not task.done():
                assert engine.ready
                await asyncio.sleep(0.01)
            assert (await task).pixels.data[0] == 1 + 4

    @pytest.mark.anyio
    async def test_worker_that_dies_while_waking_is_not_ready(self) -> None:
        async with running(idle_unload_seconds=0.3) as engine:
            await until(lambda: engine.workers[0].asleep and not engine.workers[0].pid)
            task = asyncio.create_task(engine.run(job(seed=1)))
            await until(lambda: engine.workers[0].pid)
            os.kill(pid_of(engine), signal.SIGKILL)
            await until(lambda: not engine.ready)
            assert (await task).pixels.data[0] == 1 + 4
            assert engine.ready

    @pytest.mark.anyio
    async def test_busy_worker_is_not_unloaded(self) -> None:
        async with running(idle_unload_seconds=0.2) as engine:
            await until(lambda: engine.ready)
            await engine.run(job(prompt="tick=0.3", steps=4))
            assert deaths(engine, "exit") == 0

    @pytest.mark.anyio
    async def test_only_as_many_workers_wake_as_the_jobs_need(self) -> None:
        async with running(idle_unload_seconds=1.0, devices="cpu,cpu", max_batch=1) as engine:
            first, second = engine.workers
            await until(lambda: first.asleep and second.asleep)
            await engine.run(job("one", seed=1))
            assert [first.asleep, second.asleep] == [False, True]
            await until(lambda: first.asleep)
            jobs = asyncio.gather(*(engine.run(job(f"j{n}", "tick=0.02")) for n in range(8)))
            await until(lambda: not second.asleep)
            await jobs

    @pytest.mark.anyio
    async def test_engine_with_unloaded_workers_stops(self) -> None:
        async with running(idle_unload_seconds=0.2) as engine:
            await until(lambda: engine.workers[0].asleep)


@pytest.mark.anyio
async def test_message_to_an_unloaded_worker_has_no_effect() -> None:
    async with running(idle_unload_seconds=0.2) as engine:
        worker = engine.workers[0]
        await until(lambda: worker.state is WorkerState.ASLEEP)
        worker._send(Cancel("ended"))
        worker.lower_capacity(2)
        worker.unload_if_idle(0.0)
        worker.check(0.0, 0.0)
        assert worker.state is WorkerState.ASLEEP
        assert deaths(engine, "hang") == 0


@pytest.mark.anyio
async def test_worker_logs_each_state_of_its_life(caplog: pytest.LogCaptureFixture) -> None:
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
