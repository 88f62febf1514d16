"""One device: a worker process that is kept running, or sleeps, and the tickets in that worker's hands."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

from app.edits import Queued
from app.engine.messages import Canary, Cancel, Job, ModelInfo, Progress, Ready, Result, Start, ToWorker
from app.engine.process import WorkerProcess
from app.observability.metrics import Metrics

logger = logging.getLogger(__name__)

_MAX_BACKOFF = 30.0

CANARY_SECONDS = 4.0
"""So long a worker without work is left alone before it has to show that it still computes, and so long it has for it:
one that does not is not ready any more within ten seconds."""

_SLOWEST_CANARY = 50
"""How many times as long as at the start an answer may take, where that is more: others may want the processor too."""

_SILENCE_SECONDS = 8.0
_SLOWEST_TURN = 4
"""A worker that owes an answer and says nothing for so long, or for so many times the time of its jobs' single pass, is
not ready."""

_HANG_SECONDS = 30.0
_HANGING_TURN = 20
"""Likewise, it is killed then: soon enough for its jobs to be done by another before their deadlines."""


OnProgress = Callable[[Queued | Progress], None]
"""Called on the event loop with each new position of a job that waits, each step that is done, and each preview."""


@dataclass(eq=False)
class Ticket:
    """A job, and who waits for it. `enqueued` and `started` are readings of `time.monotonic()`; 0 is not yet.

    Attributes:
        deaths: workers that died with it on board.
        lane: whose worker has it; None while it waits.
        ahead: the position that was sent last; None if none was since it began to wait.
    """

    job: Job
    future: "asyncio.Future[Result]"
    on_progress: OnProgress | None
    enqueued: float
    started: float = 0.0
    deaths: int = 0
    lane: "Lane | None" = None
    ahead: int | None = None

    def refuse(self, error: Exception) -> None:
        """Tell who waits that it failed; nothing if it is over already."""
        if not self.future.done():
            self.future.set_exception(error)


class Owner(Protocol):
    """Who is told of what happens to a lane."""

    def received(self, lane: "Lane", message: Any) -> None: ...
    def died(self, lane: "Lane", tickets: list[Ticket]) -> None: ...


class Lane:
    """Keeps one worker running on its device, whatever happens to it, except while it is told to sleep.

    Args:
        start: what each new worker is told first.
        metrics: where deaths are counted.
        owner: gets every message, and the tickets of a worker that died.
    """

    def __init__(self, start: Start, metrics: Metrics, owner: Owner) -> None:
        self.start = start
        self.device = start.device
        self.info: ModelInfo | None = None
        """Of a worker that takes jobs; None at any other time."""
        self.last_info: ModelInfo | None = None
        self.capacity = 1
        self.start_seconds = 0.0
        """How long the last worker took until it was ready."""
        self.tickets: dict[str, Ticket] = {}
        self.deaths_in_a_row = 0
        self._metrics = metrics
        self._owner = owner
        self._starting: asyncio.Task[WorkerProcess] | None = None
        self._process: WorkerProcess | None = None
        self._awake = asyncio.Event()
        self._awake.set()
        self._sent_to_sleep = False
        self._waking = False
        self._born = 0.0
        self._heard = 0.0
        self._owing = False
        """Whether the worker was given something since it last said a word, and has to say one."""
        self._used = 0.0
        self._asked = 0.0
        self._canary_limit = CANARY_SECONDS
        self._turn_seconds = 0.0
        self._kill_cause = ""

    @property
    def pid(self) -> int | None:
        """The worker's, while one runs."""
        return self._process.pid if self._process else None

    @property
    def asleep(self) -> bool:
        """Whether there is no worker, because there was nothing to do for it."""
        return not self._awake.is_set()

    @property
    def able(self) -> bool:
        """Whether a job that is sent now can be expected to be done: a worker is ready and speaks, or sleeps, or wakes.

        One that wakes up has made pictures before: to count it as gone would turn away those for whom it was woken.
        """
        if self._owing and self.info:
            return self._silence < max(_SILENCE_SECONDS, _SLOWEST_TURN * self._turn_seconds)
        return self.asleep or self._waking or self.info is not None

    @property
    def _silence(self) -> float:
        """Seconds since the worker last said a word, or was given something while it owed none."""
        return time.monotonic() - self._heard

    async def run(self) -> None:
        """Start worker after worker, each once the one before has died, until this task is cancelled."""
        while True:
            exit_code = await self._run_worker()
            if self._sent_to_sleep:
                self._sent_to_sleep, self._kill_cause = False, ""
                await self._awake.wait()
                continue
            cause, self._kill_cause = self._kill_cause or "exit", ""
            self.deaths_in_a_row += 1
            self._metrics.worker_deaths.labels(cause).inc()
            tickets, self.tickets = list(self.tickets.values()), {}
            self._waking = False
            logger.error(
                "worker on %s died (%s, exit code %s) with %d jobs", self.device, cause, exit_code, len(tickets)
            )
            self._owner.died(self, tickets)
            await asyncio.sleep(min(_MAX_BACKOFF, 0.5 * 2 ** (self.deaths_in_a_row - 1) - 0.5))

    async def _run_worker(self) -> int | None:
        """One worker from start to end; its exit code, or None if it could not be started.

        After cancelling it, `close` sees that end through.
        """
        self._starting = asyncio.create_task(WorkerProcess.spawn(self.start))
        try:
            process = self._process = await asyncio.shield(self._starting)
        except OSError:
            logger.exception("no worker can be started on %s", self.device)
            self._kill_cause = "spawn"
            return None
        self._heard = self._born = time.monotonic()
        self._asked, self._owing = 0.0, False
        logger.info("worker %d starts on %s", process.pid, self.device)
        try:
            async for message in process.messages():
                self._heard, self._asked = time.monotonic(), 0.0
                self._owner.received(self, message)
                self._owing = bool(self.tickets)
        except Exception:
            logger.exception("worker %d sent something that cannot be read", process.pid)
            self.kill("garbage")
        finally:
            self._process, self.info = None, None
        return await process.stop()

    async def close(self) -> None:
        """End the worker, wherever in its life it is; `run` must have been cancelled before."""
        if self._starting:
            with contextlib.suppress(OSError):
                await (await self._starting).stop()

    def ready(self, message: Ready) -> None:
        """The worker has loaded and takes jobs. Each worker to come has to run on the device that this one found.

        What else is `auto` (model, VAE, dtype) follows from the device.
        """
        self.info = self.last_info = message.info
        if self.device == "auto":
            self.device = message.info.device
            self.start = replace(self.start, device=self.device)
        self.capacity = message.capacity
        self._waking = False
        self._used = time.monotonic()
        self.start_seconds = self._used - self._born
        self._canary_limit = max(CANARY_SECONDS, _SLOWEST_CANARY * message.canary_seconds)
        self._turn_seconds = message.pass_seconds * message.capacity
        self._metrics.batch_limit.labels(message.info.device).set(message.capacity)

    def shrink(self, capacity: int) -> None:
        """The device has room for no more jobs at once, neither now nor under a worker to come."""
        self.capacity = capacity
        self.start = replace(self.start, settings=self.start.settings.model_copy(update={"max_batch": capacity}))
        if self.info:
            self._metrics.batch_limit.labels(self.info.device).set(capacity)

    def send(self, ticket: Ticket) -> None:
        """Hand a job to the worker, which must be ready."""
        ticket.lane = self
        if not self._owing:
            # It had nothing to say until now: its silence counts from here. What was taken back from it before it said
            # a word does not change that it owes one.
            self._heard, self._owing = time.monotonic(), True
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
        """See whether the worker lives, and have one that has had nothing to do for a while show that it computes.

        One that has been silent for too long is killed: only its end frees a device that hangs.
        """
        if not self._process:
            return
        now = time.monotonic()
        silent = self._silence
        if self.tickets:
            self._used = now
        if not self.info:
            limit = load_timeout
        elif self.tickets:
            limit = min(tick_timeout, max(_HANG_SECONDS, _HANGING_TURN * self._turn_seconds))
        elif self._asked:
            limit, silent = self._canary_limit, now - self._asked
        else:
            if self._owing or silent > CANARY_SECONDS:
                self._asked = now
                self._tell(Canary())
            return
        if silent > limit:
            logger.error("worker %s on %s has been silent for %.3g s", self.pid, self.device, silent)
            self.kill("hang")

    def excuse(self) -> None:
        """This process did not run for a while, and so heard nothing: that is no fault of the worker."""
        self._heard = time.monotonic()
        self._asked = 0.0

    def rest(self, idle_seconds: float) -> None:
        """End the worker if it has had nothing to do for so long; `wake` starts another."""
        if self._process and self.info and not self.tickets and time.monotonic() - self._used > idle_seconds:
            logger.info("nothing to do on %s for %g s: its memory is let go", self.device, idle_seconds)
            # From this line on no job is sent to it, and it has none: there is no moment in which one could be lost.
            self.info = None
            self._sent_to_sleep = True
            self._awake.clear()
            self._process.close()

    def wake(self) -> None:
        """Start a worker again, if none is there because there was nothing to do."""
        self._waking = self.asleep
        self._awake.set()

    def kill(self, cause: str) -> None:
        """End the worker at once; the cause is counted. Nothing if none runs."""
        if self._process:
            self._kill_cause = cause
            self._process.kill()
