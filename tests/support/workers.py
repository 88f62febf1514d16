"""A worker without a process."""

from queue import SimpleQueue
from typing import Any

from app.engine.messages import Job
from app.pixels import Pixels
from app.worker.worker import Worker
from tests.support.fakes import FakeDiffusion


def job(name: str, prompt: str = "", steps: int = 4, strength: float = 0.9, deadline: float = 1e12) -> Job:
    return Job(name, Pixels(8, 8, bytes(192)), prompt, None, steps, strength, 0.0, 0, deadline)


class Bench:
    """A worker in this process; tests call its iterations."""

    def __init__(
        self, *jobs: Job, max_batch: int = 4, prepared: bool = True, diffusion: FakeDiffusion | None = None
    ) -> None:
        self.diffusion = diffusion or FakeDiffusion("cpu")
        self.canaries = 0
        self.fails = False
        self.inbox: SimpleQueue[Any] = SimpleQueue()
        self.sent: list[Any] = []
        self.worker = Worker(self.diffusion, max_batch, self.inbox, self.sent.append, self._canary)
        if prepared:
            self.run_once(4)
            self.sent.clear()
        self.put(*jobs)

    def _canary(self) -> None:
        self.canaries += 1
        if self.fails:
            raise RuntimeError("fails as a canary, as requested")

    def put(self, *messages: Any) -> None:
        for message in messages:
            self.inbox.put(message)

    def run_once(self, times: int = 1) -> None:
        for _ in range(times):
            self.worker.run_once()

    def run(self) -> "Bench":
        """Iterate until no job waits or runs, and nothing is on its way from the device."""
        self.run_once()
        while self.worker.pending or not self.worker.batch.idle:
            self.run_once()
        return self

    def names(self, kind: type[Any]) -> list[str]:
        return [message.job_id for message in self.sent if isinstance(message, kind)]
