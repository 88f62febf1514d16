"""Canaries, silent workers and hanging workers."""

import asyncio
import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest

from app.engine.liveness import LivenessLimits
from app.errors import DeadlineExceeded
from tests.support.engines import deaths, job, pid_of, running, until


class TestLiveness:
    @pytest.mark.anyio
    async def test_idle_worker_that_stops_is_not_ready_and_is_replaced(self) -> None:
        async with running() as engine:
            await until(lambda: engine.ready)
            pid = pid_of(engine)
            os.kill(pid, signal.SIGSTOP)
            await until(lambda: not engine.ready)
            assert (await engine.run(job(seed=1))).pixels.data[0] == 1 + 4
            assert pid_of(engine) != pid
            assert deaths(engine, "hang") == 1

    @pytest.mark.anyio
    async def test_worker_that_fails_its_canary_is_replaced(self, tmp_path: Path) -> None:
        broken = tmp_path / "broken"
        async with running(limits=LivenessLimits(canary=0.3), model=f"until={broken}") as engine:
            await until(lambda: engine.ready)
            broken.touch()
            await until(lambda: not engine.ready)
            broken.unlink()
            await until(lambda: engine.ready)
            assert deaths(engine, "canary") >= 1

    @pytest.mark.anyio
    async def test_idle_worker_that_passes_its_canaries_is_kept(self) -> None:
        async with running(limits=LivenessLimits(canary=0.05, watch=0.02)) as engine:
            await until(lambda: engine.ready)
            pid = pid_of(engine)
            for _ in range(20):
                await asyncio.sleep(0.1)
                assert engine.ready
            assert pid_of(engine) == pid
            assert engine.workers[0].deaths_in_a_row == 0

    @pytest.mark.anyio
    async def test_busy_worker_that_falls_silent_is_not_ready_until_it_replies(self) -> None:
        async with running(limits=LivenessLimits(silence=0.3, watch=0.05)) as engine:
            await until(lambda: engine.ready)
            task = asyncio.create_task(engine.run(job(prompt="tick=1.5", steps=1, seed=1)))
            await until(lambda: not engine.ready)
            assert (await task).pixels.data[0] == 2
            assert engine.ready
            assert engine.workers[0].deaths_in_a_row == 0

    @pytest.mark.anyio
    async def test_silence_while_this_process_did_not_run_kills_no_worker(self) -> None:
        async with running(limits=LivenessLimits(late=0.5, watch=0.1), tick_timeout_seconds=1.2) as engine:
            await until(lambda: engine.ready)
            task = asyncio.create_task(engine.run(job(prompt="tick=2", steps=1)))
            await until(lambda: engine.workers[0].tickets)
            await asyncio.sleep(0.1)
            time.sleep(1.4)  # noqa: ASYNC251  as if the whole machine had been suspended
            await task
            assert deaths(engine, "hang") == 0

    @pytest.mark.anyio
    async def test_hanging_call_costs_no_request_under_the_default_settings(self, tmp_path: Path) -> None:
        async with running(limits=LivenessLimits(hang=0.5)) as engine:
            await until(lambda: engine.ready)
            assert engine.settings.tick_timeout_seconds > engine.settings.deadline_seconds
            result = await engine.run(job(prompt=f"hang_at=2 once={tmp_path / 'hung'}", seed=4))
            assert result.pixels.data[0] == 4 + 4
            assert deaths(engine, "hang") == 1

    @pytest.mark.anyio
    async def test_stopped_worker_is_noticed_under_short_requests(self) -> None:
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

    @pytest.mark.anyio
    async def test_job_withdrawn_at_once_is_not_a_hang(self) -> None:
        async with running(limits=LivenessLimits(silence=0.5, watch=0.05)) as engine:
            await until(lambda: engine.ready)
            for number in range(20):
                task = asyncio.create_task(engine.run(job(f"j{number}")))
                await asyncio.sleep(0)
                task.cancel()
                await asyncio.sleep(0.1)
                assert engine.ready
            assert deaths(engine, "hang") == 0
