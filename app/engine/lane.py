"""One device: a worker process that is kept running, and the tickets in that worker's hands."""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from app.engine.jobs import Cancel, Job, ModelInfo, Progress, Result, Start, ToWorker
from app.engine.process import WorkerProcess
from app.metrics import Metrics

logger = logging.getLogger(__name__)

_MAX_BACKOFF = 30.0


@dataclass(eq=False)
class Ticket:
    """A job, and who waits for it. `enqueued` and `started` are readings of `time.monotonic()`; 0 is not yet.

    Attributes:
        deaths: workers that died with it on board.
        lane: whose worker has it; None while it waits.
    """

    job: Job
    future: "asyncio.Future[Result]"
    on_progress: Callable[[Progress], None] | None
    enqueued: float
    started: float = 0.0
    deaths: int = 0
    lane: "Lane | None" = None

    def refuse(self, error: Exception) -> None:
        """Tell who waits that it failed; nothing if it is over already."""
        if not self.future.done():
            self.future.set_exception(error)


class Owner(Protocol):
    """Who is told of what happens to a lane."""

    def received(self, lane: "Lane", message: Any) -> None: ...
    def died(self, lane: "Lane", tickets: list[Ticket]) -> None: ...


class Lane:
    """Keeps one worker running on its device, whatever happens to it.

    Args:
        start: what each new worker is told first.
        metrics: where deaths are counted.
        owner: gets every message, and the tickets of a worker that died.
    """

    def __init__(self, start: Start, metrics: Metrics, owner: Owner) -> None:
        self.start = start
        self.device = start.device
        self.info: ModelInfo | None = None
        self.capacity = 1
        self.tickets: dict[str, Ticket] = {}
        self.deaths_in_a_row = 0
        self._metrics = metrics
        self._owner = owner
        self._starting: asyncio.Task[WorkerProcess] | None = None
        self._process: WorkerProcess | None = None
        self._heard = 0.0
        self._kill_cause = ""

    @property
    def pid(self) -> int | None:
        """The worker's, while one runs."""
        return self._process.pid if self._process else None

    async def run(self) -> None:
        """Start worker after worker, each once the one before has died, until this task is cancelled."""
        while True:
            exit_code = await self._run_worker()
            cause, self._kill_cause = self._kill_cause or "exit", ""
            self.deaths_in_a_row += 1
            self._metrics.worker_deaths.labels(cause).inc()
            tickets, self.tickets = list(self.tickets.values()), {}
            logger.error(
                "worker on %s died (%s, exit code %d) with %d jobs", self.device, cause, exit_code, len(tickets)
            )
            self._owner.died(self, tickets)
            await asyncio.sleep(min(_MAX_BACKOFF, 0.5 * 2 ** (self.deaths_in_a_row - 1) - 0.5))

    async def _run_worker(self) -> int:
        """One worker from start to end; its exit code. After cancelling it, `close` sees that end through."""
        self._starting = asyncio.create_task(WorkerProcess.spawn(self.start))
        process = self._process = await asyncio.shield(self._starting)
        self._heard = time.monotonic()
        logger.info("worker %d starts on %s", process.pid, self.device)
        try:
            async for message in process.messages():
                self._heard = time.monotonic()
                self._owner.received(self, message)
        except Exception:
            logger.exception("worker %d sent something that cannot be read", process.pid)
            self.kill("garbage")
        finally:
            self._process, self.info = None, None
        return await process.stop()

    async def close(self) -> None:
        """End the worker, wherever in its life it is; `run` must have been cancelled before."""
        if self._starting:
            await (await self._starting).stop()

    def send(self, ticket: Ticket) -> None:
        """Hand a job to the worker, which must be ready."""
        ticket.lane = self
        if not self.tickets:
            # It had nothing to say until now: its silence counts from here.
            self._heard = time.monotonic()
        self.tickets[ticket.job.id] = ticket
        self._tell(ticket.job)

    def withdraw(self, ticket: Ticket) -> bool:
        """Take a job off the worker; False if it is not there any more."""
        if self.tickets.pop(ticket.job.id, None) is None:
            return False
        self._tell(Cancel(ticket.job.id))
        return True

    def _tell(self, message: ToWorker) -> None:
        # One that is just dying needs no word: its tickets are about to go back.
        if self._process:
            self._process.send(message)

    def check(self, tick_timeout: float, load_timeout: float) -> None:
        """Kill a worker that has work and has said nothing for too long: only its end frees a device that hangs."""
        limit = tick_timeout if self.info else load_timeout
        busy = bool(self.tickets) or not self.info
        if busy and time.monotonic() - self._heard > limit:
            logger.error("worker %s on %s has been silent for %g s", self.pid, self.device, limit)
            self.kill("hang")

    def kill(self, cause: str) -> None:
        """End the worker at once; the cause is counted. Nothing if none runs."""
        if self._process:
            self._kill_cause = cause
            self._process.kill()
