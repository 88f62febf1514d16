"""Admits requests: how much work each caller has in the queue, and whether one more request can meet its deadline.

Work is counted in UNet rows. Encoding and decoding count as two more: with SDXL they are 3.74 TFLOP to a row's 1.59.
"""

from dataclasses import dataclass

from app.errors import DeadlineExceeded, QueueFull, ServiceError, TooManyRequests

CODEC_ROWS = 2
_WEIGHT = 0.1
_MARGIN = 1.25
"""A request may take this many times as long as predicted: one that is admitted and then late has cost others time."""

_CROWD = 2
"""Callers with less than their share of the queue may fill it up to this many times its size."""


@dataclass
class _Load:
    """The admitted requests of one caller that are not finished, and their UNet rows."""

    requests: int = 0
    rows: int = 0


class Admission:
    """Admits requests and predicts how long they take.

    A caller alone may take every place. When the queue is full, a caller with less than an even share of it is still
    admitted, and a caller with more than that is refused until the others are served.

    Args:
        queue_size: requests that may wait or run.
        deadline_seconds: time that each request has.
    """

    def __init__(self, queue_size: int, deadline_seconds: float) -> None:
        self.queue_size = queue_size
        self.deadline_seconds = deadline_seconds
        self.requests = 0
        self._loads: dict[str, _Load] = {}
        self._seconds = 0.0
        self._rows = 0.0

    def admit(self, unet_rows: int, caller: str = "", timeout: float | None = None, delay: float = 0.0) -> float:
        """Admit a request; returns the seconds that it has. Call `release` when it ends.

        An idle service admits any request, and gives it twice the predicted time if that is longer than the deadline:
        a slow machine still serves.

        Args:
            unet_rows: rows of UNet batches that it costs.
            caller: the caller that sends it.
            timeout: seconds that the client will wait, if that is less than the deadline.
            delay: seconds until work can begin.

        Raises:
            QueueFull: the queue is full.
            TooManyRequests: it is full, or there is too little time, and the caller has more than an even share.
            DeadlineExceeded: the requests ahead leave it too little time.
        """
        rows = unet_rows + CODEC_ROWS
        mine = self._loads.get(caller, _Load())
        callers = len(self._loads.keys() | {caller})
        self._check_room(mine, callers)
        slowest = _MARGIN * (delay + self.seconds_per_row * self._rows_before_done(mine, rows))
        seconds = self.deadline_seconds if self.requests else max(self.deadline_seconds, 2 * slowest)
        seconds = min(seconds, timeout or seconds)
        if slowest > seconds:
            raise self._too_late(slowest, seconds, mine.rows + rows, callers)
        load = self._loads.setdefault(caller, mine)
        load.requests += 1
        load.rows += rows
        self.requests += 1
        return seconds

    def release(self, unet_rows: int, caller: str = "") -> None:
        """An admitted request has ended, in whatever way."""
        load = self._loads[caller]
        load.requests -= 1
        load.rows -= unet_rows + CODEC_ROWS
        self.requests -= 1
        if not load.requests:
            del self._loads[caller]

    def _check_room(self, mine: _Load, callers: int) -> None:
        if self.requests < self.queue_size:
            return
        if callers > 1 and mine.requests >= self.queue_size / callers:
            raise TooManyRequests(
                f"{mine.requests} of your requests wait or run, and {callers - 1} other callers share the queue. "
                "Try again when one of yours is done.",
                retry_after=self.seconds_per_row * mine.rows / mine.requests * callers,
            )
        if callers == 1 or self.requests >= _CROWD * self.queue_size:
            raise QueueFull(
                f"All {self.queue_size} places in the queue are taken. Try again in a moment.",
                retry_after=self.seconds_per_row * self.rows / self.requests,
            )

    def _rows_before_done(self, mine: _Load, rows: int) -> int:
        """Rows until a new request is done. Callers take turns: no other caller runs more rows than this one."""
        own = mine.rows + rows
        return own + sum(min(other.rows, own) for other in self._loads.values() if other is not mine)

    def _too_late(self, slowest: float, seconds: float, own: int, callers: int) -> ServiceError:
        if not self.requests:
            return DeadlineExceeded(
                f"There is too little time: this request may take {slowest:.2g} s, and the limit is {seconds:g} s. "
                "Allow more time, or send fewer steps.",
                retry_after=slowest - seconds,
            )
        message = (
            f"There is too little time: with the requests ahead of it, this one may take {slowest:.1f} s, "
            f"and the limit is {seconds:g} s. Try again later."
        )
        if callers > 1 and own > (self.rows + CODEC_ROWS) / callers:
            return TooManyRequests(f"{message} Most of the requests ahead are yours.", retry_after=slowest - seconds)
        return DeadlineExceeded(message, retry_after=slowest - seconds)

    def measured(self, unet_rows: int, seconds: float) -> None:
        """A job was finished, `seconds` after the one before or after its own start, whichever was later.

        The estimate is the ratio of two moving averages, not the average of ratios: jobs of one batch finish at once.
        """
        weight = _WEIGHT if self._rows else 1.0
        self._seconds += weight * (seconds - self._seconds)
        self._rows += weight * (unet_rows + CODEC_ROWS - self._rows)

    def too_late(self, unet_rows: int, seconds: float) -> bool:
        """Whether a request cannot be done in the `seconds` that are left of its time."""
        return self.seconds_per_row * (unet_rows + CODEC_ROWS) > seconds

    @property
    def rows(self) -> int:
        """The rows of all admitted requests."""
        return sum(load.rows for load in self._loads.values())

    @property
    def seconds_per_row(self) -> float:
        """The measured time of a row; 0 until a job was finished."""
        return self._seconds / self._rows if self._rows else 0.0
