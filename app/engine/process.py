"""One worker process as the engine sees it: started, sent to, listened to, killed. Knows no jobs."""

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from app.engine.framing import Receiver, pack
from app.engine.messages import Start, ToWorker
from app.subprocesses import enlarge_buffers

STOP_SECONDS = 5.0
"""Time for a worker to end by itself once its pipe is closed."""


class WorkerProcess:
    """A running `app.worker.worker`, at the other end of a socket pair."""

    def __init__(
        self, process: asyncio.subprocess.Process, transport: asyncio.WriteTransport, receiver: Receiver
    ) -> None:
        self._process = process
        self._transport = transport
        self._receiver = receiver

    @classmethod
    async def spawn(cls, start: Start) -> "WorkerProcess":
        """Start a fresh interpreter: nothing of this process, neither its memory nor its signals, reaches it.

        Raises:
            OSError: there is no room for a process more.
        """
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            enlarge_buffers(end)
        with theirs, contextlib.ExitStack() as unless_started:
            unless_started.callback(ours.close)
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-P", "-m", "app.worker.worker", str(theirs.fileno())),
                stdin=asyncio.subprocess.DEVNULL,
                env=environment(),
                pass_fds=(theirs.fileno(),),
                # Ctrl-C goes to the whole foreground group: the worker must outlive it until the last job is done.
                process_group=0,
            )
            unless_started.pop_all()
        worker = cls(
            process, *await asyncio.get_running_loop().create_unix_connection(lambda: Receiver(ours), sock=ours)
        )
        worker.send(start)
        return worker

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, message: Start | ToWorker) -> None:
        """Hand over a message without waiting; one to a dead worker is lost, as its other work is."""
        if not self._transport.is_closing():
            for part in pack(message):
                self._transport.write(part)

    async def messages(self) -> AsyncIterator[Any]:
        """Everything the worker says, until its end of the pipe closes."""
        while (message := await self._receiver.receive()) is not None:
            yield message

    def close(self) -> None:
        """Close the pipe, at which the worker ends."""
        self._transport.close()

    def kill(self) -> None:
        """End it at once, whatever it is doing; no error if it has ended already."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    async def stop(self) -> int:
        """Close the pipe and wait for the worker's end; one that stays is killed. Returns its exit code.

        May be called again, and after a call that was cancelled.
        """
        self.close()
        try:
            async with asyncio.timeout(STOP_SECONDS):
                return await self._process.wait()
        except TimeoutError:
            self.kill()
            return await self._process.wait()


def environment() -> dict[str, str]:
    """The variables of a worker: all but those that hold what is none of its business."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("IMG2IMG_API_KEY", "OTEL_"))}
    return {
        # torch then asks for huge pages: a large model's pass spends a tenth of its time on faults for small ones.
        "THP_MEM_ALLOC_ENABLE": "1",
        # A fifth of a millisecond of looking out for the next piece of work, not the 17 of libgomp's default: that long
        # a worker's threads would hold the cores on which its last picture is written and sent, and where any other
        # process wants one of them, a picture would take forty times as long.
        "GOMP_SPINCOUNT": "4000",
        **own,
        # The modules of this process, not those of whatever folder it was started in.
        "PYTHONPATH": os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path),
    }
