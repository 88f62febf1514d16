"""A clock that runs ahead, and pretended workers that live by it."""

import asyncio
import random
import selectors
from collections.abc import AsyncIterator, Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest

from app.engine.messages import Done, Job, ModelInfo, Ready, Result, Started
from app.pixels import Pixels


class VirtualTime(asyncio.SelectorEventLoop):
    """An event loop whose waits end at once, while its clock moves on by their length."""

    def __init__(self) -> None:
        self.now = 1000.0
        selector = selectors.SelectSelector()
        super().__init__(selector)
        real = selector.select

        def select(timeout: float | None = None) -> Any:
            assert timeout is not None, "all tasks wait, and nothing will happen"
            self.now += max(0.0, timeout)
            return real(0)

        selector.select = select  # type: ignore[method-assign]

    def time(self) -> float:
        return self.now


class PretendProcess:
    """What the supervisor sees of a worker process. A message after `close` is lost, as with a real one."""

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


def pretend_workers(
    monkeypatch: pytest.MonkeyPatch, loop: VirtualTime, spawn: Callable[[Any], Awaitable[PretendProcess]]
) -> None:
    """Let the engine read the clock of `loop`, and start its workers by `spawn`."""
    clock = SimpleNamespace(monotonic=loop.time)
    for module in ("engine", "liveness", "supervisor"):
        monkeypatch.setattr(f"app.engine.{module}.time", clock)
    monkeypatch.setattr("app.engine.supervisor.WorkerProcess", SimpleNamespace(spawn=spawn))
