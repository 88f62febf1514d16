"""Which jobs share the next UNet call: pure Python, no tensors.

Jobs come on board first in, first out, between any two UNet calls, and leave when their last step is done: nobody
waits for a batch to finish. Jobs of a call that failed start anew, which they can since they are deterministic, but
each alone, so that the one at fault fails alone.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Generic, TypeVar

from app.engine.messages import Job

State = TypeVar("State")


class Batch(Generic[State]):
    """Jobs waiting and jobs on board, at most `capacity` of them."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.on_board: dict[str, State] = {}
        self._jobs: dict[str, Job] = {}
        self._waiting: deque[Job] = deque()

    @property
    def jobs(self) -> Mapping[str, Job]:
        """All on board, those that are still being encoded too."""
        return self._jobs

    @property
    def idle(self) -> bool:
        return not self._jobs and not self._waiting

    def add(self, job: Job) -> None:
        """A job waits for its place, behind those that came before."""
        self._waiting.append(job)

    def next(self) -> Job | None:
        """Take the job that may be admitted now, if there is one: follow up with `board` or `leave`."""
        if not self._waiting or len(self._jobs) >= self.capacity:
            return None
        if self._jobs and (self._waiting[0].alone or any(job.alone for job in self._jobs.values())):
            return None
        job = self._waiting.popleft()
        self._jobs[job.id] = job
        return job

    def board(self, job_id: str, state: State) -> None:
        """The job has been encoded and takes part in the next call."""
        self.on_board[job_id] = state

    def leave(self, job_id: str) -> None:
        """The job is finished, failed or no longer wanted, wherever it is. Unknown ids are ignored."""
        self.on_board.pop(job_id, None)
        if self._jobs.pop(job_id, None) is None:
            self._waiting = deque(job for job in self._waiting if job.id != job_id)

    def restart(self, job_ids: Iterable[str], **changes: Any) -> None:
        """Jobs on board start anew, before all who wait, with some fields changed."""
        for job in reversed([self._jobs.pop(job_id) for job_id in job_ids]):
            self.on_board.pop(job.id, None)
            self._waiting.appendleft(replace(job, **changes))

    def expired(self, now: float) -> list[str]:
        """Ids of all jobs whose deadline has passed at `now`, a reading of `time.monotonic()`."""
        return [job.id for job in (*self._jobs.values(), *self._waiting) if job.deadline <= now]
