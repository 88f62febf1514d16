"""How much work is promised, how fast it goes, and so whether one more request can make its deadline. Plain numbers.

Work is counted in UNet rows. Encoding and decoding count as two more: with SDXL they are 3.74 TFLOP to a row's 1.59.
"""

from app.errors import DeadlineExceeded, QueueFull

CODEC_ROWS = 2
_WEIGHT = 0.1


class Admission:
    """Admits requests and predicts how long they take.

    Args:
        queue_size: requests that may wait or run.
        deadline_seconds: time that each has.
    """

    def __init__(self, queue_size: int, deadline_seconds: float) -> None:
        self.queue_size = queue_size
        self.deadline_seconds = deadline_seconds
        self.requests = 0
        self.rows = 0
        self._seconds = 0.0
        self._rows = 0.0

    def admit(self, unet_rows: int) -> float:
        """Take a request in; returns the seconds that it has. Follow up with `release`.

        An idle server takes any request, and gives it twice the predicted time if that is longer than the deadline:
        a slow machine still serves.

        Raises:
            QueueFull: as many requests as may wait do wait.
            DeadlineExceeded: those ahead leave it too little time.
        """
        rows = unet_rows + CODEC_ROWS
        if self.requests >= self.queue_size:
            raise QueueFull(
                f"All {self.queue_size} places in the queue are taken. Try again in a moment.",
                retry_after=self.seconds_per_row * self.rows / self.requests,
            )
        predicted = self.seconds_per_row * (self.rows + rows)
        if self.requests and predicted > self.deadline_seconds:
            raise DeadlineExceeded(
                f"The requests ahead leave too little time: this one would take about {predicted:.0f} s, "
                f"and the limit is {self.deadline_seconds:g} s. Try again later.",
                retry_after=predicted - self.deadline_seconds,
            )
        self.requests += 1
        self.rows += rows
        return max(self.deadline_seconds, 2 * predicted)

    def release(self, unet_rows: int) -> None:
        """An admitted request is over, however it ended."""
        self.requests -= 1
        self.rows -= unet_rows + CODEC_ROWS

    def measured(self, unet_rows: int, seconds: float) -> None:
        """A job was finished, `seconds` after the one before or after its own start, whichever was later.

        The ratio of two moving averages, not the average of ratios: jobs of one batch finish in the same moment.
        """
        weight = _WEIGHT if self._rows else 1.0
        self._seconds += weight * (seconds - self._seconds)
        self._rows += weight * (unet_rows + CODEC_ROWS - self._rows)

    @property
    def seconds_per_row(self) -> float:
        """0 until something was measured."""
        return self._seconds / self._rows if self._rows else 0.0
