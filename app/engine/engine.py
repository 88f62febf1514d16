"""The front half, in the API process: admission, deadlines, cancellation, one supervised worker per device."""

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace

from app.engine.admission import Admission
from app.engine.jobs import Broken, Cancel, Done, Failed, Job, ModelInfo, Progress, Ready, Result, Start, Started
from app.engine.process import WorkerProcess
from app.errors import (
    DeadlineExceeded,
    EngineError,
    EngineStopped,
    NonFiniteResult,
    ServiceError,
    ShuttingDown,
    Unavailable,
    WorkerLost,
)
from app.metrics import Metrics
from app.settings import Settings

logger = logging.getLogger(__name__)

LOADER = "app.engine.diffusion:load"
"""`module:function` that a worker calls with the settings and its device; a string, so that torch stays out of here."""

_MAX_BACKOFF = 30.0


@dataclass(eq=False)
class _Ticket:
    """A job, and who waits for it."""

    job: Job
    future: "asyncio.Future[Result]"
    on_progress: Callable[[Progress], None] | None
    enqueued: float
    started: float = 0.0
    deaths: int = 0
    lane: "_Lane | None" = None


@dataclass(eq=False)
class _Lane:
    """One device: its worker process, if one runs, and the tickets in that worker's hands, oldest first."""

    device: str
    process: WorkerProcess | None = None
    info: ModelInfo | None = None
    tickets: dict[str, _Ticket] = field(default_factory=dict)
    heard: float = 0.0
    deaths_in_a_row: int = 0
    kill_cause: str = ""


class Engine:
    """Runs jobs on supervised worker processes. Knows no HTTP and no picture formats. Lives on one event loop.

    Args:
        settings: devices, batch, queue and time limits.
        metrics: where its counts go.
        loader: what a worker calls to get its model.
        on_failure: called once if the engine gives up; every job has then been refused.
    """

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        loader: str = LOADER,
        on_failure: Callable[[EngineStopped], None] | None = None,
    ) -> None:
        self.settings = settings
        self.metrics = metrics
        self.admission = Admission(settings.queue_size, settings.deadline_seconds)
        self.failure: EngineStopped | None = None
        self._loader = loader
        self._on_failure = on_failure
        self._lanes = [_Lane(device) for device in settings.devices.split(",")]
        self._waiting: deque[_Ticket] = deque()
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = False
        self._last_done = 0.0

    @property
    def info(self) -> ModelInfo | None:
        """What the workers loaded; None while no worker is ready."""
        return next((lane.info for lane in self._lanes if lane.info), None)

    async def start(self) -> None:
        """Start the workers and return at once: jobs wait until one is ready."""
        self._tasks = [asyncio.create_task(self._supervise(lane)) for lane in self._lanes]
        self._tasks.append(asyncio.create_task(self._watch()))

    async def stop(self) -> None:
        """End the workers and refuse whatever still waits."""
        self._stopping = True
        self._refuse_all(ShuttingDown("The service is shutting down. Try again in a moment."))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @contextlib.contextmanager
    def admit(self, unet_rows: int) -> Iterator[float]:
        """Hold a place for a request; yields its deadline, a reading of `time.monotonic()`.

        Raises:
            Unavailable: the queue is full, the deadline cannot be made, or the engine is going or gone.
        """
        if self.failure or self._stopping:
            raise ShuttingDown("The service is shutting down. Try again in a moment.")
        seconds = self.admission.admit(unet_rows)
        try:
            yield time.monotonic() + seconds
        finally:
            self.admission.release(unet_rows)

    async def run(self, job: Job, on_progress: Callable[[Progress], None] | None = None) -> Result:
        """Run one job to its end. Cancelling the task that waits here cancels the job, wherever it is.

        Raises:
            DeadlineExceeded: it was not finished in time.
            EngineError: it failed.
            Unavailable: the engine stopped.
        """
        if self.failure:
            raise _gone()
        loop = asyncio.get_running_loop()
        ticket = _Ticket(job, loop.create_future(), on_progress, enqueued=time.monotonic())
        timer = loop.call_later(max(0.0, job.deadline - time.monotonic()), self._expire, ticket)
        self._waiting.append(ticket)
        self._dispatch()
        try:
            return await ticket.future
        finally:
            timer.cancel()
            self._forget(ticket)

    def _dispatch(self) -> None:
        """Hand waiting jobs to the ready worker with the fewest; each may hold a second batch in reserve."""
        while self._waiting:
            ready = [lane for lane in self._lanes if lane.info and len(lane.tickets) < 2 * self.settings.max_batch]
            if not ready:
                break
            lane = min(ready, key=lambda lane: len(lane.tickets))
            ticket = self._waiting.popleft()
            ticket.lane = lane
            if not lane.tickets:
                lane.heard = time.monotonic()
            lane.tickets[ticket.job.id] = ticket
            assert lane.process is not None  # noqa: S101  a lane with info has a process
            lane.process.send(ticket.job)
        self._count()

    def _forget(self, ticket: _Ticket) -> None:
        """Nobody waits for this ticket any more: take it out of the queue, or off the worker."""
        if ticket.lane is None:
            with contextlib.suppress(ValueError):
                self._waiting.remove(ticket)
        elif ticket.lane.tickets.pop(ticket.job.id, None):
            if ticket.lane.process:
                ticket.lane.process.send(Cancel(ticket.job.id))
            self._dispatch()
        self._count()

    def _expire(self, ticket: _Ticket) -> None:
        self._refuse(ticket, _too_late(self.settings.deadline_seconds))

    @staticmethod
    def _refuse(ticket: _Ticket, error: ServiceError) -> None:
        if not ticket.future.done():
            ticket.future.set_exception(error)

    def _refuse_all(self, error: ServiceError) -> None:
        for ticket in (*self._waiting, *(t for lane in self._lanes for t in lane.tickets.values())):
            self._refuse(ticket, error)

    async def _supervise(self, lane: _Lane) -> None:
        """Keep one worker running on this lane's device until the engine stops or gives up."""
        while not self.failure:
            lane.process = await WorkerProcess.spawn(Start(self._loader, lane.device, self.settings))
            lane.heard = time.monotonic()
            logger.info("worker %d starts on %s", lane.process.pid, lane.device)
            exit_code = None
            try:
                async for message in lane.process.messages():
                    lane.heard = time.monotonic()
                    self._handle(lane, message)
            except Exception:
                logger.exception("worker %d sent something that cannot be read", lane.process.pid)
                self._kill(lane, "garbage")
            finally:
                exit_code = await asyncio.shield(lane.process.stop())
                lane.process, lane.info = None, None
                self._count()
            await self._mourn(lane, exit_code)

    async def _mourn(self, lane: _Lane, exit_code: int) -> None:
        """A worker died unasked: its jobs go back to the front of the queue, and after a pause another one starts."""
        cause, lane.kill_cause = lane.kill_cause or "exit", ""
        lane.deaths_in_a_row += 1
        self.metrics.worker_deaths.labels(cause).inc()
        logger.error(
            "worker on %s died (%s, exit code %d) with %d jobs", lane.device, cause, exit_code, len(lane.tickets)
        )
        tickets, lane.tickets = list(lane.tickets.values()), {}
        for ticket in reversed(tickets):
            ticket.lane = None
            if ticket.started:
                ticket.deaths += 1
                ticket.started = 0.0
                ticket.job = replace(ticket.job, alone=True)
            if ticket.deaths >= 2:
                self._refuse(
                    ticket, WorkerLost("The worker process died twice with this request. Do not send it again.")
                )
            else:
                self._waiting.appendleft(ticket)
        if lane.deaths_in_a_row >= self.settings.max_worker_deaths:
            self._give_up(EngineStopped(f"{lane.deaths_in_a_row} workers in a row died on {lane.device}; see the log."))
        elif not self.failure:
            self._dispatch()
            await asyncio.sleep(min(_MAX_BACKOFF, 0.5 * 2 ** (lane.deaths_in_a_row - 1) - 0.5))

    def _give_up(self, failure: EngineStopped) -> None:
        if self.failure:
            return
        self.failure = failure
        logger.critical("the engine gives up: %s", failure)
        self._refuse_all(_gone())
        if self._on_failure:
            self._on_failure(failure)

    async def _watch(self) -> None:
        """Kill a worker that has work and says nothing: only its end frees a device that hangs."""
        while True:
            await asyncio.sleep(min(1.0, self.settings.tick_timeout_seconds / 4))
            for lane in self._lanes:
                limit = self.settings.tick_timeout_seconds if lane.info else self.settings.load_timeout_seconds
                busy = bool(lane.tickets) or not lane.info
                if lane.process and busy and time.monotonic() - lane.heard > limit:
                    logger.error("worker %d has been silent for %g s", lane.process.pid, limit)
                    self._kill(lane, "hang")

    @staticmethod
    def _kill(lane: _Lane, cause: str) -> None:
        if lane.process:
            lane.kill_cause = cause
            lane.process.kill()

    def _handle(self, lane: _Lane, message: object) -> None:
        """One message of a worker. Those about jobs that nobody waits for any more are dropped."""
        match message:
            case Ready():
                lane.info = message.info
                self.metrics.model.info(asdict(message.info))
                if not self.admission.seconds_per_row:
                    self.admission.measured(1, message.warmup)
                logger.info("worker %s is ready after a first pass of %.2f s", message.info.device, message.warmup)
                self._dispatch()
            case Broken():
                self._give_up(EngineStopped(message.message))
            case Started() if ticket := lane.tickets.get(message.job_id):
                ticket.started = time.monotonic()
            case Progress():
                self._progress(lane, message)
            case Done():
                self._done(lane, message)
            case Failed() if ticket := lane.tickets.pop(message.job_id, None):
                self._refuse(ticket, _failure(message, self.settings.deadline_seconds))
                self._dispatch()

    def _progress(self, lane: _Lane, message: Progress) -> None:
        self.metrics.batch_size.observe(message.batch)
        self.metrics.tick_seconds.observe(message.seconds)
        ticket = lane.tickets.get(message.job_id)
        if ticket and ticket.on_progress:
            ticket.on_progress(message)

    def _done(self, lane: _Lane, message: Done) -> None:
        now = time.monotonic()
        lane.deaths_in_a_row = 0
        self.metrics.worker_memory.labels(lane.device).set(message.peak_memory)
        ticket = lane.tickets.pop(message.job_id, None)
        self._dispatch()
        if ticket is None or ticket.future.done():
            return
        self.admission.measured(ticket.job.unet_rows, now - max(self._last_done, ticket.started))
        self._last_done = now
        self.metrics.images.inc()
        self.metrics.redecoded.inc(message.result.redecoded)
        ticket.future.set_result(replace(message.result, queued=ticket.started - ticket.enqueued))

    def _count(self) -> None:
        self.metrics.waiting.set(len(self._waiting))
        self.metrics.on_board.set(sum(len(lane.tickets) for lane in self._lanes))
        self.metrics.ready.set(self.info is not None)


def _gone() -> Unavailable:
    return Unavailable("The engine has stopped. The service is about to restart.", retry_after=10)


def _too_late(seconds: float) -> DeadlineExceeded:
    return DeadlineExceeded(
        f"The picture was not finished within {seconds:g} s. Send fewer steps, or try again when less is going on.",
        retry_after=5,
    )


def _failure(message: Failed, deadline_seconds: float) -> ServiceError:
    match message.reason:
        case "expired":
            return _too_late(deadline_seconds)
        case "non_finite":
            return NonFiniteResult(
                "The result held values that are no numbers, even in float32. Change the seed, prompt or picture."
            )
        case _:
            return EngineError("The picture could not be made. The log has the reason, under the request id.")
