"""The passes that prove a model before it is ready, and while it has nothing else to do."""

import time
from pathlib import Path
from typing import Any

import pytest

from app.engine.jobs import Job
from app.engine.warmup import warm_up
from app.errors import CheckpointError
from tests.fakes import FakeDecoding, FakeDiffusion, FakeState


class Sized(FakeDiffusion):
    """Remembers how wide the pictures were, and takes its time for each."""

    def __init__(self, device: str, seconds: float = 0.0) -> None:
        super().__init__(device)
        self.widths: list[int] = []
        self.seconds = seconds

    def admit(self, job: Job) -> FakeState:
        self.widths.append(job.pixels.width)
        time.sleep(self.seconds)
        return super().admit(job)


def test_the_warm_up_is_a_real_pass() -> None:
    diffusion = Sized("cpu")
    passes = warm_up(diffusion, "off")
    assert 0 <= passes.seconds < 5
    assert 0 <= passes.canary_seconds < 5
    assert 512 in diffusion.widths
    assert len(diffusion.ticks) == len(diffusion.finished) == len(diffusion.widths)


def test_where_that_would_take_long_a_small_picture_must_do() -> None:
    diffusion = Sized("cpu", seconds=0.6)
    # It must be known as slow all the same, or the first request would get too little time.
    assert warm_up(diffusion, "off").seconds > 4 * 0.6
    assert diffusion.widths == [64]
    assert diffusion.finished == [["warm-up"]]


def test_a_canary_is_a_small_picture_of_the_same_model_and_none_where_that_would_take_long() -> None:
    quick, slow = Sized("cpu"), Sized("cpu", seconds=0.6)
    for diffusion, widths in ((quick, [64]), (slow, [])):
        passes = warm_up(diffusion, "off")
        diffusion.widths.clear()
        passes.canary()
        assert diffusion.widths == widths
    quick.compiled = (1,)
    canary = warm_up(quick, "default").canary
    quick.widths.clear()
    canary()
    assert quick.widths == [512], "any other size would be compiled anew"
    quick.broken = Path(__file__)
    with pytest.raises(ValueError, match="no pictures"):
        canary()


def test_a_compiled_model_is_warmed_up_at_each_of_its_batch_sizes_before_its_speed_is_taken() -> None:
    diffusion = Sized("cpu")
    diffusion.compiled = (1, 2, 4)
    assert 0 <= warm_up(diffusion, "off").seconds < 5
    assert [len(jobs) for jobs in diffusion.ticks] == [1, 2, 4, 1, 1, 1]
    assert set(diffusion.widths) == {512}


def test_a_model_that_cannot_be_compiled_is_no_start_and_is_not_tried_again() -> None:
    class Broken(FakeDiffusion):
        def tick(self, states: Any) -> None:
            raise RuntimeError("no such kernel")

    diffusion = Broken("cpu")
    diffusion.compiled = (1,)
    with pytest.raises(CheckpointError, match=r"IMG2IMG_COMPILE=max fails here: no such kernel\. Set it to off"):
        warm_up(diffusion, "max")
    diffusion.compiled = ()
    with pytest.raises(RuntimeError, match="no such kernel"):
        warm_up(diffusion, "off")


def test_a_gpu_is_warmed_up_at_the_real_size_however_long_that_takes() -> None:
    diffusion = Sized("cuda:0", seconds=0.6)
    assert 0 <= warm_up(diffusion, "off").seconds < 5
    assert diffusion.widths[0] == 512


def test_a_warm_up_without_a_finite_picture_is_no_start() -> None:
    class Broken(FakeDiffusion):
        def collect(self, decoding: FakeDecoding) -> None:
            return None

    with pytest.raises(RuntimeError, match="NaN"):
        warm_up(Broken("cpu"), "off")
