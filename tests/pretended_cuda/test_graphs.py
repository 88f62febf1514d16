"""CUDA graphs: recorded before readiness, and replayed by every request."""

from collections.abc import Sequence

import pytest
import torch

from app.engine.messages import Job
from app.model.diffusion import SdxlDiffusion
from app.pixels import IMAGE_SIZE, Pixels
from app.worker.warmup import warm_up
from tests.pretended_cuda import device
from tests.pretended_cuda.conftest import Load
from tests.pretended_cuda.device import Devices

PARTS_OF_A_REQUEST = 3
"""What a request runs beside the UNet: the text encoders, the VAE's encoder and its decoder."""


def job(name: str, steps: int = 4, strength: float = 1.0, guidance: float = 0.0, grey: int = 7) -> Job:
    """A job at the real size, the only one with graphs."""
    pixels = Pixels(IMAGE_SIZE, IMAGE_SIZE, bytes([grey]) * (IMAGE_SIZE * IMAGE_SIZE * 3))
    return Job(name, pixels, f"prompt {name}", None, steps, strength, guidance, 0, 1e12)


MIXED = [
    [job("one", 1)],
    [job("two", 4), job("three", 2, grey=8)],
    [job("guided", 3, guidance=3.0, grey=9)],
    [job("four", 5, 0.5, grey=10), job("five", 4, guidance=2.0, grey=11), job("six", 1, grey=12)],
    [job(f"full {number}", 2 + number, grey=20 + number) for number in range(4)],
]
"""Batches of all sizes, with mixed steps and guidance."""


def run(diffusion: SdxlDiffusion, jobs: Sequence[Job]) -> int:
    """Make the images of these jobs, which share UNet calls, with previews; return the number of UNet calls."""
    states, calls = [diffusion.admit(each) for each in jobs], 0
    while running := [state for state in states if not state.done]:
        diffusion.tick(running)
        calls += 1
        for state in running:
            diffusion.preview(state).pixels()
    assert all(diffusion.collect(decoding) for decoding in diffusion.finish(states))
    return calls


@pytest.fixture
def ready(load_tiny: Load, request: pytest.FixtureRequest) -> SdxlDiffusion:
    """As in a worker that is ready."""
    diffusion = load_tiny(request.param, max_batch=4)
    warm_up(diffusion, "off")
    device.reset()
    return diffusion


@pytest.mark.parametrize("name", ["cuda:0", "cuda:1"])
def test_each_graph_is_captured_once_before_readiness(load_tiny: Load, devices: Devices, name: str) -> None:
    diffusion = load_tiny(name, max_batch=4)
    assert devices.counters(diffusion.device.index).captures == 0
    warm_up(diffusion, "off")
    counted = devices.counters(diffusion.device.index)
    # The UNet for one to four rows, the text encoders and the halves of the VAE.
    assert counted.captures == diffusion.graphs == 4 + PARTS_OF_A_REQUEST
    assert counted.failed_captures == 0
    assert counted.graph_launches > counted.captures


@pytest.mark.parametrize("ready", ["cuda:0", "cuda:1"], indirect=True)
def test_no_request_captures_a_graph(ready: SdxlDiffusion, devices: Devices) -> None:
    index = ready.device.index
    for jobs in MIXED:
        run(ready, jobs)
    assert devices.counters(index).captures == 0
    assert ready.graphs == 4 + PARTS_OF_A_REQUEST


@pytest.mark.parametrize("ready", ["cuda:0"], indirect=True)
def test_first_request_runs_the_model_from_graphs_alone(ready: SdxlDiffusion, devices: Devices) -> None:
    calls = run(ready, [job("first", 4)])
    counted = devices.counters()
    assert counted.graph_launches == calls + PARTS_OF_A_REQUEST
    assert counted.convolutions == 0
    # The scheduler's own arithmetic and a preview's product are all that is launched kernel by kernel.
    assert counted.gemms == calls
    first = counted.mallocs
    run(ready, [job("second", 4, grey=13)])
    assert devices.counters().mallocs == first


@pytest.mark.parametrize("ready", ["cuda:0"], indirect=True)
def test_jobs_that_share_a_call_share_a_graph(ready: SdxlDiffusion, devices: Devices) -> None:
    jobs = [job(f"j{number}", 3, grey=30 + number) for number in range(4)]
    calls = run(ready, jobs)
    assert calls == 3
    assert devices.counters().graph_launches == calls + PARTS_OF_A_REQUEST * len(jobs)


@pytest.mark.parametrize("failing", [1, 100])
def test_capture_that_fails_leaves_a_model_without_graphs(
    load_tiny: Load, devices: Devices, caplog: pytest.LogCaptureFixture, failing: int
) -> None:
    diffusion = load_tiny("cuda:0", max_batch=2)
    devices.fail_captures(failing)
    with caplog.at_level("WARNING"):
        warm_up(diffusion, "off")
    (message,) = [record.getMessage() for record in caplog.records if "CUDA graphs" in record.getMessage()]
    assert "capture" in message
    assert diffusion.graphs == 0
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    device.reset()
    run(diffusion, [job("after", 2)])
    counted = devices.counters()
    assert (counted.graph_launches, counted.captures, counted.failed_captures) == (0, 0, 0)
    assert counted.convolutions > 0
