"""Draining, fair sharing, and deadlines of jobs."""

import asyncio
import time

import pytest

from app.engine.engine import Engine
from app.errors import DeadlineExceeded, ShuttingDown
from tests.support.engines import job, running, until


def sample(engine: Engine, name: str, **labels: str) -> float | None:
    return engine.metrics.registry.get_sample_value(name, labels)


class TestDrain:
    @pytest.mark.anyio
    async def test_drain_finishes_admitted_jobs_and_admits_no_more(self) -> None:
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

    @pytest.mark.anyio
    async def test_drain_refuses_jobs_that_take_too_long(self) -> None:
        async with running() as engine:
            await until(lambda: engine.ready)
            with engine.admit(50):
                task = asyncio.create_task(engine.run(job(prompt="tick=0.2", steps=50)))
                await engine.drain(0.3)
                with pytest.raises(ShuttingDown):
                    await task
                with pytest.raises(ShuttingDown):
                    await engine.run(job("late"))


@pytest.mark.anyio
async def test_caller_with_one_job_is_served_among_fifty_of_another() -> None:
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


@pytest.mark.anyio
async def test_timeout_of_the_request_ends_its_job() -> None:
    async with running() as engine:
        await until(lambda: engine.ready)
        with engine.admit(50, timeout=0.3) as deadline:
            late = job("late", "tick=0.1", steps=50, seconds=deadline - time.monotonic())
            with pytest.raises(DeadlineExceeded, match=r"within 0\.\d+ s"):
                await engine.run(late)


@pytest.mark.anyio
async def test_job_that_cannot_meet_its_deadline_costs_no_unet_call() -> None:
    async with running() as engine:
        await until(lambda: engine.ready)
        engine.admission.measured(1, 100.0)
        with pytest.raises(DeadlineExceeded):
            await engine.run(job("late", seconds=20))
        assert sample(engine, "img2img_tick_duration_seconds_count") == 0
