"""When a worker last showed that it lives, and how long it may be silent."""

import time
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LivenessLimits:
    """All times are in seconds.

    Attributes:
        canary: an idle worker gets a canary after this time, and has the same time to answer it. A worker that fails is
            no longer ready within ten seconds.
        silence: a worker that owes a reply and is silent for this time is not ready.
        hang: a worker that owes a reply and is silent for this time is killed: early enough for another worker to
            finish its jobs before their deadlines.
        watch: the interval between two checks.
        late: a check that comes this much too late shows that this process did not run: the silence is not the
            worker's.
    """

    canary: float = 4.0
    silence: float = 8.0
    hang: float = 30.0
    watch: float = 0.5
    late: float = 2.0


_SLOWEST_CANARY = 50
"""A canary may take this many times as long as at the start: other processes may want the processor too."""

_SILENT_ROUNDS = 4
"""Silence counts only after this many times the duration of the jobs' single pass."""

_HANGING_ROUNDS = 20
"""A worker hangs only after this many times the duration of the jobs' single pass."""


class Liveness:
    """The clocks of one worker process after another."""

    def __init__(self, limits: LivenessLimits) -> None:
        self._limits = limits
        self._canary_limit = limits.canary
        self._round_seconds = 0.0
        self._last_message_at = 0.0
        self._canary_sent_at = 0.0
        self._reply_pending = False

    @property
    def silence(self) -> float:
        """Seconds since the last message, or since the first job that was sent after it."""
        return time.monotonic() - self._last_message_at

    @property
    def silent(self) -> bool:
        """Whether the worker owes a reply for too long to count as ready."""
        limit = max(self._limits.silence, _SILENT_ROUNDS * self._round_seconds)
        return self._reply_pending and self.silence >= limit

    def started(self) -> None:
        """A new process runs."""
        self._last_message_at = time.monotonic()
        self._canary_sent_at, self._reply_pending = 0.0, False

    def loaded(self, canary_seconds: float, round_seconds: float) -> None:
        """The worker is ready: what a canary, and one round of all its jobs, take on its device."""
        self._canary_limit = max(self._limits.canary, _SLOWEST_CANARY * canary_seconds)
        self._round_seconds = round_seconds

    def received(self) -> None:
        """A message has come."""
        self._last_message_at, self._canary_sent_at = time.monotonic(), 0.0

    def replied(self, *, more: bool) -> None:
        """The message has been handled; the worker owes a reply only if it has `more` jobs."""
        self._reply_pending = more

    def job_sent(self) -> None:
        """The worker owes a reply from now on. A job that is withdrawn before the reply does not change that."""
        if not self._reply_pending:
            self._last_message_at, self._reply_pending = time.monotonic(), True

    def reset(self) -> None:
        """Forget the silence so far: this process did not run, and so could receive nothing."""
        self._last_message_at = time.monotonic()
        self._canary_sent_at = 0.0

    @property
    def canary_due(self) -> bool:
        """Whether an idle worker needs a canary now."""
        return not self._canary_sent_at and (self._reply_pending or self.silence > self._limits.canary)

    def canary_sent(self) -> None:
        """The worker has the canary's limit to answer from now on."""
        self._canary_sent_at = time.monotonic()

    def canary_missed(self) -> float:
        """Seconds for which a canary has had no answer, if that is too long; else 0."""
        waited = time.monotonic() - self._canary_sent_at if self._canary_sent_at else 0.0
        return waited if waited > self._canary_limit else 0.0

    def hangs(self, tick_timeout: float) -> float:
        """Seconds for which a worker with jobs has been silent, if that is too long; else 0."""
        limit = min(tick_timeout, max(self._limits.hang, _HANGING_ROUNDS * self._round_seconds))
        return self.silence if self.silence > limit else 0.0
