"""The engine with workers on the pretended GPUs: two at once, and one that is lost."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from app.engine.engine import LOADER, Engine
from app.errors import Unavailable
from tests.pretended_cuda.device import LAUNCH_FAILURE, Devices
from tests.support.engines import deaths, running, until
from tests.support.models import job

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(300)]


@pytest.fixture
def control(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that the workers' devices share with this process."""
    monkeypatch.setenv("PRETENDED_CUDA_CONTROL", str(tmp_path / "control"))
    return tmp_path / "control"


@asynccontextmanager
async def ready_engine(model: Path, devices: str, **knobs: Any) -> AsyncIterator[Engine]:
    async with running(LOADER, devices=devices, model=str(model), max_batch=2, **knobs) as engine:
        await until(lambda: engine.failure or all(worker.takes_jobs for worker in engine.workers))
        assert engine.ready
        yield engine


async def test_two_gpus_make_images_of_different_jobs_at_once(tiny_checkpoint: Path, control: Path) -> None:
    async with ready_engine(tiny_checkpoint, "cuda:0,cuda:1") as engine:
        shared = Devices.of(control)
        before = [shared.counters(index) for index in range(2)]
        jobs = [job(f"job {steps}", steps, strength=1.0, seed=steps) for steps in range(1, 9)]
        results = await asyncio.gather(*(engine.run(each) for each in jobs))
        after = [shared.counters(index) for index in range(2)]
    assert [result.steps_run for result in results] == list(range(1, 9))
    assert sorted(worker.info.device for worker in engine.workers if worker.info) == ["cuda:0", "cuda:1"]
    for then, now in zip(before, after, strict=True):
        assert now.launches > then.launches
        assert now.copies_d2h > then.copies_d2h


async def test_gpu_that_stays_lost_ends_the_service_and_is_not_replaced(tiny_checkpoint: Path, control: Path) -> None:
    async with ready_engine(tiny_checkpoint, "auto", max_worker_deaths=2) as engine:
        assert engine.info
        assert engine.info.device == "cuda:0"
        shared = Devices.of(control)
        shared.remove_all()
        with pytest.raises(Unavailable):
            await engine.run(job(steps=2, strength=1.0))
        assert deaths(engine, "device") == 1
        assert "torch cannot use cuda:0" in str(engine.failure)
        assert not engine.ready
        # Never the CPU, and never the embedded model.
        assert (engine.info.device, engine.info.model) == ("cuda:0", str(tiny_checkpoint))


async def test_job_of_a_lost_gpu_is_made_by_the_next_worker_on_it(tiny_checkpoint: Path, control: Path) -> None:
    async with ready_engine(tiny_checkpoint, "auto") as engine:
        shared = Devices.of(control)
        shared.lose(0, LAUNCH_FAILURE)
        running_job = asyncio.create_task(engine.run(job(steps=3, strength=1.0)))
        await until(lambda: deaths(engine, "device"))
        shared.lose(0, 0)
        result = await running_job
        assert result.steps_run == 3
        assert engine.ready
        assert engine.info
        assert engine.info.device == "cuda:0"
