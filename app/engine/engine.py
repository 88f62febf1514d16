"""The engine in the API process: admission, deadlines, cancellation, and one supervised worker for each device."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from app.engine.admission import CODEC_ROWS, Admission
from app.engine.failures import deadline_error, engine_stopped_error, error_for, shutting_down_error
from app.engine.fair_queue import FairQueue
from app.engine.liveness import LivenessLimits
from app.engine.messages import (
    BatchLimitLowered,
    Done,
    Failed,
    Job,
    LoadFailed,
    ModelInfo,
    Progress,
    Ready,
    Result,
    Start,
    Started,
    Ticked,
    WorkerFailing,
)
from app.engine.positions import Positions
from app.engine.supervisor import WorkerSupervisor
from app.engine.ticket import OnProgress, Ticket
from app.errors import EngineStopped, ServiceError, WorkerLost
from app.observability.metrics import Metrics
from app.settings import Settings

logger = logging.getLogger(__name__)

LOADER = "app.model.load:load"
"""`module:function` that a worker calls with its settings and its device. A string: this process imports no torch."""


class Engine:
    """Runs jobs on supervised worker processes. Knows no HTTP and no image formats. Lives on one event loop.

    Args:
        settings: devices, batch, queue and time limits.
        metrics: where it counts.
        loader: the `module:function` that a worker calls to load its model.
        on_failure: called once if the engine gives up, after it has refused every job.
        limits: how long a worker may be silent.
    """

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        loader: str,
        on_failure: Callable[[EngineStopped], None],
        limits: LivenessLimits | None = None,
    ) -> None:
        self.settings = settings
        self.metrics = metrics
        self.admission = Admission(settings.queue_size, settings.deadline_seconds)
        self.failure: EngineStopped | None = None
        self._on_failure = on_failure
        limits = self._limits = limits or LivenessLimits()
        self.workers = [
            WorkerSupervisor(Start(loader, device, settings.for_worker()), metrics, self, limits)
            for device in settings.devices.split(",")
        ]
        """One for each device."""
        self._waiting: FairQueue[Ticket] = FairQueue()
        self._positions = Positions(self._waiting, self.workers)
        self._tasks: list[asyncio.Task[None]] = []
        self._closed = False
        self._over = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._last_done = 0.0

    @property
    def info(self) -> ModelInfo | None:
        """The model that the workers loaded; None until one has."""
        return next((worker.info for worker in self.workers if worker.info), None)

    @property
    def ready(self) -> bool:
        """Whether a job that is sent now can be expected to be done."""
        return not self.failure and not self._closed and any(worker.available for worker in self.workers)

    @property
    def draining(self) -> bool:
        """Whether it only finishes what it has admitted."""
        return self._closed

    async def start(self) -> None:
        """Start the workers and return at once. Jobs wait until one is ready."""
        self._tasks = [asyncio.create_task(worker.run()) for worker in self.workers]
        self._tasks.append(asyncio.create_task(self._watch()))
        for task in self._tasks:
            task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        """A task of the engine has ended. Unless it was cancelled, jobs would now wait for ever."""
        if not task.cancelled() and (error := task.exception()):
            logger.critical("the engine failed", exc_info=error)
            self._give_up(EngineStopped(f"The engine failed: {error!r}"))

    async def drain(self, seconds: float) -> None:
        """Admit no more jobs, wait for those that were admitted, and refuse those that remain after so many seconds."""
        self._closed = True
        self._count()
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._idle.wait()
        finally:
            self._end()

    async def stop(self) -> None:
        """End the workers and refuse all jobs that remain."""
        self._end()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(worker.close() for worker in self.workers))

    def _end(self) -> None:
        self._closed = self._over = True
        self._refuse_all(shutting_down_error())

    @contextlib.contextmanager
    def admit(self, unet_rows: int, caller: str = "", timeout: float | None = None) -> Iterator[float]:
        """Hold a place in the queue for a request; yields its deadline, a reading of `time.monotonic()`.

        Args:
            unet_rows: rows of UNet batches that it costs.
            caller: shares the queue with other callers.
            timeout: seconds that the client will wait, if less than the setting's.

        Raises:
            Unavailable: the queue is full, the deadline cannot be met, or the engine is stopping or has stopped.
            TooManyRequests: the queue is full or the deadline cannot be met, and other callers have less in the queue.
        """
        if self.failure or self._closed:
            raise shutting_down_error()
        # An unloaded worker has to load first. How long a first load takes is not known.
        loading = not any(worker.takes_jobs for worker in self.workers)
        delay = min(worker.start_seconds for worker in self.workers) if loading else 0.0
        seconds = self.admission.admit(unet_rows, caller, timeout, delay)
        self._idle.clear()
        try:
            yield time.monotonic() + seconds
        finally:
            self.admission.release(unet_rows, caller)
            if not self.admission.requests:
                self._idle.set()

    async def run(self, job: Job, on_progress: OnProgress | None = None, caller: str = "") -> Result:
        """Run one job to its end. Cancelling the task that awaits this cancels the job, in the queue or on a worker.

        Args:
            job: the job; its id must be unique.
            on_progress: called with its queue positions, steps and previews.
            caller: shares the workers with other callers.

        Raises:
            DeadlineExceeded: it was not finished in time.
            EngineError: it failed.
            Unavailable: the engine stopped.
        """
        if self.failure:
            raise engine_stopped_error()
        if self._over:
            raise shutting_down_error()
        loop = asyncio.get_running_loop()
        ticket = Ticket(job, loop.create_future(), on_progress, enqueued=time.monotonic())
        timer = loop.call_later(max(0.0, job.deadline - time.monotonic()), self._expire, ticket)
        self._positions.add(ticket)
        self._waiting.push(ticket, caller, job.unet_rows + CODEC_ROWS)
        self._dispatch()
        try:
            return await ticket.future
        finally:
            timer.cancel()
            self._forget(ticket)

    def _dispatch(self) -> None:
        """Send waiting jobs, each to the worker with the fewest jobs among those that have room."""
        now = time.monotonic()
        while self._waiting:
            ready = [worker for worker in self.workers if worker.has_room]
            if not ready:
                break
            ticket = self._waiting.pop()
            if self.admission.too_late(ticket.job.unet_rows, ticket.job.deadline - now):
                # It would cost a UNet call that the jobs behind it can still use.
                self._expire(ticket)
            else:
                min(ready, key=lambda worker: len(worker.tickets)).send(ticket)
        self._wake()
        self._positions.changed()
        self._count()

    def _wake(self) -> None:
        """Wake as many unloaded workers as the waiting jobs need."""
        room = sum(2 * worker.capacity for worker in self.workers if not worker.asleep)
        for worker in self.workers:
            if worker.asleep and len(self._waiting) > room:
                worker.wake()
                room += 2 * worker.capacity

    def _forget(self, ticket: Ticket) -> None:
        """The request has ended: take its ticket out of the queue, or off its worker."""
        self._positions.remove(ticket)
        if ticket.worker is None:
            self._waiting.remove(ticket)
            self._positions.changed()
        elif ticket.worker.withdraw(ticket):
            self._dispatch()
        self._count()

    def _expire(self, ticket: Ticket) -> None:
        ticket.refuse(deadline_error(ticket.job.deadline - ticket.enqueued))

    def _refuse_all(self, error: ServiceError) -> None:
        for ticket in (*self._waiting, *(t for worker in self.workers for t in worker.tickets.values())):
            ticket.refuse(error)

    def died(self, worker: WorkerSupervisor, tickets: list[Ticket]) -> None:
        """A worker died: its jobs go back to the front of the queue, and those that it had begun run isolated."""
        for ticket in reversed(tickets):
            ticket.worker = None
            if ticket.started:
                ticket.deaths += 1
                ticket.started = 0.0
                ticket.ahead = None
                ticket.job = replace(ticket.job, isolated=True)
            if ticket.deaths >= 2:
                ticket.refuse(WorkerLost("The worker process died twice with this request. Do not send it again."))
            else:
                self._waiting.push_first(ticket)
        if worker.deaths_in_a_row >= self.settings.max_worker_deaths:
            self._give_up(
                EngineStopped(f"{worker.deaths_in_a_row} workers in a row died on {worker.device}; see the log.")
            )
        else:
            self._dispatch()

    def _give_up(self, failure: EngineStopped) -> None:
        self.failure = failure
        logger.critical("the engine gives up: %s", failure)
        self._refuse_all(engine_stopped_error())
        for task in self._tasks:
            task.cancel()
        self._on_failure(failure)

    async def _watch(self) -> None:
        """Check for silent and idle workers, often enough for the shortest limit."""
        tick, load = self.settings.tick_timeout_seconds, self.settings.load_timeout_seconds
        idle = self.settings.idle_unload_seconds
        pause = min(self._limits.watch, tick / 4, load / 4)
        while True:
            before = time.monotonic()
            await asyncio.sleep(pause)
            late = time.monotonic() - before - pause > self._limits.late
            for worker in self.workers:
                if late:
                    worker.reset_liveness()
                worker.check(tick, load)
                if idle:
                    worker.unload_if_idle(idle)
            self._count()

    def received(self, worker: WorkerSupervisor, message: Any) -> None:
        """Handle one message of a worker. Messages about jobs whose request has ended are dropped."""
        match message:
            case Ready():
                worker.loaded(message)
                facts = {
                    **message.info.shown(),
                    "compile": self.settings.compile,
                    "cuda_graphs": str(message.graphs),
                }
                self.metrics.model.labels(facts.pop("device")).info(facts)
                if not self.admission.seconds_per_row:
                    self.admission.measured(1, message.pass_seconds)
                logger.info("the worker on %s is ready", message.info.device)
                self._dispatch()
            case BatchLimitLowered():
                worker.lower_capacity(message.capacity)
            case WorkerFailing():
                worker.kill(message.cause)
            case LoadFailed():
                before = f"The worker on {worker.device} cannot be replaced: " if worker.info else ""
                self._give_up(EngineStopped(before + message.message))
            case Started() if ticket := worker.tickets.get(message.job_id):
                ticket.started = time.monotonic()
            case Ticked():
                self.metrics.batch_size.observe(message.jobs)
                self.metrics.tick_seconds.observe(message.seconds)
            case Progress() if (ticket := worker.tickets.get(message.job_id)) and ticket.on_progress:
                ticket.on_progress(message)
            case Done():
                self._done(worker, message)
            case Failed() if ticket := worker.tickets.pop(message.job_id, None):
                ticket.refuse(error_for(message, ticket.job.deadline - ticket.enqueued))
                self._dispatch()

    def _done(self, worker: WorkerSupervisor, message: Done) -> None:
        now = time.monotonic()
        worker.deaths_in_a_row = 0
        device = worker.info.device if worker.info else worker.device
        self.metrics.worker_memory.labels(device).set(message.peak_memory)
        for kind, size in message.device_memory.items():
            self.metrics.device_memory.labels(device, kind).set(size)
        ticket = worker.tickets.pop(message.job_id, None)
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
        self.metrics.on_board.set(sum(len(worker.tickets) for worker in self.workers))
        for worker in self.workers:
            if worker.info:
                self.metrics.worker_ready.labels(worker.info.device).set(self.ready and worker.available)
