"""The worker process, one per device: its loop receives, admits, ticks, finishes and sends.

    python -m app.worker.worker FD

FD is one end of a socket pair. The first message on it is a `Start`. The process ends when the other end closes.
"""

import importlib
import logging
import os
import resource
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Literal, NoReturn, TypeVar

from app import malloc
from app.engine.framing import HEADER, pack, unpack
from app.engine.messages import (
    BatchLimitLowered,
    Canary,
    CanaryPassed,
    Cancel,
    Done,
    Failed,
    FromWorker,
    Job,
    LoadFailed,
    Preparing,
    Progress,
    Ready,
    Start,
    Started,
    Ticked,
    ToWorker,
    WorkerFailing,
)
from app.errors import CheckpointError
from app.observability.logs import configure
from app.worker.batch import Batch
from app.worker.protocols import Decoding, Diffusion, Preview, Tick
from app.worker.warmup import warm_up

T = TypeVar("T")

logger = logging.getLogger("app.worker.worker")

_MAX_TICKS_AHEAD = 1
"""UNet calls that may wait in the device's queue behind the one that runs.

With none, the device would wait for the host between two calls. With more, a new job waits for calls that it could
have shared, a cancelled job still costs them, and progress is reported before it is made.
"""

_POLL_SECONDS = 0.001
"""How often a worker that only waits for the device looks whether it has finished."""

WORKER_FAILING_EXIT_CODE = 3
"""The exit code after a `WorkerFailing` message."""


class Worker:
    """Runs the jobs of an inbox, up to `max_batch` of them in each UNet call, and sends messages about them.

    Args:
        diffusion: the model; only the thread of `run` uses it.
        max_batch: the number of jobs on board at once.
        inbox: messages from the engine.
        send: sends a message to the engine; called in the order of events.
        canary: makes a test image; raises if the model fails.
    """

    def __init__(
        self,
        diffusion: Diffusion,
        max_batch: int,
        inbox: "SimpleQueue[ToWorker]",
        send: Callable[[FromWorker], None],
        canary: Callable[[], object],
    ) -> None:
        self.diffusion = diffusion
        self.canary = canary
        self.batch: Batch[Any] = Batch(max_batch)
        self.inbox = inbox
        self.send = send
        self._ticks: deque[tuple[list[str], Tick]] = deque()
        self._decoding: deque[tuple[str, Decoding]] = deque()
        self._previews: deque[tuple[Progress, Preview]] = deque()
        self._prepared = False
        self._canary_pending = False

    def run(self) -> None:
        """Run jobs until the process ends."""
        while True:
            self.run_once()

    def run_once(self) -> None:
        """One iteration of the loop, with at most one UNet call, which all jobs on board share.

        Raises:
            SystemExit: the device is lost or the canary failed; a `WorkerFailing` message has been sent.
        """
        if self.batch.on_board:
            # Before the inbox is read, so that jobs which arrive during the wait share the next call.
            self._report_ticks(most=_MAX_TICKS_AHEAD)
        self._receive()
        for job_id in self.batch.expired(time.monotonic()):
            self._fail(job_id, "expired")
        if not self._prepared:
            # Before any job is admitted: waiting jobs can be cancelled, and this time does not count as theirs.
            self._prepared = not self.diffusion.pack_next_layers()
            self.send(Preparing())
            return
        if self._canary_pending:
            self._run_canary()
        while job := self.batch.next():
            self._admit(job)
        if self.batch.on_board:
            self._tick()
        self._report_ticks(most=len(self._ticks))
        self._send_previews()
        self._finish()
        self._collect()

    @property
    def pending(self) -> bool:
        """Whether something is on its way from the device."""
        return bool(self._ticks or self._previews or self._decoding)

    def _receive(self) -> None:
        """Handle all messages in the inbox. Wait for one if no job runs; not for long if the device is busy."""
        wait = self._prepared and self.batch.idle and not self._canary_pending
        timeout = _POLL_SECONDS if self.pending else None
        try:
            while True:
                message = self.inbox.get(wait, timeout)
                wait = False
                if isinstance(message, Cancel):
                    self.batch.leave(message.job_id)
                elif isinstance(message, Canary):
                    self._canary_pending = True
                else:
                    self.batch.add(message)
        except Empty:
            return

    def _run_canary(self) -> None:
        """Answer a `Canary`: by a test image if no job waits or runs, else at once, as the jobs show as much."""
        self._canary_pending = False
        if self.batch.idle:
            try:
                self.canary()
            except Exception:
                logger.exception("canary failed: exiting so that the worker is replaced")
                self._give_up("canary")
        self.send(CanaryPassed())

    def _admit(self, job: Job) -> None:
        self.send(Started(job.id))
        state = self._call_model("encoding the prompt and the image", [job.id], lambda: self.diffusion.admit(job))
        if state is not None:
            self.batch.board(job.id, state)

    def _tick(self) -> None:
        job_ids = list(self.batch.on_board)

        def tick() -> list[tuple[int, int]]:
            states = list(self.batch.on_board.values())
            self._ticks.append((job_ids, self.diffusion.tick(states)))
            return [(state.index, state.steps_run) for state in states]

        moved = self._call_model("a UNet call", job_ids, tick)
        if moved is None:
            return
        for job_id, (index, steps) in zip(job_ids, moved, strict=True):
            progress = Progress(job_id, index, steps)
            self.send(progress)
            if index < steps and index in self.batch.jobs[job_id].previews:
                state = self.batch.on_board[job_id]
                if preview := self._call_model("a preview", [job_id], lambda: self.diffusion.preview(state)):  # noqa: B023
                    self._previews.append((progress, preview))

    def _report_ticks(self, most: int) -> None:
        """Report the UNet calls that the device has finished; wait until at most so many are left."""
        while self._ticks:
            job_ids, tick = self._ticks[0]
            done = self._take("a UNet call", job_ids, tick, tick.seconds, wait=len(self._ticks) > most)
            if done is False:
                return
            self._ticks.popleft()
            if done:
                self.send(Ticked(len(job_ids), done[0]))

    def _send_previews(self) -> None:
        """Send the previews that have arrived."""
        while self._previews:
            progress, preview = self._previews[0]
            arrived = self._take("a preview", [progress.job_id], preview, preview.pixels)
            if arrived is False:
                return
            self._previews.popleft()
            if arrived:
                self.send(replace(progress, preview=arrived[0]))

    def _finish(self) -> None:
        job_ids = [job_id for job_id, state in self.batch.on_board.items() if state.done]
        if not job_ids:
            return
        decoding = self._call_model(
            "decoding", job_ids, lambda: self.diffusion.finish([self.batch.on_board[job_id] for job_id in job_ids])
        )
        for job_id, image in zip(job_ids, decoding or (), strict=decoding is not None):
            # The job leaves now: the next UNet call does not wait for the image to arrive from the device.
            self.batch.leave(job_id)
            self._decoding.append((job_id, image))

    def _collect(self) -> None:
        """Send the images that have arrived."""
        while self._decoding:
            job_id, image = self._decoding[0]
            collected = self._take("fetching the image", [job_id], image, partial(self.diffusion.collect, image))
            if collected is False:
                return
            self._decoding.popleft()
            if collected:
                (result,) = collected
                if result:
                    self.send(Done(job_id, result, peak_memory(), self.diffusion.memory()))
                else:
                    self.send(Failed(job_id, "non_finite"))

    def _take(
        self,
        what: str,
        job_ids: list[str],
        item: Tick | Preview | Decoding,
        take: Callable[[], T],
        *,
        wait: bool = False,
    ) -> tuple[T] | Literal[False] | None:
        """What `take` returns, in a tuple, once the device has finished the item; False before; None if it failed.

        With `wait` it is called at once, and waits for the device.
        """
        return self._call_model(what, job_ids, lambda: (wait or item.ready) and (take(),))

    def _call_model(self, what: str, job_ids: list[str], call: Callable[[], T]) -> T | None:
        """The result of a call of the model, which must not be None; None if it raised.

        In that case the jobs have been restarted or failed. On a lost device the process exits.
        """
        try:
            return call()
        except Exception as error:
            logger.exception("%s failed for %d jobs: %s", what, len(job_ids), ", ".join(job_ids))
            fault = self.diffusion.fault(error)
        # Outside of `except`, where the traceback no longer holds the call's tensors: their memory can be released.
        match fault:
            case "device":
                self._give_up("device")
            case "memory":
                self._handle_oom(job_ids)
            case _:
                # Each job restarts in calls of its own. One that fails there is at fault.
                again = [job_id for job_id in job_ids if (job := self.batch.jobs.get(job_id)) and not job.isolated]
                for job_id in set(job_ids) - set(again):
                    self._fail(job_id, "error")
                self.batch.restart(again, isolated=True)
        return None

    def _handle_oom(self, job_ids: list[str]) -> None:
        """Release cached memory, halve the batch limit and restart the jobs.

        A job that was the only one on board is retried once, then fails.
        """
        on_board = len(self.batch.jobs)
        jobs = [self.batch.jobs[job_id] for job_id in job_ids if job_id in self.batch.jobs]
        again = [job.id for job in jobs if on_board > 1 or not job.oom_retried]
        for job_id in set(job_ids) - set(again):
            self._fail(job_id, "memory")
        self.batch.restart(again, oom_retried=on_board == 1)
        self.diffusion.release_memory()
        if on_board > 1:
            self.batch.capacity = on_board // 2
            logger.warning("out of memory with %d jobs on board: batch limit lowered to %d", on_board, on_board // 2)
            self.send(BatchLimitLowered(self.batch.capacity))

    def _give_up(self, cause: Literal["device", "canary"]) -> NoReturn:
        """End this process, so that the engine starts a new one."""
        self.send(WorkerFailing(cause))
        raise SystemExit(WORKER_FAILING_EXIT_CODE)

    def _fail(self, job_id: str, reason: Any) -> None:
        self.batch.leave(job_id)
        self.send(Failed(job_id, reason))


def peak_memory() -> int:
    """The peak resident size of this process, in bytes (`ru_maxrss` is in KiB on Linux)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def listen(connection: socket.socket, inbox: "SimpleQueue[Any]") -> None:
    """Put all messages into the inbox; end the process when the engine closes the socket, even during a call."""
    with connection.makefile("rb") as stream:
        while header := stream.read(HEADER.size):
            body, image = [stream.read(length) for length in HEADER.unpack(header)]
            inbox.put(unpack(body, image))
    os._exit(0)


def main(fd: int) -> None:
    """Load the model and run jobs until the engine closes the socket; exits with 1 after a `LoadFailed` message."""
    connection = socket.socket(fileno=fd)
    inbox: SimpleQueue[Any] = SimpleQueue()
    threading.Thread(target=listen, args=(connection, inbox), daemon=True).start()

    def send(message: FromWorker) -> None:
        for part in pack(message):
            connection.sendall(part)

    start: Start = inbox.get()
    configure(start.settings.log_level, start.settings.log_format)
    module, _, function = start.loader.partition(":")
    try:
        with malloc.loading():
            diffusion: Diffusion = getattr(importlib.import_module(module), function)(start.settings, start.device)
        passes = warm_up(diffusion, start.settings.compile)
    except (CheckpointError, PermissionError) as error:
        # A retry would fail in the same way.
        send(LoadFailed(str(error)))
        sys.exit(1)
    send(Ready(diffusion.info, passes.seconds, diffusion.max_jobs, passes.canary_seconds, diffusion.graphs))
    Worker(diffusion, diffusion.max_jobs, inbox, send, passes.canary).run()


if __name__ == "__main__":
    main(int(sys.argv[1]))
