"""The back half, in a process of its own per device: receive, admit, tick, finish, send, for ever.

    python -m app.worker.worker FD

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
from collections.abc import Callable
from dataclasses import replace
from queue import Empty, SimpleQueue
from typing import Any, Literal, NoReturn, TypeVar

from app import malloc
from app.engine.framing import HEADER, pack, unpack
from app.engine.messages import (
    Alive,
    Broken,
    Canary,
    Cancel,
    Done,
    Failed,
    FromWorker,
    Job,
    Progress,
    Ready,
    Settling,
    Shrunk,
    Sick,
    Start,
    Started,
    Ticked,
    ToWorker,
)
from app.errors import CheckpointError
from app.observability.logs import configure
from app.worker.batch import Batch
from app.worker.protocols import Decoding, Diffusion, Preview
from app.worker.warmup import warm_up

T = TypeVar("T")

logger = logging.getLogger("app.worker.worker")

SICK = 3
"""The exit code of a worker that gave itself up."""


class Worker:
    """Turns an inbox of jobs into messages, keeping up to `max_batch` of them in every UNet call.

    Args:
        diffusion: the model; used by this thread alone.
        max_batch: jobs on board at once.
        inbox: what comes from the engine.
        send: takes what goes back; its order is the order of events.
        canary: proves that pictures can be made; raises if not.
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
        self._decoding: deque[tuple[str, Decoding]] = deque()
        self._showing: deque[tuple[Progress, Preview]] = deque()
        self._settled = False
        self._asked = False

    def run(self) -> None:
        """Serve until the process ends."""
        while True:
            self.turn()

    def turn(self) -> None:
        """One round: at most one UNet call, which all jobs on board share.

        Raises:
            SystemExit: the device is lost, or no picture can be made; the engine has been told.
        """
        self._receive()
        for job_id in self.batch.expired(time.monotonic()):
            self._fail(job_id, "expired")
        if not self._settled:
            # No job is on board yet: those that wait can still be cancelled, and it does not count as theirs.
            self._settled = not self.diffusion.settle()
            self.send(Settling())
            return
        if self._asked:
            self._prove()
        while job := self.batch.next():
            self._admit(job)
        if self.batch.on_board:
            self._tick()
        self._show()
        self._finish()
        self._collect()

    def _receive(self) -> None:
        """Take all that has arrived; wait for something only if there is nothing to do."""
        try:
            while True:
                idle = self._settled and self.batch.idle and not (self._decoding or self._showing or self._asked)
                message = self.inbox.get(block=idle)
                if isinstance(message, Cancel):
                    self.batch.leave(message.job_id)
                elif isinstance(message, Canary):
                    self._asked = True
                else:
                    self.batch.add(message)
        except Empty:
            return

    def _prove(self) -> None:
        """Answer a canary, by a picture if there is nothing better to do: then what there is proves as much."""
        self._asked = False
        if self.batch.idle:
            try:
                self.canary()
            except Exception:
                logger.exception("the canary died: this worker makes no pictures any more")
                self._give_up("canary")
        self.send(Alive())

    def _admit(self, job: Job) -> None:
        self.send(Started(job.id))
        state = self._attempt("encoding its prompt and picture", [job.id], lambda: self.diffusion.admit(job))
        if state is not None:
            self.batch.board(job.id, state)

    def _tick(self) -> None:
        job_ids = list(self.batch.on_board)
        start = time.monotonic()

        def tick() -> list[tuple[int, int]]:
            states = list(self.batch.on_board.values())
            self.diffusion.tick(states)
            return [(state.index, state.steps_run) for state in states]

        moved = self._attempt("a UNet call", job_ids, tick)
        if moved is None:
            return
        self.send(Ticked(len(job_ids), time.monotonic() - start))
        for job_id, (index, steps) in zip(job_ids, moved, strict=True):
            progress = Progress(job_id, index, steps)
            self.send(progress)
            if index < steps and index in self.batch.jobs[job_id].previews:
                state = self.batch.on_board[job_id]
                if preview := self._attempt("a preview", [job_id], lambda: self.diffusion.preview(state)):  # noqa: B023
                    self._showing.append((progress, preview))

    def _show(self) -> None:
        """Send the previews that have arrived; those that have not come with the next turn."""
        while self._showing and (self._showing[0][1].ready or self.batch.idle):
            progress, preview = self._showing.popleft()
            self.send(replace(progress, preview=preview.pixels()))

    def _finish(self) -> None:
        job_ids = [job_id for job_id, state in self.batch.on_board.items() if state.done]
        if not job_ids:
            return
        decoding = self._attempt(
            "decoding", job_ids, lambda: self.diffusion.finish([self.batch.on_board[job_id] for job_id in job_ids])
        )
        for job_id, picture in zip(job_ids, decoding or (), strict=decoding is not None):
            # Its place is free already: the next call need not wait for the picture's way from the device.
            self.batch.leave(job_id)
            self._decoding.append((job_id, picture))

    def _collect(self) -> None:
        """Send the pictures that have arrived; wait for one only if there is nothing else to do."""
        while self._decoding and (self._decoding[0][1].ready or self.batch.idle):
            job_id, picture = self._decoding.popleft()
            found = self._attempt("fetching its picture", [job_id], lambda: (self.diffusion.collect(picture),))  # noqa: B023
            if found:
                (result,) = found
                if result:
                    self.send(Done(job_id, result, peak_memory(), self.diffusion.memory()))
                else:
                    self.send(Failed(job_id, "non_finite"))

    def _attempt(self, what: str, job_ids: list[str], call: Callable[[], T]) -> T | None:
        """What a call of the model gives, which is never None; None if it raised, and the jobs have been seen to."""
        try:
            return call()
        except Exception as error:
            logger.exception("%s failed, for %d jobs: %s", what, len(job_ids), ", ".join(job_ids))
            fault = self.diffusion.fault(error)
        # Only out here is nothing of what the call had made held any more, by the error's traceback least of all.
        match fault:
            case "device":
                self._give_up("device")
            case "memory":
                self._short_of_memory(job_ids)
            case _:
                # Each starts anew alone, and shows whether it is at fault, or something that is over now.
                again = [job_id for job_id in job_ids if (job := self.batch.jobs.get(job_id)) and not job.alone]
                for job_id in set(job_ids) - set(again):
                    self._fail(job_id, "error")
                self.batch.restart(again, alone=True)
        return None

    def _short_of_memory(self, job_ids: list[str]) -> None:
        """Let go of what can be had again, take half as many on board from now on, and start the jobs anew.

        One that had all the memory for itself is tried once more, and then refused.
        """
        together = len(self.batch.jobs)
        jobs = [self.batch.jobs[job_id] for job_id in job_ids if job_id in self.batch.jobs]
        again = [job.id for job in jobs if together > 1 or not job.starved]
        for job_id in set(job_ids) - set(again):
            self._fail(job_id, "memory")
        self.batch.restart(again, starved=together == 1)
        self.diffusion.free()
        if together > 1:
            self.batch.capacity = together // 2
            logger.warning("too little memory for %d jobs at once: at most %d from now on", together, together // 2)
            self.send(Shrunk(self.batch.capacity))

    def _give_up(self, cause: Literal["device", "canary"]) -> NoReturn:
        """End this process, for a new one to start afresh."""
        self.send(Sick(cause))
        raise SystemExit(SICK)

    def _fail(self, job_id: str, reason: Any) -> None:
        self.batch.leave(job_id)
        self.send(Failed(job_id, reason))


def peak_memory() -> int:
    """The largest resident size of this process so far, in bytes (Linux counts it in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def listen(connection: socket.socket, inbox: "SimpleQueue[Any]") -> None:
    """Move every message into the inbox; end the process when the engine has gone, even in the middle of a call."""
    with connection.makefile("rb") as stream:
        while header := stream.read(HEADER.size):
            body, picture = [stream.read(length) for length in HEADER.unpack(header)]
            inbox.put(unpack(body, picture))
    os._exit(0)


def main(fd: int) -> None:
    """Load the model and serve until the engine goes; exits with 1 after a `Broken` message."""
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
        # Another try would end the same.
        send(Broken(str(error)))
        sys.exit(1)
    send(Ready(diffusion.info, passes.seconds, diffusion.max_jobs, passes.canary_seconds))
    Worker(diffusion, diffusion.max_jobs, inbox, send, passes.canary).run()


if __name__ == "__main__":
    main(int(sys.argv[1]))
