"""Test passes through the model: before a worker is ready, and as a canary while it is idle."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from app.engine.messages import Job
from app.errors import CheckpointError
from app.pixels import IMAGE_SIZE, Pixels
from app.worker.protocols import Diffusion

logger = logging.getLogger(__name__)

_SMALL_SIDE = 64
_SLOW_SECONDS = 0.5
"""A model whose pass over `_SMALL_SIDE` takes longer counts as large."""

_SMALL_TO_REAL = 5.0
"""Time of a step at the real size, relative to a pass over `_SMALL_SIDE`: measured for SDXL on two cores.

The number of pixels grows 64-fold, but over few pixels most of the time goes into casting weights.
"""


@dataclass(frozen=True)
class Passes:
    """Results of the passes before readiness.

    Attributes:
        seconds: the time of one step at the real size, encoding and decoding included: measured or estimated.
        canary: makes a test image, or does nothing if that would take too long; raises if the model fails.
        canary_seconds: the time that `canary` takes.
    """

    seconds: float
    canary: Callable[[], object]
    canary_seconds: float


def warm_up(diffusion: Diffusion, how: str) -> Passes:
    """Prepare the model and run real passes, so that a ready worker can make images.

    A large model takes half a minute for an image on a CPU. There, one pass over a small image shows that the weights
    work. Such a model has no canary either, which would keep half of the machine busy.

    Args:
        diffusion: the model.
        how: the setting `compile`, for the error message.

    Raises:
        CheckpointError: the model cannot be compiled on this machine.
        RuntimeError: the image of a pass holds NaN or infinity.
    """
    on_cpu = diffusion.info.device == "cpu" and not diffusion.compiled
    try:
        diffusion.prepare()
        if on_cpu and (seconds := _pass(diffusion, _SMALL_SIDE)) > _SLOW_SECONDS:
            return Passes(_SMALL_TO_REAL * seconds, lambda: None, 0.0)
        # Not timed: libraries set themselves up in the first pass.
        _full_pass(diffusion, 1 if on_cpu else diffusion.max_jobs)
        seconds = _pass(diffusion, IMAGE_SIZE, grey=1)
    except Exception as error:
        if not diffusion.compiled:
            raise
        # A retry would take minutes and fail in the same way.
        logger.exception("the model could not be compiled")
        raise CheckpointError(f"IMG2IMG_COMPILE={how} fails on this machine: {error}. Set it to off.") from error
    # Code is compiled, and graphs are recorded, for one image size; another one would be compiled again, or run slowly.
    side = _SMALL_SIDE if on_cpu else IMAGE_SIZE
    _pass(diffusion, side)  # not timed: the first pass at a size is slower
    return Passes(seconds, lambda: _pass(diffusion, side), _pass(diffusion, side))


def _full_pass(diffusion: Diffusion, jobs: int) -> None:
    """A pass of so many jobs. While there is too little memory for it, the batch limit is halved."""
    try:
        _pass(diffusion, IMAGE_SIZE, jobs)
        return
    except Exception as error:
        if jobs == 1 or diffusion.fault(error) != "memory":
            raise
        diffusion.max_jobs = jobs // 2
        logger.warning("too little memory for %d jobs: batch limit lowered to %d: %s", jobs, jobs // 2, error)
    # Outside of `except`, where the traceback no longer holds the tensors of the pass.
    diffusion.release_memory()
    _full_pass(diffusion, jobs // 2)


def _pass(diffusion: Diffusion, side: int, jobs: int = 1, grey: int = 128) -> float:
    """One step of `jobs` jobs on grey images of `side` x `side` pixels, in seconds.

    An image of the same size and grey is in the encoders' caches afterwards, and so is the prompt.
    """
    start = time.monotonic()
    pixels = Pixels(side, side, bytes([grey]) * (side * side * 3))
    job = Job("warm-up", pixels, f"warm-up {grey}", None, 1, 1.0, 0.0, 0, float("inf"))
    states = [diffusion.admit(job) for _ in range(jobs)]
    diffusion.tick(states)
    if None in [diffusion.collect(decoding) for decoding in diffusion.finish(states)]:
        raise RuntimeError("the image of a test pass holds NaN or infinity: the weights or the dtype do not work")
    return time.monotonic() - start
