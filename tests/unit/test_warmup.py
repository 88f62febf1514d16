"""The test passes before readiness, and the canary."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from app.engine.messages import Job
from app.errors import CheckpointError
from app.worker.warmup import warm_up
from tests.support.fakes import FakeDecoding, FakeDiffusion, FakeState, FakeTick


@dataclass
class Clock:
    """A clock that only a model advances."""

    now: float = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("app.worker.warmup.time", clock)
    return clock


class Sized(FakeDiffusion):
    """Records the widths of its images. A small image and one of the real size take the given times."""

    def __init__(self, device: str, clock: Clock, small: float = 0.25, real: float = 4.0) -> None:
        super().__init__(device)
        self.widths: list[int] = []
        self.clock, self.small, self.real = clock, small, real

    def admit(self, job: Job) -> FakeState:
        self.widths.append(job.pixels.width)
        self.clock.now += self.small if job.pixels.width == 64 else self.real
        return super().admit(job)


def test_warm_up_prepares_and_times_a_warm_real_pass(clock: Clock) -> None:
    class Cold(Sized):
        """Its first pass takes a minute more."""

        def tick(self, states: Any) -> FakeTick:
            assert self.prepared == 1
            self.clock.now += 0 if 512 in self.widths[:-1] else 60
            return super().tick(states)

    diffusion = Cold("cpu", clock, small=-59.75)
    passes = warm_up(diffusion, "off")
    assert (passes.seconds, passes.canary_seconds) == (4.0, -59.75)
    assert 512 in diffusion.widths
    assert len(diffusion.ticks) == len(diffusion.finished) == len(diffusion.widths)


def test_warm_passes_find_nothing_in_the_caches(clock: Clock) -> None:
    class Caching(Sized):
        """Records prompts and images."""

        def __init__(self, device: str, clock: Clock) -> None:
            super().__init__(device, clock)
            self.inputs: list[tuple[str, bytes]] = []

        def admit(self, job: Job) -> FakeState:
            self.inputs.append((job.prompt, job.pixels.data))
            return super().admit(job)

    diffusion = Caching("cuda:0", clock)
    diffusion.max_jobs = 1
    warm_up(diffusion, "off")
    (first, image), (second, other), *_ = diffusion.inputs
    assert first != second
    assert image != other


def test_warm_up_of_a_slow_model_uses_a_small_image(clock: Clock) -> None:
    diffusion = Sized("cpu", clock, small=0.75)
    # The estimate must be slow too, or the first request gets too little time.
    assert warm_up(diffusion, "off").seconds == 5 * 0.75
    assert diffusion.widths == [64]
    assert diffusion.finished == [["warm-up"]]


def test_canary_makes_a_small_image_or_nothing_on_a_slow_model(
    clock: Clock,
) -> None:
    quick, slow = Sized("cpu", clock), Sized("cpu", clock, small=0.75)
    for diffusion, widths in ((quick, [64]), (slow, [])):
        passes = warm_up(diffusion, "off")
        diffusion.widths.clear()
        passes.canary()
        assert diffusion.widths == widths
    quick.compiled = True
    canary = warm_up(quick, "default").canary
    quick.widths.clear()
    canary()
    assert quick.widths == [512], "any other size would be compiled again"
    quick.broken = Path(__file__)
    with pytest.raises(ValueError, match="makes no images"):
        canary()


def test_warm_up_of_a_gpu_runs_a_full_batch_before_it_is_timed(clock: Clock) -> None:
    diffusion = Sized("cuda:0", clock)
    assert warm_up(diffusion, "off").seconds == 4.0
    assert [len(jobs) for jobs in diffusion.ticks] == [4, 1, 1, 1]
    assert set(diffusion.widths) == {512}


def test_batch_limit_is_halved_until_a_full_batch_has_memory(clock: Clock) -> None:
    class Small(Sized):
        """It has memory for one job, or for none."""

        room = 1

        def tick(self, states: Any) -> FakeTick:
            if len(states) > self.room:
                raise MemoryError("too little")
            return super().tick(states)

    diffusion = Small("cuda:0", clock)
    warm_up(diffusion, "off")
    assert diffusion.max_jobs == 1
    assert diffusion.freed == 2
    assert [len(jobs) for jobs in diffusion.ticks] == [1] * 4
    diffusion.room = 0
    with pytest.raises(MemoryError):
        warm_up(diffusion, "off")


def test_model_that_cannot_be_compiled_is_refused() -> None:
    class CannotDecode(FakeDiffusion):
        def tick(self, states: Any) -> FakeTick:
            raise RuntimeError("no such kernel")

    diffusion = CannotDecode("cpu")
    diffusion.compiled = True
    with pytest.raises(
        CheckpointError, match=r"IMG2IMG_COMPILE=max fails on this machine: no such kernel\. Set it to off"
    ):
        warm_up(diffusion, "max")
    diffusion.compiled = False
    with pytest.raises(RuntimeError, match="no such kernel"):
        warm_up(diffusion, "off")


def test_warm_up_of_a_gpu_is_always_at_the_real_size(clock: Clock) -> None:
    diffusion = Sized("cuda:0", clock, small=0.75, real=60.0)
    assert warm_up(diffusion, "off").seconds == 60.0
    assert diffusion.widths[0] == 512


def test_warm_up_with_a_non_finite_image_raises() -> None:
    class CannotDecode(FakeDiffusion):
        def collect(self, decoding: FakeDecoding) -> None:
            return None

    with pytest.raises(RuntimeError, match="NaN"):
        warm_up(CannotDecode("cpu"), "off")
