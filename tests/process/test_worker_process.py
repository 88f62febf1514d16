"""Starting and ending worker processes."""

import asyncio
import os
import signal

import pytest

from app.engine.liveness import LivenessLimits
from app.engine.messages import Start
from app.engine.process import WorkerProcess
from app.engine.supervisor import WorkerSupervisor
from app.engine.ticket import Ticket
from app.errors import (
    EngineError,
    ShuttingDown,
    Unavailable,
)
from app.settings import Settings
from tests.support.engines import deaths, job, pid_of, running, until
from tests.support.fakes import FAKE


@pytest.mark.anyio
async def test_supervisor_without_a_process_takes_and_returns_tickets() -> None:
    """As while its worker is dying."""
    async with running() as engine:
        worker = WorkerSupervisor(Start(FAKE, "cpu", engine.settings), engine.metrics, engine, LivenessLimits())
        ticket = Ticket(job(), asyncio.get_running_loop().create_future(), None, 0.0)
        worker.send(ticket)
        worker.kill("test")
        worker.lower_capacity(2)
        assert (worker.pid, worker.capacity) == (None, 2)
        assert worker.withdraw(ticket)
        assert not worker.withdraw(ticket)
        ticket.refuse(EngineError("first"))
        ticket.refuse(EngineError("second"))
        assert str(ticket.future.exception()) == "first"
        await worker.close()


@pytest.mark.anyio
async def test_message_to_an_ended_worker_has_no_effect() -> None:
    process = await WorkerProcess.spawn(Start(FAKE, "cpu", Settings().for_worker()))
    await process.stop()
    process.send(job())
    process.kill()
    assert await process.stop() is not None


@pytest.mark.anyio
async def test_start_that_fails_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running() as engine:
        await until(lambda: engine.ready)
        monkeypatch.setattr("app.subprocesses.sys.executable", "/nowhere/python")
        engine.workers[0].kill("test")
        await until(lambda: deaths(engine, "spawn"))
        assert not engine.ready
        monkeypatch.undo()
        assert (await engine.run(job(seed=1))).pixels.data[0] == 1 + 4


@pytest.mark.anyio
async def test_start_that_always_fails_stops_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.subprocesses.sys.executable", "/nowhere/python")
    async with running(max_worker_deaths=2) as engine:
        with pytest.raises(Unavailable):
            await engine.run(job())
        assert "2 workers in a row" in str(engine.failure)


@pytest.mark.parametrize("turns", range(6))
@pytest.mark.anyio
async def test_stop_cancelled_just_when_the_worker_ends_is_cancelled(turns: int) -> None:
    # Python 3.11's `wait_for` forgets it then: the worker went on to start workers, and the engine's end never came.
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


@pytest.mark.anyio
async def test_stop_refuses_waiting_jobs_and_ends_the_worker() -> None:
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


@pytest.mark.anyio
async def test_worker_that_does_not_end_by_itself_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.engine.process.STOP_SECONDS", 0.2)
    async with running() as engine:
        await until(lambda: engine.info)
        pid = pid_of(engine)
        os.kill(pid, signal.SIGSTOP)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.anyio
async def test_worker_ends_when_the_socket_of_the_engine_closes() -> None:
    async with running() as engine:
        await until(lambda: engine.info)
        pid = pid_of(engine)
        process = engine.workers[0]._process
        assert process is not None
        process._transport.close()
        await until(lambda: engine.workers[0].pid != pid)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
