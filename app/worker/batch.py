"""Step-level batching: which jobs share the next UNet call. Pure Python, no tensors.

Jobs are admitted in arrival order between two UNet calls and leave after their last step, so no job waits for a batch
to finish. After a failed call its jobs restart, each in a call of its own, so that only the job at fault fails. A
restart gives the same image, because jobs are deterministic.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Generic, TypeVar

from app.engine.messages import Job

State = TypeVar("State")


class Batch(Generic[State]):
    """Waiting jobs, and jobs on board, which number at most `capacity`."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.on_board: dict[str, State] = {}
        self._jobs: dict[str, Job] = {}
        self._waiting: deque[Job] = deque()

    @property
    def jobs(self) -> Mapping[str, Job]:
        """All admitted jobs by id, including those that are still being encoded."""
        return self._jobs

    @property
    def idle(self) -> bool:
        return not self._jobs and not self._waiting

    def add(self, job: Job) -> None:
        """Append a job to the queue."""
        self._waiting.append(job)

    def next(self) -> Job | None:
        """Admit the first waiting job, if there is room for it: follow up with `board` or `leave`.

        An isolated job is admitted only when no other job is on board, and no other job joins it.
        """
        if not self._waiting or len(self._jobs) >= self.capacity:
            return None
        if self._jobs and (self._waiting[0].isolated or any(job.isolated for job in self._jobs.values())):
            return None
        job = self._waiting.popleft()
        self._jobs[job.id] = job
        return job

    def board(self, job_id: str, state: State) -> None:
        """Add an encoded job to the next UNet call."""
        self.on_board[job_id] = state

    def leave(self, job_id: str) -> None:
        """Remove a job that is finished, failed or cancelled, waiting or on board. Unknown ids are ignored."""
        self.on_board.pop(job_id, None)
        if self._jobs.pop(job_id, None) is None:
            self._waiting = deque(job for job in self._waiting if job.id != job_id)

    def restart(self, job_ids: Iterable[str], **changes: Any) -> None:
        """Move admitted jobs to the front of the queue, with some of their fields changed."""
        for job in reversed([self._jobs.pop(job_id) for job_id in job_ids]):
            self.on_board.pop(job.id, None)
            self._waiting.appendleft(replace(job, **changes))

    def expired(self, now: float) -> list[str]:
        """Ids of all jobs whose deadline has passed at `now`, a reading of `time.monotonic()`."""
        return [job.id for job in (*self._jobs.values(), *self._waiting) if job.deadline <= now]
