"""The engine with real worker processes, which run the torch-free model of `tests.support.fakes`."""

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest

from app.edits import Queued
from app.engine.messages import Done, Failed, Progress, Result
from app.errors import (
    DeadlineExceeded,
    EngineError,
    EngineStopped,
    NonFiniteResult,
    ShuttingDown,
    Unavailable,
    WorkerLost,
)
from app.pixels import Pixels
from tests.support.engines import deaths, job, pid_of, running, until


@pytest.mark.anyio
async def test_job_sent_before_the_worker_is_ready_comes_back() -> None:
    async with running() as engine:
        assert engine.info is None
        result = await engine.run(job(seed=5))
        assert result.pixels.data == bytes([5 + 4]) * 192
        assert result.steps_run == 4
        assert result.queued > 0
        assert engine.info is not None
        assert engine.info.device == "cpu"


@pytest.mark.anyio
async def test_progress_is_sent_after_each_step() -> None:
    seen: list[tuple[int, int]] = []

    def note(progress: Queued | Progress) -> None:
        if isinstance(progress, Progress):
            seen.append((progress.step, progress.steps))

    async with running() as engine:
        await engine.run(job(steps=3), note)
    assert seen == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.anyio
async def test_each_of_many_jobs_gets_its_own_image() -> None:
    async with running(max_batch=3) as engine:
        jobs = [job(f"j{seed}", steps=1 + seed % 5, seed=seed) for seed in range(40)]
        results = await asyncio.gather(*(engine.run(each) for each in jobs))
        assert [r.pixels.data[0] for r in results] == [each.seed + each.steps_run for each in jobs]
        assert engine.metrics.registry.get_sample_value("img2img_images_total") == 40
        for kind, result in (("prompt", "hit"), ("image", "miss")):
            labels = {"kind": kind, "result": result}
            assert engine.metrics.registry.get_sample_value("img2img_cache_lookups_total", labels) == 40
        assert engine.metrics.registry.get_sample_value("img2img_queue_depth") == 0
        assert engine.metrics.registry.get_sample_value("img2img_jobs_on_board") == 0


@pytest.mark.anyio
async def test_two_devices_share_the_work() -> None:
    async with running(devices="cpu,cpu", max_batch=1) as engine:
        await until(lambda: all(worker.info for worker in engine.workers))
        both = [asyncio.create_task(engine.run(job(f"j{i}", "tick=0.25", steps=2))) for i in range(2)]
        await until(lambda: sum(len(worker.tickets) for worker in engine.workers) == 2)
        assert [len(worker.tickets) for worker in engine.workers] == [1, 1]
        await asyncio.gather(*both)
        assert len({worker.pid for worker in engine.workers}) == 2


@pytest.mark.anyio
async def test_metrics_name_the_device_without_a_worker() -> None:
    async with running("tests.support.fakes:each", devices="cpu,cpu") as engine:
        await until(lambda: all(worker.info for worker in engine.workers))
        one, other = (f"cpu:{worker.pid}" for worker in engine.workers)

        def sample(name: str, device: str, **labels: str) -> float | None:
            return engine.metrics.registry.get_sample_value(f"img2img_{name}", {"device": device, **labels})

        facts = {"model": "fake", "revision": "", "vae": "checkpoint", "dtype": "float32", "reason": "it is a test"}
        facts |= {"scheduler": "EulerAncestralDiscreteScheduler", "compile": "off", "cuda_graphs": "0"}
        assert [sample("model_info", device, **facts) for device in (one, other)] == [1, 1]
        assert [sample("worker_ready", device) for device in (one, other)] == [1, 1]
        engine.workers[0].kill("test")
        await until(lambda: sample("worker_ready", one) == 0)
        assert sample("worker_ready", other) == 1
        await until(lambda: sample("worker_ready", f"cpu:{engine.workers[0].pid}") == 1)


@pytest.mark.anyio
async def test_dead_worker_is_replaced_and_its_jobs_run_again(tmp_path: Path) -> None:
    async with running() as engine:
        prompt = f"exit_at=1 once={tmp_path / 'died'}"
        victim, neighbour = await asyncio.gather(
            engine.run(job("victim", prompt, seed=1)), engine.run(job("neighbour", seed=2))
        )
        assert victim.pixels.data[0] == 1 + 4
        assert neighbour.pixels.data[0] == 2 + 4
        assert deaths(engine, "exit") == 1


@pytest.mark.anyio
async def test_worker_killed_from_outside_is_replaced() -> None:
    async with running() as engine:
        task = asyncio.create_task(engine.run(job(prompt="tick=0.2", seed=3)))
        await until(lambda: engine.info)
        await asyncio.sleep(0.1)
        os.kill(pid_of(engine), signal.SIGKILL)
        assert (await task).pixels.data[0] == 3 + 4


@pytest.mark.anyio
async def test_hanging_worker_is_killed_and_its_jobs_run_again(tmp_path: Path) -> None:
    async with running(tick_timeout_seconds=0.5) as engine:
        result = await engine.run(job(prompt=f"hang_at=2 once={tmp_path / 'hung'}", seed=4))
        assert result.pixels.data[0] == 4 + 4
        assert deaths(engine, "hang") == 1


@pytest.mark.anyio
async def test_worker_that_hangs_while_loading_is_killed() -> None:
    async with running("tests.support.fakes:hang", load_timeout_seconds=0.4, max_worker_deaths=1) as engine:
        with pytest.raises(Unavailable, match="stopped"):
            await engine.run(job())
        assert deaths(engine, "hang") == 1


@pytest.mark.anyio
async def test_job_that_two_workers_died_with_is_refused_alone() -> None:
    async with running() as engine:
        outcomes = await asyncio.gather(
            engine.run(job("poison", "exit_at=1")), engine.run(job("good", "tick=0.1", seed=7)), return_exceptions=True
        )
        poison, good = outcomes
        assert isinstance(poison, WorkerLost)
        assert poison.retryable is False
        assert isinstance(good, Result)
        assert good.pixels.data[0] == 7 + 4


def test_worker_that_sends_a_malformed_message_is_killed() -> None:
    async def killed() -> None:
        async with running("tests.support.fakes:babble", max_worker_deaths=1) as engine:
            await until(lambda: engine.failure)
            assert deaths(engine, "garbage") == 1

    # Not with anyio: that raises what asyncio only logs, the error of the protocol that reads the message.
    asyncio.run(killed())


@pytest.mark.anyio
async def test_too_many_deaths_in_a_row_stop_the_engine() -> None:
    async with running(model="dies", max_worker_deaths=2) as engine:
        with pytest.raises(Unavailable, match="stopped"):
            await engine.run(job())
        assert isinstance(engine.failure, EngineStopped)
        assert "2 workers in a row" in str(engine.failure)
        with pytest.raises(ShuttingDown), engine.admit(3):
            pass


@pytest.mark.anyio
async def test_unusable_checkpoint_stops_the_engine_with_its_reason() -> None:
    async with running(model="broken") as engine:
        await until(lambda: engine.failure)
        assert str(engine.failure) == "there is no such checkpoint"


@pytest.mark.anyio
async def test_two_workers_that_cannot_load_stop_the_engine_once() -> None:
    async with running(model="broken", devices="cpu,cpu") as engine:
        await until(lambda: engine.failure)
        await asyncio.sleep(0.5)
        with pytest.raises(Unavailable, match="stopped"):
            await engine.run(job())


@pytest.mark.anyio
async def test_messages_about_jobs_whose_request_ended_are_dropped() -> None:
    async with running() as engine:
        result = await engine.run(job())
        for message in (Done("ended", result, 1), Failed("ended", "error"), Progress("ended", 1, 2)):
            engine.received(engine.workers[0], message)
        assert engine.metrics.registry.get_sample_value("img2img_images_total") == 1


@pytest.mark.anyio
async def test_job_that_expired_on_the_worker_is_refused_as_late() -> None:
    async with running() as engine:
        task = asyncio.create_task(engine.run(job("late", "tick=0.1", steps=50)))
        await until(lambda: engine.workers[0].tickets)
        engine.received(engine.workers[0], Failed("late", "expired"))
        with pytest.raises(DeadlineExceeded):
            await task


@pytest.mark.anyio
async def test_error_in_the_engine_stops_it_and_refuses_its_jobs(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with running() as engine:
        await until(lambda: engine.ready)
        waiting = asyncio.create_task(engine.run(job(prompt="tick=9")))
        await until(lambda: engine.workers[0].tickets)
        monkeypatch.setattr(engine.workers[0], "check", 3)
        with pytest.raises(Unavailable, match="about to restart"):
            await waiting
        assert "TypeError" in str(engine.failure)
        assert "Traceback" in caplog.text


def test_pixels_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError, match="are not 8 x 8 RGB pixels"):
        Pixels(8, 8, b"")


def test_pixels_are_shown_without_their_bytes() -> None:
    assert repr(Pixels(8, 8, bytes(192))) == "Pixels(8, 8)"


@pytest.mark.anyio
async def test_cancelled_job_makes_room_and_is_not_finished() -> None:
    async with running(max_batch=1) as engine:
        task = asyncio.create_task(engine.run(job("gone", "tick=0.05", steps=50)))
        await until(lambda: engine.workers[0].tickets)
        await asyncio.sleep(0.1)
        task.cancel()
        await engine.run(job("next", steps=1))
        calls = engine.metrics.registry.get_sample_value("img2img_tick_duration_seconds_count")
        assert calls is not None
        assert calls < 50, "the cancelled job ran on"
        assert engine.metrics.registry.get_sample_value("img2img_images_total") == 1


@pytest.mark.anyio
async def test_job_cancelled_in_the_queue_leaves_it() -> None:
    async with running(model="slow") as engine:
        task = asyncio.create_task(engine.run(job()))
        await asyncio.sleep(0.05)
        assert len(engine._waiting) == 1
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert len(engine._waiting) == 0


@pytest.mark.anyio
async def test_job_past_its_deadline_is_refused_while_it_runs() -> None:
    async with running() as engine:
        await engine.run(job())
        with pytest.raises(DeadlineExceeded) as error:
            await engine.run(job("late", "tick=0.1", steps=50, seconds=0.3))
        assert error.value.retry_after
        assert (await engine.run(job("next", seed=1))).pixels.data[0] == 1 + 4


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("prompt", "error"), [("admit=fail", EngineError), ("finish=nan", NonFiniteResult), ("fail_at=1", EngineError)]
)
async def test_failed_job_raises_a_typed_error(prompt: str, error: type[Exception]) -> None:
    async with running() as engine:
        with pytest.raises(error) as caught:
            await engine.run(job(prompt=prompt))
        assert type(caught.value) is error


@pytest.mark.anyio
async def test_place_in_the_queue_is_held_until_the_request_ends() -> None:
    async with running(queue_size=1) as engine:
        with engine.admit(3) as deadline:
            assert deadline > time.monotonic()
            with pytest.raises(Unavailable), engine.admit(3):
                pass
        with engine.admit(3):
            pass


@pytest.mark.anyio
async def test_first_pass_of_a_worker_is_the_first_prediction() -> None:
    async with running() as engine:
        await until(lambda: engine.info)
        assert engine.admission.seconds_per_row > 0
