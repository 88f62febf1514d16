"""Keeps one worker process running on a device and tracks its jobs."""

import asyncio
import contextlib
import logging
import time
from dataclasses import replace
from enum import StrEnum
from typing import Any, Protocol

from app.engine.liveness import Liveness, LivenessLimits
from app.engine.messages import Canary, Cancel, ModelInfo, Ready, Start, ToWorker
from app.engine.process import WorkerProcess
from app.engine.ticket import Ticket
from app.observability.metrics import Metrics

logger = logging.getLogger(__name__)

_MAX_BACKOFF = 30.0


class WorkerState(StrEnum):
    """What the worker on one device is doing.

    STARTING -> READY <-> SILENT
                READY  -> UNLOADING -> ASLEEP -> WAKING -> READY
    any of them -> DEAD -> STARTING
    any of them -> STOPPED
    """

    STARTING = "starting"
    """A process starts and loads the model."""
    READY = "ready"
    """It takes jobs."""
    SILENT = "silent"
    """It has jobs and has sent nothing for too long; it may still recover."""
    UNLOADING = "unloading"
    """It was idle for long enough, and its process is ending."""
    ASLEEP = "asleep"
    """There is no process until a job needs one."""
    WAKING = "waking"
    """As STARTING, after ASLEEP."""
    DEAD = "dead"
    """The process ended, and the next one starts after a pause."""
    STOPPED = "stopped"
    """The supervisor is closed."""


_TAKES_JOBS = {WorkerState.READY, WorkerState.SILENT}
_AVAILABLE = {WorkerState.READY, WorkerState.UNLOADING, WorkerState.ASLEEP, WorkerState.WAKING}


class Owner(Protocol):
    """Handles what happens to a worker."""

    def received(self, worker: "WorkerSupervisor", message: Any) -> None: ...
    def died(self, worker: "WorkerSupervisor", tickets: list[Ticket]) -> None: ...


class WorkerSupervisor:
    """Keeps one worker process running on a device, except while it is unloaded, and tracks its jobs.

    Args:
        start: the first message to each new process.
        metrics: where deaths are counted.
        owner: gets every message, and the tickets of a worker that died.
        limits: how long a worker may be silent.
    """

    def __init__(self, start: Start, metrics: Metrics, owner: Owner, limits: LivenessLimits) -> None:
        self.start = start
        self.device = start.device
        self.state = WorkerState.STARTING
        """Changed by `_enter` alone; health, metrics, dispatch and shutdown read it."""
        self.info: ModelInfo | None = None
        """What the last worker that became ready has loaded; None before that."""
        self.capacity = 1
        self.start_seconds = 0.0
        """Seconds from the start of the last worker until it was ready."""
        self.tickets: dict[str, Ticket] = {}
        self.deaths_in_a_row = 0
        self._metrics = metrics
        self._owner = owner
        self._liveness = Liveness(limits)
        self._starting: asyncio.Task[WorkerProcess] | None = None
        self._process: WorkerProcess | None = None
        self._wanted = asyncio.Event()
        self._wanted.set()
        self._started_at = 0.0
        self._last_busy_at = 0.0
        self._kill_cause = ""

    @property
    def pid(self) -> int | None:
        """The process id of the worker, while one runs."""
        return self._process.pid if self._process else None

    @property
    def takes_jobs(self) -> bool:
        """Whether `send` may be called now."""
        return self.state in _TAKES_JOBS

    @property
    def has_room(self) -> bool:
        """Whether it takes one job more: it may hold a second batch in reserve."""
        return self.takes_jobs and len(self.tickets) < 2 * self.capacity

    @property
    def asleep(self) -> bool:
        """Whether `wake` is needed before a job can run."""
        return not self._wanted.is_set()

    @property
    def available(self) -> bool:
        """Whether a job that is sent now can be expected to be done.

        An unloaded worker counts, so that requests can wake it; so does one that wakes.
        """
        return self.state in _AVAILABLE

    def _enter(self, state: WorkerState) -> None:
        logger.debug("worker on %s: %s -> %s", self.device, self.state, state)
        self.state = state

    async def run(self) -> None:
        """Run worker after worker, each after the end of the one before, until this task is cancelled."""
        while True:
            exit_code = await self._run_worker()
            cause, self._kill_cause = self._kill_cause or "exit", ""
            if self.state is WorkerState.UNLOADING:
                self._enter(WorkerState.ASLEEP)
                await self._wanted.wait()
                self._enter(WorkerState.WAKING)
                continue
            self.deaths_in_a_row += 1
            self._metrics.worker_deaths.labels(cause).inc()
            tickets, self.tickets = list(self.tickets.values()), {}
            logger.error(
                "worker on %s died (%s, exit code %s) with %d jobs", self.device, cause, exit_code, len(tickets)
            )
            self._owner.died(self, tickets)
            await asyncio.sleep(min(_MAX_BACKOFF, 0.5 * 2 ** (self.deaths_in_a_row - 1) - 0.5))
            self._enter(WorkerState.STARTING)

    async def _run_worker(self) -> int | None:
        """Run one worker from start to end, in state DEAD or UNLOADING then.

        Returns its exit code, or None if it could not be started. After a cancellation, `close` ends the process.
        """
        self._starting = asyncio.create_task(WorkerProcess.spawn(self.start))
        try:
            process = self._process = await asyncio.shield(self._starting)
        except OSError:
            logger.exception("no worker can be started on %s", self.device)
            self._kill_cause = "spawn"
            self._enter(WorkerState.DEAD)
            return None
        self._started_at = time.monotonic()
        self._liveness.started()
        logger.info("worker %d starts on %s", process.pid, self.device)
        try:
            async for message in process.messages():
                self._liveness.received()
                if self.state is WorkerState.SILENT:
                    self._enter(WorkerState.READY)
                self._owner.received(self, message)
                self._liveness.replied(more=bool(self.tickets))
        except Exception:
            logger.exception("malformed message from worker %d", process.pid)
            self.kill("garbage")
        finally:
            self._process = None
            if self.state is not WorkerState.UNLOADING:
                self._enter(WorkerState.DEAD)
        return await process.stop()

    async def close(self) -> None:
        """End the worker, whatever its state; `run` must have been cancelled before."""
        if self._starting:
            with contextlib.suppress(OSError):
                await (await self._starting).stop()
        self._enter(WorkerState.STOPPED)

    def loaded(self, message: Ready) -> None:
        """The worker has loaded and takes jobs. Each later worker has to load the same onto the same device."""
        self._enter(WorkerState.READY)
        self._freeze(message)
        self.capacity = message.capacity
        self._last_busy_at = time.monotonic()
        self.start_seconds = self._last_busy_at - self._started_at
        self._liveness.loaded(message.canary_seconds, message.pass_seconds * message.capacity)
        self._metrics.batch_limit.labels(message.info.device).set(message.capacity)

    def _freeze(self, message: Ready) -> None:
        """Replace what is `auto`, or may change on the hub, by what was found. A later worker chooses nothing anew."""
        info = message.info
        self.info = replace(info, reason=self.info.reason) if self.info else info
        if self.device == "auto":
            self.device = info.device
        found = {"model": info.model_setting, "vae": info.vae_setting, "dtype": info.dtype}
        update = {**{name: value for name, value in found.items() if value}, "max_batch": message.capacity}
        self.start = replace(self.start, device=self.device, settings=self.start.settings.model_copy(update=update))

    def lower_capacity(self, capacity: int) -> None:
        """The device has memory for this many jobs at once; that holds for later workers too."""
        self.capacity = capacity
        self.start = replace(self.start, settings=self.start.settings.model_copy(update={"max_batch": capacity}))
        if self.info:
            self._metrics.batch_limit.labels(self.info.device).set(capacity)

    def send(self, ticket: Ticket) -> None:
        """Send a job to the worker, which must take jobs."""
        ticket.worker = self
        self._liveness.job_sent()
        self.tickets[ticket.job.id] = ticket
        self._send(ticket.job)

    def withdraw(self, ticket: Ticket) -> bool:
        """Take a job off the worker; False if it is no longer there."""
        if self.tickets.pop(ticket.job.id, None) is None:
            return False
        self._send(Cancel(ticket.job.id))
        return True

    def _send(self, message: ToWorker) -> None:
        # A worker that has just ended needs no message: its tickets are about to go back to the queue.
        if self._process:
            self._process.send(message)

    def check(self, tick_timeout: float, load_timeout: float) -> None:
        """Kill a worker that has been silent for too long, since only that frees a device that hangs.

        An idle worker gets a canary from time to time.

        Args:
            tick_timeout: seconds of silence that a worker with jobs may take at most.
            load_timeout: seconds of silence that a worker may take while it loads.
        """
        if not self._process or self.state is WorkerState.UNLOADING:
            return
        if not self.takes_jobs:
            silence = self._liveness.silence
            silence = silence if silence > load_timeout else 0.0
        elif self.tickets:
            self._last_busy_at = time.monotonic()
            silence = self._liveness.hangs(tick_timeout)
        elif self._liveness.canary_due:
            self._liveness.canary_sent()
            self._send(Canary())
            return
        else:
            silence = self._liveness.canary_missed()
        if silence:
            logger.error("worker %s on %s has been silent for %.3g s", self.pid, self.device, silence)
            self.kill("hang")
        elif self.state is WorkerState.READY and self._liveness.silent:
            self._enter(WorkerState.SILENT)

    def reset_liveness(self) -> None:
        """Forgive the silence so far: this process did not run, and so received nothing."""
        self._liveness.reset()

    def unload_if_idle(self, idle_seconds: float) -> None:
        """End a worker that has been idle for so long; `wake` starts another."""
        idle = time.monotonic() - self._last_busy_at
        if self._process and self.state is WorkerState.READY and not self.tickets and idle > idle_seconds:
            logger.info("worker on %s idle for %g s: unloading", self.device, idle_seconds)
            # No job is sent from here on, and it has none: none can be lost.
            self._enter(WorkerState.UNLOADING)
            self._wanted.clear()
            self._process.close()

    def wake(self) -> None:
        """Start a worker again if it was unloaded."""
        self._wanted.set()

    def kill(self, cause: str) -> None:
        """End the worker at once and count the cause; no effect if none runs."""
        if self._process:
            self._kill_cause = cause
            self._process.kill()
