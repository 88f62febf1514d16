"""SDXL-Turbo's configuration at full size: how much of a GPU's memory it takes, and what happens when that runs out.

The weights are address space, as is all device memory here, so the sizes are those of a real GPU without its context.
"""

import gc
import logging
from collections.abc import Iterator
from typing import Any, cast

import pytest
import torch

from app.engine.messages import BatchLimitLowered, Done, Failed, Job, Ticked
from app.model.diffusion import SdxlDiffusion
from app.pixels import IMAGE_SIZE, Pixels
from tests.gpu.full_size import A10G_BYTES, full_size
from tests.pretended_cuda.device import Devices
from tests.support.workers import Bench

WEIGHTS = 7_057_045_504
"""Bytes of the weights in float16."""

DECODING = 450_000_000
"""Bytes that decoding one image takes at most. That is the peak, for each number of jobs here."""

ROW = 50_000_000
"""Bytes that each row of a UNet call takes at most."""


def job(number: int, guidance: float = 0.0) -> Job:
    pixels = Pixels(IMAGE_SIZE, IMAGE_SIZE, bytes([number]) * (IMAGE_SIZE * IMAGE_SIZE * 3))
    return Job(f"job {number}", pixels, f"prompt {number}", None, 2, 1.0, guidance, 0, 1e12)


@pytest.fixture(scope="module")
def diffusion() -> SdxlDiffusion:
    return full_size("cuda:0")


def bench_of(diffusion: SdxlDiffusion, *jobs: Job, max_batch: int = 4) -> Bench:
    return Bench(*jobs, max_batch=max_batch, prepared=False, diffusion=cast(Any, diffusion))


@pytest.fixture(autouse=True)
def all_memory(devices: Devices) -> Iterator[None]:
    """Nothing else is in the device's memory."""
    gc.collect()
    torch.cuda.empty_cache()
    # pytest keeps what is logged, and a logged exception keeps the tensors of its frames.
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("jobs", range(1, 9))
def test_peak_memory_of_a_batch_is_that_of_decoding(diffusion: SdxlDiffusion, jobs: int) -> None:
    states = [diffusion.admit(job(number)) for number in range(jobs)]
    torch.cuda.reset_peak_memory_stats(0)
    diffusion.tick(states)
    assert WEIGHTS < torch.cuda.max_memory_allocated(0) < WEIGHTS + ROW * (jobs + 1)
    diffusion.tick(states)
    assert all(diffusion.collect(decoding) for decoding in diffusion.finish(states))
    assert WEIGHTS < torch.cuda.max_memory_allocated(0) < WEIGHTS + DECODING
    assert torch.cuda.max_memory_reserved(0) < A10G_BYTES / 2


def test_batch_that_does_not_fit_is_made_in_smaller_ones(diffusion: SdxlDiffusion, devices: Devices) -> None:
    # What decoding and 16 rows need, and not 32.
    devices.limit_memory(0, devices.counters().allocated + 1_000_000_000)
    jobs = [job(number, guidance=3.0) for number in range(16)]
    bench = bench_of(diffusion, *jobs, max_batch=16).run()
    assert set(bench.names(Done)) == {each.id for each in jobs}
    assert bench.names(Failed) == []
    lowered = [message.capacity for message in bench.sent if isinstance(message, BatchLimitLowered)]
    assert lowered == [8]
    assert all(message.jobs <= 8 for message in bench.sent if isinstance(message, Ticked))


def test_job_for_which_there_is_no_memory_fails_alone(diffusion: SdxlDiffusion, devices: Devices) -> None:
    limit = devices.memory_limit(0)
    devices.limit_memory(0, devices.counters().allocated)
    bench = bench_of(diffusion, job(1)).run()
    assert bench.names(Failed) == ["job 1"]
    devices.limit_memory(0, limit)
    bench.sent.clear()
    bench.put(job(2))
    assert bench.run().names(Done) == ["job 2"]
