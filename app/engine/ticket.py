"""A job on its way through the engine, and the future of its result."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from app.edits import Queued
from app.engine.messages import Job, Progress, Result

if TYPE_CHECKING:
    from app.engine.supervisor import WorkerSupervisor

OnProgress = Callable[[Queued | Progress], None]
"""Called on the event loop with each new queue position, each step that is done, and each preview."""


@dataclass(eq=False)
class Ticket:
    """A job and the future that its request awaits. `enqueued` and `started` are readings of `time.monotonic()`.

    Attributes:
        started: when a worker began with it; 0.0 while it waits.
        deaths: workers that died while they ran it.
        worker: the supervisor of the worker that has it; None while it waits.
        ahead: the queue position that was sent last; None before the first one.
    """

    job: Job
    future: "asyncio.Future[Result]"
    on_progress: OnProgress | None
    enqueued: float
    started: float = 0.0
    deaths: int = 0
    worker: "WorkerSupervisor | None" = None
    ahead: int | None = None

    def refuse(self, error: Exception) -> None:
        """Fail the request with this error; no effect if it has ended already."""
        if not self.future.done():
            self.future.set_exception(error)
