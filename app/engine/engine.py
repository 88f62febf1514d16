"""The front half, in the API process: admission, deadlines, cancellation, one supervised worker per device."""

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from typing import Any

from app.engine.admission import Admission
from app.engine.jobs import Broken, Done, Failed, Job, ModelInfo, Progress, Ready, Result, Start, Started, Ticked
from app.engine.lane import Lane, Ticket
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
        loader: str,
        on_failure: Callable[[EngineStopped], None],
    ) -> None:
        self.settings = settings
        self.metrics = metrics
        self.admission = Admission(settings.queue_size, settings.deadline_seconds)
        self.failure: EngineStopped | None = None
        self._on_failure = on_failure
        self._lanes = [Lane(Start(loader, device, settings), metrics, self) for device in settings.devices.split(",")]
        self._waiting: deque[Ticket] = deque()
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = False
        self._last_done = 0.0

    @property
    def info(self) -> ModelInfo | None:
        """What the workers loaded; None while no worker is ready."""
        return next((lane.info for lane in self._lanes if lane.info), None)

    async def start(self) -> None:
        """Start the workers and return at once: jobs wait until one is ready."""
        self._tasks = [asyncio.create_task(lane.run()) for lane in self._lanes]
        self._tasks.append(asyncio.create_task(self._watch()))

    async def stop(self) -> None:
        """End the workers and refuse whatever still waits."""
        self._stopping = True
        self._refuse_all(ShuttingDown("The service is shutting down. Try again in a moment."))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(lane.close() for lane in self._lanes))

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
        ticket = Ticket(job, loop.create_future(), on_progress, enqueued=time.monotonic())
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
            ready = [lane for lane in self._lanes if lane.info and len(lane.tickets) < 2 * lane.capacity]
            if not ready:
                break
            min(ready, key=lambda lane: len(lane.tickets)).send(self._waiting.popleft())
        self._count()

    def _forget(self, ticket: Ticket) -> None:
        """Nobody waits for this ticket any more: take it out of the queue, or off the worker."""
        if ticket.lane is None:
            with contextlib.suppress(ValueError):
                self._waiting.remove(ticket)
        elif ticket.lane.withdraw(ticket):
            self._dispatch()
        self._count()

    def _expire(self, ticket: Ticket) -> None:
        ticket.refuse(_too_late(self.settings.deadline_seconds))

    def _refuse_all(self, error: ServiceError) -> None:
        for ticket in (*self._waiting, *(t for lane in self._lanes for t in lane.tickets.values())):
            ticket.refuse(error)

    def died(self, lane: Lane, tickets: list[Ticket]) -> None:
        """A worker died unasked: its jobs go back to the front of the queue, and those on board run alone."""
        for ticket in reversed(tickets):
            ticket.lane = None
            if ticket.started:
                ticket.deaths += 1
                ticket.started = 0.0
                ticket.job = replace(ticket.job, alone=True)
            if ticket.deaths >= 2:
                ticket.refuse(WorkerLost("The worker process died twice with this request. Do not send it again."))
            else:
                self._waiting.appendleft(ticket)
        if lane.deaths_in_a_row >= self.settings.max_worker_deaths:
            self._give_up(EngineStopped(f"{lane.deaths_in_a_row} workers in a row died on {lane.device}; see the log."))
        else:
            self._dispatch()

    def _give_up(self, failure: EngineStopped) -> None:
        self.failure = failure
        logger.critical("the engine gives up: %s", failure)
        self._refuse_all(_gone())
        for task in self._tasks:
            task.cancel()
        self._on_failure(failure)

    async def _watch(self) -> None:
        """Look after silent workers, often enough for the shorter limit."""
        tick, load = self.settings.tick_timeout_seconds, self.settings.load_timeout_seconds
        while True:
            await asyncio.sleep(min(1.0, tick / 4, load / 4))
            for lane in self._lanes:
                lane.check(tick, load)

    def received(self, lane: Lane, message: Any) -> None:
        """One message of a worker. Those about jobs that nobody waits for any more are dropped."""
        match message:
            case Ready():
                lane.info, lane.capacity = message.info, message.capacity
                self.metrics.model.info(asdict(message.info))
                if not self.admission.seconds_per_row:
                    self.admission.measured(1, message.pass_seconds)
                logger.info("the worker on %s is ready", message.info.device)
                self._dispatch()
            case Broken():
                self._give_up(EngineStopped(message.message))
            case Started() if ticket := lane.tickets.get(message.job_id):
                ticket.started = time.monotonic()
            case Ticked():
                self.metrics.batch_size.observe(message.jobs)
                self.metrics.tick_seconds.observe(message.seconds)
            case Progress() if (ticket := lane.tickets.get(message.job_id)) and ticket.on_progress:
                ticket.on_progress(message)
            case Done():
                self._done(lane, message)
            case Failed() if ticket := lane.tickets.pop(message.job_id, None):
                ticket.refuse(_failure(message, self.settings.deadline_seconds))
                self._dispatch()

    def _done(self, lane: Lane, message: Done) -> None:
        now = time.monotonic()
        lane.deaths_in_a_row = 0
        self.metrics.worker_memory.labels(lane.info.device if lane.info else lane.device).set(message.peak_memory)
        ticket = lane.tickets.pop(message.job_id, None)
        self._dispatch()
        if ticket is None or ticket.future.done():
            return
        self.admission.measured(ticket.job.unet_rows, now - max(self._last_done, ticket.started))
        self._last_done = now
        self.metrics.images.inc()
        self.metrics.redecoded.inc(message.result.redecoded)
        for what, known in message.result.lookups:
            self.metrics.cache.labels(what, "hit" if known else "miss").inc()
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
