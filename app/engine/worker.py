"""The back half, in a process of its own per device: receive, admit, tick, finish, send, for ever.

    python -m app.engine.worker FD

FD is one end of a socket pair; the first message on it is a `Start`. When the other end closes, the process ends.
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
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import Any, Protocol

from app.engine import memory
from app.engine.batch import Batch
from app.engine.jobs import (
    HEADER_SIZE,
    Broken,
    Cancel,
    Done,
    Failed,
    FromWorker,
    Job,
    ModelInfo,
    Pixels,
    Progress,
    Ready,
    Result,
    Settling,
    Start,
    Started,
    Ticked,
    ToWorker,
    body_length,
    pack,
    unpack,
)
from app.errors import CheckpointError
from app.logs import configure
from app.request import IMAGE_SIZE

logger = logging.getLogger("app.engine.worker")

_SMALL_SIDE = 64
_SLOW_SECONDS = 0.5
"""A pass over so few pixels that takes longer is a large model's."""

_SMALL_TO_REAL = 5.0
"""Not 64: over few pixels, casting the weights takes most of the time. So it was for SDXL on two cores."""


class State(Protocol):
    """One job between two UNet calls."""

    @property
    def index(self) -> int: ...
    @property
    def steps_run(self) -> int: ...
    @property
    def done(self) -> bool: ...


class Decoding(Protocol):
    """One job's picture on its way from the device."""

    @property
    def ready(self) -> bool: ...


class Diffusion(Protocol):
    """What the worker drives: `app.engine.diffusion.SdxlDiffusion`, or a torch-free one in tests."""

    @property
    def info(self) -> ModelInfo: ...
    @property
    def compiled(self) -> Sequence[int]: ...
    @property
    def max_jobs(self) -> int: ...
    def settle(self) -> bool: ...
    def admit(self, job: Job) -> Any: ...
    def tick(self, states: Sequence[Any]) -> None: ...
    def finish(self, states: Sequence[Any]) -> Sequence[Decoding]: ...
    def collect(self, decoding: Any) -> Result | None: ...


class Worker:
    """Turns an inbox of jobs into messages, keeping up to `max_batch` of them in every UNet call.

    Args:
        diffusion: the model; used by this thread alone.
        max_batch: jobs on board at once.
        inbox: what comes from the engine.
        send: takes what goes back; its order is the order of events.
    """

    def __init__(
        self,
        diffusion: Diffusion,
        max_batch: int,
        inbox: "SimpleQueue[ToWorker]",
        send: Callable[[FromWorker], None],
    ) -> None:
        self.diffusion = diffusion
        self.batch: Batch[Any] = Batch(max_batch)
        self.inbox = inbox
        self.send = send
        self._decoding: deque[tuple[str, Decoding]] = deque()
        self._settled = False

    def run(self) -> None:
        """Serve until the process ends."""
        while True:
            self.turn()

    def turn(self) -> None:
        """One round: at most one UNet call, which all jobs on board share."""
        self._receive()
        for job_id in self.batch.expired(time.monotonic()):
            self._fail(job_id, "expired")
        if not self._settled:
            # No job is on board yet: those that wait can still be cancelled, and it does not count as theirs.
            self._settled = not self.diffusion.settle()
            self.send(Settling())
            return
        while job := self.batch.next():
            self._admit(job)
        if self.batch.on_board:
            self._tick()
        self._finish()
        self._collect()

    def _receive(self) -> None:
        """Take all that has arrived; wait for something only if there is nothing to do."""
        try:
            while True:
                message = self.inbox.get(block=self._settled and self.batch.idle and not self._decoding)
                if isinstance(message, Cancel):
                    self.batch.leave(message.job_id)
                else:
                    self.batch.add(message)
        except Empty:
            return

    def _admit(self, job: Job) -> None:
        self.send(Started(job.id))
        try:
            self.batch.board(job.id, self.diffusion.admit(job))
        except Exception:
            logger.exception("job %s failed while its prompt and picture were encoded", job.id)
            self._fail(job.id, "error")

    def _tick(self) -> None:
        jobs = dict(self.batch.on_board)
        start = time.monotonic()
        try:
            self.diffusion.tick(list(jobs.values()))
        except Exception:
            self._shared_failure("a UNet call", list(jobs))
            return
        self.send(Ticked(len(jobs), time.monotonic() - start))
        for job_id, state in jobs.items():
            self.send(Progress(job_id, state.index, state.steps_run))

    def _finish(self) -> None:
        jobs = {job_id: state for job_id, state in self.batch.on_board.items() if state.done}
        if not jobs:
            return
        try:
            decoding = self.diffusion.finish(list(jobs.values()))
        except Exception:
            self._shared_failure("decoding", list(jobs))
            return
        for job_id, picture in zip(jobs, decoding, strict=True):
            # Its place is free already: the next call need not wait for the picture's way from the device.
            self.batch.leave(job_id)
            self._decoding.append((job_id, picture))

    def _collect(self) -> None:
        """Send the pictures that have arrived; wait for one only if there is nothing else to do."""
        while self._decoding and (self._decoding[0][1].ready or self.batch.idle):
            job_id, picture = self._decoding.popleft()
            try:
                result = self.diffusion.collect(picture)
            except Exception:
                logger.exception("job %s failed while its picture was fetched", job_id)
                self._fail(job_id, "error")
            else:
                self.send(Done(job_id, result, peak_memory()) if result else Failed(job_id, "non_finite"))

    def _shared_failure(self, what: str, job_ids: list[str]) -> None:
        """One job alone is at fault itself; of several, each starts anew alone and shows whether it is."""
        logger.exception("%s of %d jobs failed: %s", what, len(job_ids), ", ".join(job_ids))
        if len(job_ids) == 1:
            self._fail(job_ids[0], "error")
        else:
            self.batch.isolate(job_ids)

    def _fail(self, job_id: str, reason: Any) -> None:
        self.batch.leave(job_id)
        self.send(Failed(job_id, reason))


def warm_up(diffusion: Diffusion) -> float:
    """Real passes, so that readiness is a fact; returns the seconds of one at the real size, or a guess at them.

    A compiled model is compiled by them, at each of its batch sizes.

    On a CPU a large model takes half a minute for that, and nothing is gained: there a small picture proves that the
    weights are fit.

    Raises:
        RuntimeError: a pass gave no finite picture.
    """
    for jobs in diffusion.compiled:
        _pass(diffusion, IMAGE_SIZE, jobs)
    quick = diffusion.compiled or diffusion.info.device.startswith("cuda")
    if not quick and (seconds := _pass(diffusion, _SMALL_SIDE)) > _SLOW_SECONDS:
        return _SMALL_TO_REAL * seconds
    return _pass(diffusion, IMAGE_SIZE)


def _warm_up(diffusion: Diffusion, how: str) -> float:
    try:
        return warm_up(diffusion)
    except Exception as error:
        if not diffusion.compiled:
            raise
        # Trying again would take minutes, to fail in the same way.
        logger.exception("the model could not be compiled")
        raise CheckpointError(f"IMG2IMG_COMPILE={how} fails here: {error}. Set it to off.") from error


def _pass(diffusion: Diffusion, side: int, jobs: int = 1) -> float:
    start = time.monotonic()
    grey = Pixels(side, side, b"\x80" * (side * side * 3))
    job = Job("warm-up", grey, "warm-up", None, 1, 1.0, 0.0, 0, float("inf"))
    states = [diffusion.admit(job) for _ in range(jobs)]
    diffusion.tick(states)
    if None in [diffusion.collect(decoding) for decoding in diffusion.finish(states)]:
        raise RuntimeError("the warm-up picture holds NaN or infinity: the weights or the dtype are unfit")
    return time.monotonic() - start


def peak_memory() -> int:
    """The largest resident size of this process so far, in bytes (Linux counts it in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def listen(connection: socket.socket, inbox: "SimpleQueue[Any]") -> None:
    """Move every message into the inbox; end the process when the engine has gone, even in the middle of a call."""
    with connection.makefile("rb") as stream:
        while header := stream.read(HEADER_SIZE):
            inbox.put(unpack(stream.read(body_length(header))))
    os._exit(0)


def main(fd: int) -> None:
    """Load the model and serve until the engine goes; exits with 1 after a `Broken` message."""
    connection = socket.socket(fileno=fd)
    inbox: SimpleQueue[Any] = SimpleQueue()
    threading.Thread(target=listen, args=(connection, inbox), daemon=True).start()

    def send(message: FromWorker) -> None:
        connection.sendall(pack(message))

    start: Start = inbox.get()
    configure(start.settings.log_level)
    module, _, function = start.loader.partition(":")
    try:
        with memory.loading():
            diffusion: Diffusion = getattr(importlib.import_module(module), function)(start.settings, start.device)
        seconds = _warm_up(diffusion, start.settings.compile)
    except CheckpointError as error:
        send(Broken(str(error)))
        sys.exit(1)
    send(Ready(diffusion.info, seconds, diffusion.max_jobs))
    Worker(diffusion, diffusion.max_jobs, inbox, send).run()


if __name__ == "__main__":
    main(int(sys.argv[1]))
