"""How much work is promised to whom, how fast it goes, and so whether one more request can make its deadline.

Plain numbers. Work is counted in UNet rows. Encoding and decoding count as two more: with SDXL they are 3.74 TFLOP to a
row's 1.59.
"""

from dataclasses import dataclass

from app.errors import DeadlineExceeded, QueueFull, ServiceError, TooManyRequests

CODEC_ROWS = 2
_WEIGHT = 0.1
_MARGIN = 1.25
"""How much longer than predicted a request may take. One that is admitted and then too late has cost others their time.
"""

_CROWD = 2
"""How many times the queue's size those may take it up to who have less than their share of it."""


@dataclass
class _Promise:
    """What one caller has been promised and has not got yet."""

    requests: int = 0
    rows: int = 0


class Admission:
    """Admits requests and predicts how long they take.

    A caller who is alone may take every place. One who comes to a full queue and has less than an even share of it is
    let in all the same, and whoever has more than that is sent away until the others are served.

    Args:
        queue_size: requests that may wait or run.
        deadline_seconds: time that each has.
    """

    def __init__(self, queue_size: int, deadline_seconds: float) -> None:
        self.queue_size = queue_size
        self.deadline_seconds = deadline_seconds
        self.requests = 0
        self._promised: dict[str, _Promise] = {}
        self._seconds = 0.0
        self._rows = 0.0

    def admit(self, unet_rows: int, caller: str = "", timeout: float | None = None, delay: float = 0.0) -> float:
        """Take a request in; returns the seconds that it has. Follow up with `release`.

        An idle server takes any request, and gives it twice the predicted time if that is longer than the deadline:
        a slow machine still serves.

        Args:
            unet_rows: rows of UNet batches that it costs.
            caller: whose it is.
            timeout: seconds that the caller will wait, if that is less than the deadline.
            delay: seconds until work can begin.

        Raises:
            QueueFull: as many requests as may wait do wait.
            TooManyRequests: so they do, or there is too little time, and the caller has more than an even share.
            DeadlineExceeded: those ahead leave it too little time.
        """
        rows = unet_rows + CODEC_ROWS
        mine = self._promised.get(caller, _Promise())
        callers = len(self._promised.keys() | {caller})
        self._check_room(mine, callers)
        slowest = _MARGIN * (delay + self.seconds_per_row * self._rows_before_done(mine, rows))
        seconds = self.deadline_seconds if self.requests else max(self.deadline_seconds, 2 * slowest)
        seconds = min(seconds, timeout or seconds)
        if slowest > seconds:
            raise self._too_late(slowest, seconds, mine.rows + rows, callers)
        promise = self._promised.setdefault(caller, mine)
        promise.requests += 1
        promise.rows += rows
        self.requests += 1
        return seconds

    def release(self, unet_rows: int, caller: str = "") -> None:
        """An admitted request is over, however it ended."""
        promise = self._promised[caller]
        promise.requests -= 1
        promise.rows -= unet_rows + CODEC_ROWS
        self.requests -= 1
        if not promise.requests:
            del self._promised[caller]

    def _check_room(self, mine: _Promise, callers: int) -> None:
        if self.requests < self.queue_size:
            return
        if callers > 1 and mine.requests >= self.queue_size / callers:
            raise TooManyRequests(
                f"{mine.requests} requests of yours wait or run, and {callers - 1} other callers are there. "
                "Try again when one of them is done.",
                retry_after=self.seconds_per_row * mine.rows / mine.requests * callers,
            )
        if callers == 1 or self.requests >= _CROWD * self.queue_size:
            raise QueueFull(
                f"All {self.queue_size} places in the queue are taken. Try again in a moment.",
                retry_after=self.seconds_per_row * self.rows / self.requests,
            )

    def _rows_before_done(self, mine: _Promise, rows: int) -> int:
        """Rows until a new request is done: callers take turns, so that of each other one no more than of its own."""
        own = mine.rows + rows
        return own + sum(min(other.rows, own) for other in self._promised.values() if other is not mine)

    def _too_late(self, slowest: float, seconds: float, own: int, callers: int) -> ServiceError:
        if not self.requests:
            return DeadlineExceeded(
                f"There is too little time: this request may take {slowest:.2g} s, and the limit is {seconds:g} s. "
                "Allow more time, or send fewer steps.",
                retry_after=slowest - seconds,
            )
        message = (
            f"There is too little time: with those ahead of it this request may take {slowest:.1f} s, "
            f"and the limit is {seconds:g} s. Try again later."
        )
        if callers > 1 and own > (self.rows + CODEC_ROWS) / callers:
            return TooManyRequests(f"{message} Most of those ahead are yours.", retry_after=slowest - seconds)
        return DeadlineExceeded(message, retry_after=slowest - seconds)

    def measured(self, unet_rows: int, seconds: float) -> None:
        """A job was finished, `seconds` after the one before or after its own start, whichever was later.

        The ratio of two moving averages, not the average of ratios: jobs of one batch finish in the same moment.
        """
        weight = _WEIGHT if self._rows else 1.0
        self._seconds += weight * (seconds - self._seconds)
        self._rows += weight * (unet_rows + CODEC_ROWS - self._rows)

    def too_late(self, unet_rows: int, seconds: float) -> bool:
        """Whether a request that has waited until now cannot be done any more in what is left of its time."""
        return self.seconds_per_row * (unet_rows + CODEC_ROWS) > seconds

    @property
    def rows(self) -> int:
        """All that is promised."""
        return sum(promise.rows for promise in self._promised.values())

    @property
    def seconds_per_row(self) -> float:
        """0 until something was measured."""
        return self._seconds / self._rows if self._rows else 0.0
