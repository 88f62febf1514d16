"""What a worker drives, and the passes that prove it: before it is ready, and while nothing else is to do."""

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
"""A pass over so few pixels that takes longer is a large model's."""

_SMALL_TO_REAL = 5.0
"""Not 64: over few pixels, casting the weights takes most of the time. So it was for SDXL on two cores."""


@dataclass(frozen=True)
class Passes:
    """What the passes before readiness showed.

    Attributes:
        seconds: of one step at the real size, encoding and decoding included: measured, or a guess.
        canary: makes a picture while nothing else is to do, or nothing if that takes too long; raises if it cannot.
        canary_seconds: what that takes.
    """

    seconds: float
    canary: Callable[[], object]
    canary_seconds: float


def warm_up(diffusion: Diffusion, how: str) -> Passes:
    """Real passes, so that readiness is a fact. A compiled model is compiled by them, at each of its batch sizes.

    On a CPU a large model takes half a minute for a picture, and nothing is gained by it: there a small one proves that
    the weights are fit. It has no canary either: half the machine would be kept busy to learn that a CPU computes.

    Args:
        diffusion: the model.
        how: the setting `compile`, for the message if that fails.

    Raises:
        CheckpointError: the model cannot be compiled here.
        RuntimeError: a pass gave no finite picture.
    """
    try:
        for jobs in diffusion.compiled:
            _pass(diffusion, IMAGE_SIZE, jobs)
        on_cpu = diffusion.info.device == "cpu" and not diffusion.compiled
        if on_cpu and (seconds := _pass(diffusion, _SMALL_SIDE)) > _SLOW_SECONDS:
            return Passes(_SMALL_TO_REAL * seconds, lambda: None, 0.0)
        seconds = _pass(diffusion, IMAGE_SIZE)
    except Exception as error:
        if not diffusion.compiled:
            raise
        # Trying again would take minutes, to fail in the same way.
        logger.exception("the model could not be compiled")
        raise CheckpointError(f"IMG2IMG_COMPILE={how} fails here: {error}. Set it to off.") from error
    # Compiled code is for one size; for any other it would be compiled anew.
    side = IMAGE_SIZE if diffusion.compiled else _SMALL_SIDE
    _pass(diffusion, side)
    return Passes(seconds, lambda: _pass(diffusion, side), _pass(diffusion, side))


def _pass(diffusion: Diffusion, side: int, jobs: int = 1) -> float:
    start = time.monotonic()
    grey = Pixels(side, side, b"\x80" * (side * side * 3))
    job = Job("warm-up", grey, "warm-up", None, 1, 1.0, 0.0, 0, float("inf"))
    states = [diffusion.admit(job) for _ in range(jobs)]
    diffusion.tick(states)
    if None in [diffusion.collect(decoding) for decoding in diffusion.finish(states)]:
        raise RuntimeError("the picture of a pass holds NaN or infinity: the weights or the dtype are unfit")
    return time.monotonic() - start
