"""What a model does before it is ready: compiling, recording CUDA graphs, and measuring, so that no request does."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch

from app.engine.messages import Job
from app.model.graphs import Graphs
from app.model.torch_errors import fault
from app.model.transfer import mark, seconds_between, wait
from app.pixels import IMAGE_SIZE, Pixels

logger = logging.getLogger(__name__)

_ROUNDS = 3
"""Measurements of each number of rows, of which the shortest counts."""


def grey_job(name: str) -> Job:
    """A job of one step on a grey image of the real size. The name is its prompt too."""
    grey = Pixels(IMAGE_SIZE, IMAGE_SIZE, b"\x80" * (IMAGE_SIZE * IMAGE_SIZE * 3))
    return Job(name, grey, name, None, 1, 1.0, 0.0, 0, float("inf"))


class Compilations:
    """Logs each of a number of compilations when it is over, because together they can take many minutes."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._over = 0

    @contextlib.contextmanager
    def of(self, what: str) -> Iterator[None]:
        """The block compiles what is named."""
        start = time.perf_counter()
        yield
        self._over += 1
        logger.info("compiled %s in %.1f s, %d of %d", what, time.perf_counter() - start, self._over, self._total)


def record(graphs: Graphs, run: Callable[[], None]) -> None:  # pragma: no cover
    """Record graphs of all that a function runs. If that fails, the model runs without graphs."""
    start = time.perf_counter()
    try:
        with graphs.recording():
            run()
    except RuntimeError as error:
        logger.warning("CUDA graphs cannot be recorded, and images take longer without them: %s", error)
    else:
        logger.info("recorded %d CUDA graphs in %.1f s", graphs.count, time.perf_counter() - start)


def measure(call: Callable[[int], object], sizes: Sequence[int], device: torch.device) -> Mapping[int, float]:
    """Seconds that a call takes for each number of rows, by the device's clock.

    Args:
        call: runs the model for a number of rows.
        sizes: the numbers of rows, ascending.
        device: the model's device.

    Returns:
        The seconds by number of rows, without those for which there is too little memory.

    Raises:
        RuntimeError: the smallest call fails, or a larger one for another reason than too little memory.
    """
    best = dict.fromkeys(sizes, float("inf"))
    # In turns, because other processes may want the device or the processor for a while.
    for _ in range(_ROUNDS):
        for rows in list(best):
            try:
                best[rows] = min(best[rows], _timed(lambda: call(rows), device))  # noqa: B023
            except (RuntimeError, MemoryError) as error:
                if rows == sizes[0] or fault(error) != "memory":
                    raise
                del best[rows]
    return best


def _timed(call: Callable[[], object], device: torch.device) -> float:
    start = mark(device)
    call()
    end = mark(device)
    wait(end)
    return seconds_between(start, end)
