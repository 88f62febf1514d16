"""What only a CUDA device can show. Run them there with `scripts/test tests/gpu`; elsewhere they are skipped.

The real weights are used where they are on the disk (`img2img download`); all else runs on random ones.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import EulerAncestralDiscreteScheduler, StableDiffusionXLImg2ImgPipeline
from PIL import Image
from transformers import CLIPTokenizer

from app.engine.messages import Job, ModelInfo, Result
from app.errors import CheckpointError
from app.model.batch_limit import CANDIDATES
from app.model.diffusion import SdxlDiffusion
from app.model.load import load
from app.model.sources import EMBEDDED, TURBO
from app.pixels import Pixels
from app.settings import Settings
from scripts.make_checkpoint import (
    on_meta,
    scheduler_config,
    text_encoder_2_config,
    text_encoder_config,
    unet_config,
    vae_config,
)
from tests.support.checkpoints import DEMO
from tests.support.models import MIXED, array, by_diffusers, finished, job, together

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")

A10G_BYTES = 24e9


@pytest.fixture(scope="module")
def half(tiny_checkpoint: Path) -> SdxlDiffusion:
    return load(Settings(model=str(tiny_checkpoint)), "cuda")


@pytest.fixture(scope="module")
def turbo() -> SdxlDiffusion:
    try:
        return load(Settings(model=TURBO, offline=True), "cuda")
    except CheckpointError as error:
        pytest.skip(str(error))


def demo_job(name: str = "demo", seed: int = 42, steps: int = 4, strength: float = 0.9) -> Job:
    image = Image.open(DEMO).convert("RGB")
    pixels = Pixels(*image.size, image.tobytes())
    return Job(name, pixels, "dog wizard, gandalf, Pixar, 8k", None, steps, strength, 0.0, seed, 1e12)


def mean_difference(left: np.ndarray, right: np.ndarray) -> float:
    return float(np.abs(left - right).mean())


def test_float16_on_the_device_is_close_to_float32_on_the_cpu(half: SdxlDiffusion, tiny_checkpoint: Path) -> None:
    exact = load(Settings(model=str(tiny_checkpoint)), "cpu")
    for each in MIXED:
        assert mean_difference(together(half, [each])[0], together(exact, [each])[0]) < 2


def test_device_path_is_close_to_diffusers_on_the_same_device(half: SdxlDiffusion, tiny_checkpoint: Path) -> None:
    pipe = StableDiffusionXLImg2ImgPipeline.from_pretrained(
        tiny_checkpoint, variant="fp16", dtype=torch.float16, add_watermarker=False
    ).to("cuda")
    for each in MIXED:
        assert mean_difference(together(half, [each])[0], by_diffusers(pipe, each)) < 1


def test_jobs_that_share_calls_are_close_to_their_single_results(half: SdxlDiffusion) -> None:
    for shared, each in zip(together(half, MIXED), MIXED, strict=True):
        assert mean_difference(shared, together(half, [each])[0]) < 1


def test_nothing_between_admission_and_the_picture_waits_for_the_device(half: SdxlDiffusion) -> None:
    states = [half.admit(each) for each in MIXED]
    torch.cuda.set_sync_debug_mode("error")
    try:
        while running := [state for state in states if not state.done]:
            half.tick(running)
        decoding = half.finish(states)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(half.collect(each) for each in decoding)
    assert all(each.ready for each in decoding)


@pytest.mark.parametrize("how", ["default", "max"])
def test_compiled_model_is_close_to_the_plain_one(half: SdxlDiffusion, tiny_checkpoint: Path, how: str) -> None:
    diffusion = load(Settings(model=str(tiny_checkpoint), compile=how), "cuda")
    for _ in range(3):
        # A graph is recorded at its second call and replayed from the third on.
        for compiled, plain in zip(together(diffusion, MIXED), together(half, MIXED), strict=True):
            assert mean_difference(compiled, plain) < 1


def test_decode_that_overflows_is_repeated_in_float32(tiny_checkpoint: Path) -> None:
    diffusion = load(Settings(model=str(tiny_checkpoint)), "cuda")
    with torch.no_grad():
        diffusion.pipe.vae.decoder.conv_in.weight.mul_(60000)
        diffusion.pipe.vae.decoder.conv_in.bias.fill_(60000)
    state = diffusion.admit(job())
    while not state.done:
        diffusion.tick([state])
    (result,) = finished(diffusion, [state])
    assert result is not None
    assert result.redecoded


@pytest.fixture
def last(tiny_checkpoint: Path) -> Iterator[SdxlDiffusion]:
    """On the last GPU, which is torch's current device until the test is over."""
    before = torch.cuda.current_device()
    yield load(Settings(model=str(tiny_checkpoint)), f"cuda:{torch.cuda.device_count() - 1}")
    torch.cuda.set_device(before)


def test_image_on_the_last_device_is_read_after_its_arrival(last: SdxlDiffusion) -> None:
    assert torch.cuda.current_device() == last.device.index
    one, other = MIXED[:2]
    # The copy of the other image to the host has given its block back: it is what a copy of the same size gets next.
    expected, stale = array(made(last, [one])[0]), array(made(last, [other])[0])
    unlike = mean_difference(expected, stale)
    assert unlike > 1
    state = last.admit(one)
    while not state.done:
        last.tick([state])
    # Even where another GPU is torch's current device, the mark is one of this GPU's time.
    with torch.cuda.device(last.device):
        torch.cuda._sleep(2_000_000_000)  # type: ignore[no-untyped-call]
    with torch.cuda.device(0):
        (decoding,) = last.finish([state])
        assert not decoding.ready
        result = last.collect(decoding)
    assert decoding.ready
    assert result is not None
    assert mean_difference(array(result), expected) < unlike / 10


def full_size() -> SdxlDiffusion:
    """SDXL-Turbo's configuration with weights near zero, straight on the device."""
    parts = {
        "vae": vae_config("full"),
        "text_encoder": text_encoder_config("full"),
        "text_encoder_2": text_encoder_2_config("full"),
        "unet": unet_config("full"),
    }
    modules = {name: on_meta(config).half().to_empty(device="cuda") for name, config in parts.items()}
    for module in modules.values():
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.data.zero_()
    pipe = StableDiffusionXLImg2ImgPipeline(
        **modules,
        tokenizer=CLIPTokenizer.from_pretrained(EMBEDDED / "tokenizer"),
        tokenizer_2=CLIPTokenizer.from_pretrained(EMBEDDED / "tokenizer_2"),
        scheduler=EulerAncestralDiscreteScheduler.from_config(scheduler_config()),
        add_watermarker=False,
    )
    return SdxlDiffusion(
        pipe,
        torch.device("cuda"),
        ModelInfo("full", "", "checkpoint", "cuda", "float16", "a test", "EulerAncestralDiscreteScheduler"),
    )


def test_full_size_model_with_a_full_batch_fits_an_a10g() -> None:
    torch.cuda.reset_peak_memory_stats()
    diffusion = full_size()
    states = [diffusion.admit(demo_job(f"j{i}")) for i in range(CANDIDATES[-1])]
    while not states[0].done:
        diffusion.tick(states)
    finished(diffusion, states)
    assert torch.cuda.max_memory_allocated() < 0.9 * A10G_BYTES
    reported = diffusion.memory()
    assert 0 < reported["allocated"] <= reported["reserved"] < torch.cuda.mem_get_info()[1]
    assert reported["free"] > 0


def made(diffusion: SdxlDiffusion, jobs: Sequence[Job]) -> list[Result]:
    states = [diffusion.admit(each) for each in jobs]
    while running := [state for state in states if not state.done]:
        diffusion.tick(running)
    results = finished(diffusion, states)
    return [result for result in results if result is not None]


def test_sdxl_turbo_makes_a_picture_without_numbers_that_are_none(turbo: SdxlDiffusion) -> None:
    (result,) = made(turbo, [demo_job()])
    assert not result.redecoded
    assert array(result).std() > 20


def test_sdxl_turbo_is_close_to_diffusers(turbo: SdxlDiffusion) -> None:
    each = demo_job()
    assert mean_difference(together(turbo, [each])[0], by_diffusers(turbo.pipe, each)) < 2


def test_sdxl_turbo_batched_is_close_to_single(turbo: SdxlDiffusion) -> None:
    jobs = [demo_job("a", 1), demo_job("b", 2, 2, 0.5), demo_job("c", 3, 8, 0.7)]
    for shared, each in zip(together(turbo, jobs), jobs, strict=True):
        assert mean_difference(shared, together(turbo, [each])[0]) < 2
