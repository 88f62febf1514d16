"""Child processes: started off the event loop, with few variables, and none left behind."""

import asyncio
import os
import subprocess
import threading
from typing import Any

import pytest

from app.engine.messages import Start
from app.engine.process import WorkerProcess
from app.imaging.decoder_pool import DecoderPool
from app.settings import Settings
from app.subprocesses import ChildProcess
from tests.support.fakes import FAKE


def test_processes_start_on_a_thread_and_not_on_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []

    class Recorded(subprocess.Popen[bytes]):
        def __init__(self, *args: Any, **options: Any) -> None:
            threads.append(threading.get_ident())
            super().__init__(*args, **options)

    monkeypatch.setattr(subprocess, "Popen", Recorded)

    async def start_both() -> None:
        pool = DecoderPool(1000, 2, lambda: None)
        await pool.start()
        worker = await WorkerProcess.spawn(Start(FAKE, "cpu", Settings().for_worker()))
        await worker.stop()
        pool.close()

    asyncio.run(start_both())
    assert len(threads) == 3
    assert threading.get_ident() not in threads


def test_cancelled_start_leaves_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[ChildProcess] = []
    begun, may_go = threading.Event(), threading.Event()
    start = ChildProcess.start

    def wait_and_start(*args: Any, **options: Any) -> ChildProcess:
        begun.set()
        may_go.wait(30)
        started.append(start(*args, **options))
        return started[0]

    monkeypatch.setattr(ChildProcess, "start", wait_and_start)

    async def cancel() -> None:
        task = asyncio.create_task(ChildProcess.spawn("app.imaging.decoder_process", "1000", environment={}))
        await asyncio.to_thread(begun.wait)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert task.cancelled()
        may_go.set()
        while not (started and started[0].exit_code is not None):  # noqa: ASYNC110  it is another process
            await asyncio.sleep(0.01)

    asyncio.run(cancel())


def test_cancelled_start_that_fails_raises_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, may_go = threading.Event(), threading.Event()

    def fail(*args: Any, **options: Any) -> ChildProcess:
        begun.set()
        may_go.wait(30)
        raise BlockingIOError(11, os.strerror(11))

    monkeypatch.setattr(ChildProcess, "start", fail)

    async def cancel() -> list[Any]:
        errors: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: errors.append(context))
        task = asyncio.create_task(ChildProcess.spawn("app.imaging.decoder_process", environment={}))
        await asyncio.to_thread(begun.wait)
        task.cancel()
        may_go.set()
        await asyncio.gather(task, return_exceptions=True)
        await asyncio.sleep(0.1)
        return errors

    assert asyncio.run(cancel()) == []
