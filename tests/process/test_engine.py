"""The engine with real worker processes, which run the torch-free model of `tests.support.fakes`."""

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest

from app.edits import Queued
from app.engine.liveness import LivenessLimits
from app.engine.messages import Done, Failed, Progress, Result, Start
from app.engine.process import WorkerProcess
from app.engine.supervisor import WorkerSupervisor
from app.engine.ticket import Ticket
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
from app.settings import Settings
from tests.support.engines import deaths, in_a_loop, job, pid_of, running, until
from tests.support.fakes import FAKE


@in_a_loop
async def test_a_job_comes_back_as_its_picture_even_if_it_came_before_the_worker_was_ready() -> None:
    async with running() as engine:
        assert engine.info is None
        result = await engine.run(job(seed=5))
        assert result.pixels.data == bytes([5 + 4]) * 192
        assert result.steps_run == 4
        assert result.queued > 0
        assert engine.info is not None
        assert engine.info.device == "cpu"


@in_a_loop
async def test_progress_is_reported_after_each_step() -> None:
    seen: list[tuple[int, int]] = []

    def note(progress: Queued | Progress) -> None:
        if isinstance(progress, Progress):
            seen.append((progress.step, progress.steps))

    async with running() as engine:
        await engine.run(job(steps=3), note)
    assert seen == [(1, 3), (2, 3), (3, 3)]


@in_a_loop
async def test_many_jobs_at_once_each_get_their_own_picture() -> None:
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


@in_a_loop
async def test_two_devices_share_the_work() -> None:
    async with running(devices="cpu,cpu", max_batch=1) as engine:
        await until(lambda: all(lane.info for lane in engine.workers))
        both = [asyncio.create_task(engine.run(job(f"j{i}", "tick=0.25", steps=2))) for i in range(2)]
        await until(lambda: sum(len(lane.tickets) for lane in engine.workers) == 2)
        assert [len(lane.tickets) for lane in engine.workers] == [1, 1]
        await asyncio.gather(*both)
        assert len({lane.pid for lane in engine.workers}) == 2


@in_a_loop
async def test_of_several_devices_the_one_without_a_worker_is_told() -> None:
    async with running("tests.support.fakes:each", devices="cpu,cpu") as engine:
        await until(lambda: all(lane.info for lane in engine.workers))
        one, other = (f"cpu:{lane.pid}" for lane in engine.workers)

        def sample(name: str, device: str, **labels: str) -> float | None:
            return engine.metrics.registry.get_sample_value(f"img2img_{name}", {"device": device, **labels})

        facts = {"model": "fake", "revision": "", "vae": "checkpoint", "dtype": "float32", "reason": "it is a test"}
        facts |= {"scheduler": "EulerAncestralDiscreteScheduler", "compile": "off"}
        assert [sample("model_info", device, **facts) for device in (one, other)] == [1, 1]
        assert [sample("worker_ready", device) for device in (one, other)] == [1, 1]
        engine.workers[0].kill("test")
        await until(lambda: sample("worker_ready", one) == 0)
        assert sample("worker_ready", other) == 1
        await until(lambda: sample("worker_ready", f"cpu:{engine.workers[0].pid}") == 1)


@in_a_loop
async def test_a_worker_that_dies_is_replaced_and_its_jobs_run_again(tmp_path: Path) -> None:
    async with running() as engine:
        prompt = f"exit_at=1 once={tmp_path / 'died'}"
        victim, neighbour = await asyncio.gather(
            engine.run(job("victim", prompt, seed=1)), engine.run(job("neighbour", seed=2))
        )
        assert victim.pixels.data[0] == 1 + 4
        assert neighbour.pixels.data[0] == 2 + 4
        assert deaths(engine, "exit") == 1


@in_a_loop
async def test_a_worker_killed_from_outside_is_replaced_too() -> None:
    async with running() as engine:
        task = asyncio.create_task(engine.run(job(prompt="tick=0.2", seed=3)))
        await until(lambda: engine.info)
        await asyncio.sleep(0.1)
        os.kill(pid_of(engine), signal.SIGKILL)
        assert (await task).pixels.data[0] == 3 + 4


@in_a_loop
async def test_a_worker_that_hangs_is_killed_and_its_jobs_run_again(tmp_path: Path) -> None:
    async with running(tick_timeout_seconds=0.5) as engine:
        result = await engine.run(job(prompt=f"hang_at=2 once={tmp_path / 'hung'}", seed=4))
        assert result.pixels.data[0] == 4 + 4
        assert deaths(engine, "hang") == 1


@in_a_loop
async def test_a_worker_that_hangs_while_it_loads_is_killed() -> None:
    async with running("tests.support.fakes:hang", load_timeout_seconds=0.4, max_worker_deaths=1) as engine:
        with pytest.raises(Unavailable, match="stopped"):
            await engine.run(job())
        assert deaths(engine, "hang") == 1


@in_a_loop
async def test_a_job_on_board_of_two_deaths_is_refused_and_its_neighbours_live() -> None:
    async with running() as engine:
        outcomes = await asyncio.gather(
            engine.run(job("poison", "exit_at=1")), engine.run(job("good", "tick=0.1", seed=7)), return_exceptions=True
        )
        poison, good = outcomes
        assert isinstance(poison, WorkerLost)
        assert poison.retryable is False
        assert isinstance(good, Result)
        assert good.pixels.data[0] == 7 + 4


@in_a_loop
async def test_bytes_that_are_no_message_cost_the_worker_its_life() -> None:
    async with running("tests.support.fakes:babble", max_worker_deaths=1) as engine:
        await until(lambda: engine.failure)
        assert deaths(engine, "garbage") == 1


@in_a_loop
async def test_too_many_deaths_in_a_row_end_the_engine_and_refuse_whoever_waits() -> None:
    async with running(model="dies", max_worker_deaths=2) as engine:
        with pytest.raises(Unavailable, match="stopped"):
            await engine.run(job())
        assert isinstance(engine.failure, EngineStopped)
        assert "2 workers in a row" in str(engine.failure)
        with pytest.raises(ShuttingDown), engine.admit(3):
            pass


@in_a_loop
async def test_a_checkpoint_that_cannot_be_used_ends_the_engine_at_once_with_its_reason() -> None:
    async with running(model="broken") as engine:
        await until(lambda: engine.failure)
        assert str(engine.failure) == "there is no such checkpoint"


@in_a_loop
async def test_two_workers_that_cannot_load_end_the_engine_once() -> None:
    async with running(model="broken", devices="cpu,cpu") as engine:
        await until(lambda: engine.failure)
        await asyncio.sleep(0.5)
        with pytest.raises(Unavailable, match="stopped"):
            await engine.run(job())


@in_a_loop
async def test_what_a_worker_says_of_jobs_that_nobody_waits_for_is_dropped() -> None:
    async with running() as engine:
        result = await engine.run(job())
        for message in (Done("nobody", result, 1), Failed("nobody", "error"), Progress("nobody", 1, 2)):
            engine.received(engine.workers[0], message)
        assert engine.metrics.registry.get_sample_value("img2img_images_total") == 1


@in_a_loop
async def test_a_job_that_the_worker_found_expired_is_refused_as_too_late() -> None:
    async with running() as engine:
        task = asyncio.create_task(engine.run(job("late", "tick=0.1", steps=50)))
        await until(lambda: engine.workers[0].tickets)
        engine.received(engine.workers[0], Failed("late", "expired"))
        with pytest.raises(DeadlineExceeded):
            await task


@in_a_loop
async def test_a_lane_without_a_worker_takes_and_gives_back_tickets() -> None:
    """As while its worker is dying."""
    async with running() as engine:
        lane = WorkerSupervisor(Start(FAKE, "cpu", engine.settings), engine.metrics, engine, LivenessLimits())
        ticket = Ticket(job(), asyncio.get_running_loop().create_future(), None, 0.0)
        lane.send(ticket)
        lane.kill("test")
        assert lane.pid is None
        assert lane.withdraw(ticket)
        assert not lane.withdraw(ticket)
        ticket.refuse(EngineError("first"))
        ticket.refuse(EngineError("second"))
        assert str(ticket.future.exception()) == "first"
        await lane.close()


@in_a_loop
async def test_a_word_to_a_worker_that_has_gone_is_lost_without_harm() -> None:
    process = await WorkerProcess.spawn(Start(FAKE, "cpu", Settings().for_worker()))
    await process.stop()
    process.send(job())
    process.kill()
    assert await process.stop() is not None


@in_a_loop
async def test_a_machine_without_room_for_a_process_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running() as engine:
        await until(lambda: engine.ready)
        monkeypatch.setattr("app.subprocesses.sys.executable", "/nowhere/python")
        engine.workers[0].kill("test")
        await until(lambda: deaths(engine, "spawn"))
        assert not engine.ready
        monkeypatch.undo()
        assert (await engine.run(job(seed=1))).pixels.data[0] == 1 + 4


@in_a_loop
async def test_a_machine_that_never_has_room_for_a_process_ends_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.subprocesses.sys.executable", "/nowhere/python")
    async with running(max_worker_deaths=2) as engine:
        with pytest.raises(Unavailable):
            await engine.run(job())
        assert "2 workers in a row" in str(engine.failure)


@in_a_loop
async def test_an_error_of_the_engine_s_own_ends_it_and_nobody_waits_in_vain(
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


@pytest.mark.parametrize("turns", range(6))
@in_a_loop
async def test_who_is_cancelled_just_when_a_worker_has_ended_is_cancelled(turns: int) -> None:
    # Python 3.11's `wait_for` forgets it then: the lane went on to start workers, and the engine's end never came.
    process = await WorkerProcess.spawn(Start(FAKE, "cpu", Settings().for_worker()))
    task = asyncio.create_task(process.stop())
    while process._child.exit_code is None:  # noqa: ASYNC110  each turn of the loop is looked at
        await asyncio.sleep(0)
    for _ in range(turns):
        await asyncio.sleep(0)
    if not task.done():
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled()


def test_bytes_that_are_no_picture_of_that_size_are_refused() -> None:
    with pytest.raises(ValueError, match="are not 8 x 8 RGB pixels"):
        Pixels(8, 8, b"")


@in_a_loop
async def test_a_cancelled_job_makes_room_and_is_never_finished() -> None:
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


@in_a_loop
async def test_a_job_cancelled_in_the_queue_leaves_it() -> None:
    async with running(model="slow") as engine:
        task = asyncio.create_task(engine.run(job()))
        await asyncio.sleep(0.05)
        assert len(engine._waiting) == 1
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert len(engine._waiting) == 0


@in_a_loop
async def test_a_job_past_its_deadline_is_refused_while_it_runs() -> None:
    async with running() as engine:
        await engine.run(job())
        with pytest.raises(DeadlineExceeded) as error:
            await engine.run(job("late", "tick=0.1", steps=50, seconds=0.3))
        assert error.value.retry_after
        assert (await engine.run(job("next", seed=1))).pixels.data[0] == 1 + 4


@in_a_loop
@pytest.mark.parametrize(
    ("prompt", "error"), [("admit=fail", EngineError), ("finish=nan", NonFiniteResult), ("fail_at=1", EngineError)]
)
async def test_a_job_that_fails_has_a_typed_error(prompt: str, error: type[Exception]) -> None:
    async with running() as engine:
        with pytest.raises(error) as caught:
            await engine.run(job(prompt=prompt))
        assert type(caught.value) is error


@in_a_loop
async def test_stopping_refuses_whoever_waits_and_ends_the_worker() -> None:
    async with running() as engine:
        await engine.run(job())
        pid = pid_of(engine)
        task = asyncio.create_task(engine.run(job("late", "tick=0.1", steps=50)))
        await asyncio.sleep(0.1)
        await engine.stop()
        with pytest.raises(ShuttingDown):
            await task
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@in_a_loop
async def test_a_worker_that_does_not_end_by_itself_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.engine.process.STOP_SECONDS", 0.2)
    async with running() as engine:
        await until(lambda: engine.info)
        pid = pid_of(engine)
        os.kill(pid, signal.SIGSTOP)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@in_a_loop
async def test_a_worker_ends_when_its_engine_is_gone() -> None:
    async with running() as engine:
        await until(lambda: engine.info)
        pid = pid_of(engine)
        process = engine.workers[0]._process
        assert process is not None
        process._transport.close()
        await until(lambda: engine.workers[0].pid != pid)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@in_a_loop
async def test_a_place_is_held_for_as_long_as_the_request_lasts() -> None:
    async with running(queue_size=1) as engine:
        with engine.admit(3) as deadline:
            assert deadline > time.monotonic()
            with pytest.raises(Unavailable), engine.admit(3):
                pass
        with engine.admit(3):
            pass


@in_a_loop
async def test_the_first_pass_of_a_worker_is_the_first_prediction() -> None:
    async with running() as engine:
        await until(lambda: engine.info)
        assert engine.admission.seconds_per_row > 0
