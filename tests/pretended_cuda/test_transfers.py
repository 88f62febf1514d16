"""What goes between the host and the device while an image is made, and when the host reads it."""

from pathlib import Path

import pytest
import torch

from app.engine.messages import Job
from app.model import transfer
from app.model.diffusion import SdxlDiffusion
from app.model.states import State
from app.model.transfer import TransferError
from tests.pretended_cuda import device
from tests.pretended_cuda.conftest import Load, RunPython
from tests.pretended_cuda.device import Devices, backlog, occupy
from tests.support.models import MIXED

GPUS = ["cuda:0", "cuda:1"]
STALE = 0x77


def ticked(diffusion: SdxlDiffusion, job: Job) -> State:
    """A job before its image is decoded."""
    state = diffusion.admit(job)
    while not state.done:
        diffusion.tick([state])
    return state


def poison(shape: tuple[int, ...]) -> None:
    """Leave pinned blocks of this size to the next downloads that hold an old image and an old flag."""
    for size in (shape, (2,), ()):
        blocks = [torch.full(size, STALE, dtype=torch.uint8, pin_memory=True) for _ in range(4)]
        del blocks


@pytest.mark.parametrize("name", GPUS)
def test_nothing_waits_between_admission_and_the_image(load_tiny: Load, devices: Devices, name: str) -> None:
    diffusion = load_tiny(name)
    diffusion.preview(ticked(diffusion, MIXED[0]))
    index = diffusion.device.index
    before = devices.counters(index)
    states = [diffusion.admit(each) for each in MIXED]
    while running := [state for state in states if not state.done]:
        diffusion.tick(running)
        for state in running:
            diffusion.preview(state)
    decoding = diffusion.finish(states)
    after = devices.counters(index)
    assert after.syncs == before.syncs
    assert after.pageable_h2d == before.pageable_h2d
    assert after.copies_h2d > before.copies_h2d
    assert after.copies_d2h - before.copies_d2h >= len(decoding)


@pytest.mark.parametrize("name", GPUS)
def test_marks_are_on_the_model_s_device_and_its_stream(load_tiny: Load, devices: Devices, name: str) -> None:
    diffusion = load_tiny(name)
    index = diffusion.device.index
    before = [devices.counters(each).event_records for each in range(2)]
    with device.log() as lines:
        diffusion.finish([ticked(diffusion, MIXED[0])])
    records = [line.split()[:2] for line in lines if " record event " in line]
    kernels = [line.split()[:2] for line in lines if " kernel " in line]
    recorded = [devices.counters(each).event_records - before[each] for each in range(2)]
    assert recorded[index] > 0
    assert recorded[1 - index] == 0
    assert {tuple(each) for each in records} <= {tuple(each) for each in kernels}
    assert {each[0] for each in kernels} == {str(index)}


def test_worker_of_the_last_gpu_has_no_context_on_the_first(tiny_checkpoint: Path, run_python: RunPython) -> None:
    lines = run_python(f"""
        from app.model.load import load
        from app.settings import Settings
        from app.worker.warmup import warm_up
        from tests.pretended_cuda.device import Devices

        warm_up(load(Settings(model={str(tiny_checkpoint)!r}), "cuda:1"), "off")
        print(*(Devices.here().counters(index).calls > 0 for index in range(2)))
    """)
    assert lines == ["False True"]


@pytest.mark.parametrize("name", GPUS)
def test_image_is_read_after_its_arrival(load_tiny: Load, name: str) -> None:
    diffusion = load_tiny(name)
    index = diffusion.device.index
    state = ticked(diffusion, MIXED[0])
    pixels = state.job.pixels
    poison((pixels.height, pixels.width, 3))
    occupy(index, 0.3)
    (decoding,) = diffusion.finish([state])
    assert backlog(index) > 0
    assert not decoding.ready
    result = diffusion.collect(decoding)
    assert decoding.ready
    assert result is not None
    assert set(result.pixels.data) == {1}


@pytest.mark.parametrize("name", GPUS)
def test_image_that_is_read_too_early_is_refused(load_tiny: Load, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """As if a mark were in the wrong stream: it is passed while the image is still on its way."""
    diffusion = load_tiny(name)
    state = ticked(diffusion, MIXED[0])
    pixels = state.job.pixels
    poison((pixels.height, pixels.width, 3))
    monkeypatch.setattr(transfer, "wait", lambda point: None)
    occupy(diffusion.device.index, 0.3)
    (decoding,) = diffusion.finish([state])
    with pytest.raises(TransferError):
        diffusion.collect(decoding)


def test_receipt_comes_behind_the_image_in_the_same_stream(load_tiny: Load) -> None:
    diffusion = load_tiny("cuda:1")
    state = ticked(diffusion, MIXED[0])
    size = len(state.job.pixels.data)
    with device.log() as lines:
        (decoding,) = diffusion.finish([state])
        diffusion.collect(decoding)
    copies = [line.split(" ", 2) for line in lines if " copy_d2h " in line]
    assert [what for _, _, what in copies] == [f"copy_d2h {size} bytes", "copy_d2h 2 bytes", "copy_d2h 8 bytes"]
    assert len({stream for _, stream, _ in copies}) == 1
