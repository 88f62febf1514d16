"""One worker process as the engine sees it: started, sent to, listened to, killed. Knows no jobs."""

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any

from app.engine.framing import Receiver, pack
from app.engine.messages import Start, ToWorker
from app.subprocesses import ChildProcess

STOP_SECONDS = 5.0
"""Time for a worker to end by itself once its socket is closed."""


class WorkerProcess:
    """A running `app.worker.worker`, at the other end of a socket pair."""

    def __init__(self, child: ChildProcess, transport: asyncio.WriteTransport, receiver: Receiver) -> None:
        self._child = child
        self._transport = transport
        self._receiver = receiver

    @classmethod
    async def spawn(cls, start: Start) -> "WorkerProcess":
        """Start a worker and send it its first message.

        Raises:
            OSError: the system cannot start another process.
        """
        child = await ChildProcess.spawn("app.worker.worker", environment=environment())
        loop = asyncio.get_running_loop()
        worker = cls(child, *await loop.create_unix_connection(lambda: Receiver(child.socket), sock=child.socket))
        worker.send(start)
        return worker

    @property
    def pid(self) -> int:
        return self._child.pid

    def send(self, message: Start | ToWorker) -> None:
        """Hand over a message without waiting; one to a dead worker is lost, as its other work is."""
        if not self._transport.is_closing():
            for part in pack(message):
                self._transport.write(part)

    async def messages(self) -> AsyncIterator[Any]:
        """Each message of the worker, until its end of the socket closes."""
        while (message := await self._receiver.receive()) is not None:
            yield message

    def close(self) -> None:
        """Close the socket, at which the worker ends."""
        self._transport.close()

    def kill(self) -> None:
        """End it at once, whatever it is doing; no error if it has ended already."""
        self._child.kill()

    async def stop(self) -> int:
        """Close the socket and wait for the worker's end; one that stays is killed. Returns its exit code.

        May be called again, and after a call that was cancelled.
        """
        self.close()
        try:
            return await self._child.wait(STOP_SECONDS)
        except TimeoutError:
            self.kill()
            return await self._child.wait()


def environment() -> dict[str, str]:
    """The variables of a worker: those of this process without API keys and telemetry settings."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("IMG2IMG_API_KEY", "OTEL_"))}
    return {
        # torch then asks for huge pages: a large model's pass spends a tenth of its time on faults for small ones.
        "THP_MEM_ALLOC_ENABLE": "1",
        # Threads spin for a fifth of a millisecond for their next piece of work, not for the 17 of libgomp's default:
        # for so long they would hold the cores on which the last image is written and sent, and where another process
        # wants a core, an image would take forty times as long.
        "GOMP_SPINCOUNT": "4000",
        **own,
    }
