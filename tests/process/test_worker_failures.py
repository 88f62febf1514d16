"""Too little memory, and lost devices."""

import asyncio
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from app.engine.engine import Engine
from app.errors import OutOfMemory, Unavailable, WorkerLost
from tests.support.engines import deaths, job, pid_of, running, until
from tests.support.fakes import jobs_of


def sample(engine: Engine, name: str, **labels: str) -> float | None:
    return engine.metrics.registry.get_sample_value(name, labels)


class TestMemoryAndDevice:
    @pytest.mark.anyio
    async def test_out_of_memory_halves_the_batch_for_later_workers_too(self) -> None:
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

    @pytest.mark.anyio
    async def test_job_too_large_for_the_memory_is_refused_as_retryable(self) -> None:
        async with running() as engine:
            with pytest.raises(OutOfMemory) as error:
                await engine.run(job(prompt="oom_at=1"))
            assert (error.value.status, error.value.retryable) == (503, True)
            assert (await engine.run(job(seed=1))).pixels.data[0] == 1 + 4
            assert engine.workers[0].deaths_in_a_row == 0

    @pytest.mark.anyio
    async def test_lost_device_costs_the_worker_but_no_request(self, tmp_path: Path) -> None:
        async with running() as engine:
            result = await engine.run(job(prompt=f"sick_at=2 once={tmp_path / 'sick'}", seed=1))
            assert result.pixels.data[0] == 1 + 4
            assert deaths(engine, "device") == 1
            with pytest.raises(WorkerLost):
                await engine.run(job(prompt="sick_at=2"))


class TestDevice:
    @pytest.mark.anyio
    async def test_later_worker_loads_what_the_first_one_chose(self) -> None:
        async with running("tests.support.fakes:chosen", devices="auto") as engine:
            await until(lambda: engine.ready)
            first, pid, capacity = engine.info, pid_of(engine), engine.workers[0].capacity
            assert first is not None
            assert (first.device, first.reason, capacity) == ("cuda:1", "auto, auto", jobs_of(pid))
            os.kill(pid, signal.SIGKILL)
            await until(lambda: deaths(engine, "exit") and engine.ready)
            later = engine.info
            assert pid_of(engine) != pid
            assert later is not None
            assert later == replace(first, scheduler=later.scheduler)
            assert later.model_setting == f"owner/name@chosen by {pid}"
            assert later.vae_setting == f"owner/vae@chosen by {pid}"
            assert later.dtype == f"chosen by {pid}"
            assert engine.workers[0].capacity == capacity
            assert set(later.shown()) == {"model", "revision", "vae", "device", "dtype", "reason", "scheduler"}

    @pytest.mark.anyio
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

    @pytest.mark.anyio
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

    @pytest.mark.anyio
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
