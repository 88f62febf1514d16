"""What only a CUDA device can show. Run them there with `scripts/test tests/gpu`; elsewhere they are skipped.

The real weights are used where they are on the disk (`img2img download`); all else runs on random ones.
"""

import json
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLImg2ImgPipeline
from PIL import Image

from app.engine.messages import Job, Result
from app.errors import CheckpointError
from app.model.batch_limit import CANDIDATES
from app.model.diffusion import SdxlDiffusion
from app.model.load import load
from app.model.sources import TURBO
from app.pixels import IMAGE_SIZE, Pixels
from app.settings import Settings
from app.worker.warmup import warm_up
from tests.gpu.full_size import A10G_BYTES, full_size
from tests.support.checkpoints import DEMO
from tests.support.models import MIXED, array, by_diffusers, finished, job, together

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


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


@pytest.fixture
def forbid_waiting() -> Iterator[Callable[[], None]]:
    """A function after which each wait for the device raises, until the test is over."""

    def forbid() -> None:
        with warnings.catch_warnings():
            # torch calls this mode a prototype feature.
            warnings.simplefilter("ignore")
            torch.cuda.set_sync_debug_mode("error")

    try:
        yield forbid
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_nothing_between_admission_and_the_image_waits_for_the_device(
    half: SdxlDiffusion, forbid_waiting: Callable[[], None]
) -> None:
    # The first preview fits its map, which waits.
    first = half.admit(MIXED[0])
    half.tick([first])
    half.preview(first)
    forbid_waiting()
    states = [half.admit(each) for each in MIXED]
    while running := [state for state in states if not state.done]:
        half.tick(running)
        previews = [half.preview(state) for state in running]
    decoding = half.finish(states)
    torch.cuda.set_sync_debug_mode("default")
    assert all(half.collect(each) for each in decoding)
    assert all(each.ready for each in decoding)
    assert all(each.ready for each in previews)


# Inductor advises TensorFloat32 for the VAE in float32. This project decides that by itself.
@pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores:UserWarning")
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("how", ["default", "max"])
def test_compiled_model_is_close_to_the_plain_one(half: SdxlDiffusion, tiny_checkpoint: Path, how: str) -> None:
    diffusion = load(Settings(model=str(tiny_checkpoint), compile=how), "cuda")
    for compiled, plain in zip(together(diffusion, MIXED), together(half, MIXED), strict=True):
        assert mean_difference(compiled, plain) < 1


def real_size(each: Job, seed: int) -> Job:
    """The job with an image of the size that graphs are recorded for."""
    noise = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((IMAGE_SIZE, IMAGE_SIZE))
    return replace(each, pixels=Pixels(IMAGE_SIZE, IMAGE_SIZE, image.tobytes()))


@pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores:UserWarning")
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("how", ["off", "default"])
def test_first_images_after_readiness_are_close_to_those_without_graphs(tiny_checkpoint: Path, how: str) -> None:
    plain = load(Settings(model=str(tiny_checkpoint), max_batch=4, cuda_graphs=False), "cuda")
    diffusion = load(Settings(model=str(tiny_checkpoint), max_batch=4, compile=how), "cuda")
    warm_up(diffusion, how)
    recorded = diffusion.graphs
    assert recorded > 0
    jobs = [real_size(each, seed) for seed, each in enumerate(MIXED)]
    # One by one, then all together: each image is the first with its prompt, its image and its number of rows.
    for shared in ([jobs[0]], [jobs[1]], jobs[:2], jobs):
        for graphed, direct in zip(together(diffusion, shared), together(plain, shared), strict=True):
            assert mean_difference(graphed, direct) < 1
    assert diffusion.graphs == recorded


def test_decode_that_overflows_is_repeated_in_float32(tiny_checkpoint: Path, tmp_path: Path) -> None:
    # A VAE with `force_upcast` would run in float32 from the start.
    names = ("diffusion_pytorch_model.fp16.safetensors", "config.json")
    weights, config = (tiny_checkpoint / "vae" / name for name in names)
    shutil.copy(weights, tmp_path / "diffusion_pytorch_model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({**json.loads(config.read_text()), "force_upcast": False}))
    diffusion = load(Settings(model=str(tiny_checkpoint), vae=str(tmp_path)), "cuda")
    assert diffusion.pipe.vae.dtype == torch.float16
    with torch.no_grad():
        diffusion.pipe.vae.decoder.conv_in.weight.mul_(60000)
        diffusion.pipe.vae.decoder.conv_in.bias.fill_(60000)
    (result,) = made(diffusion, [job()])
    assert result.redecoded
    assert diffusion.pipe.vae.dtype == torch.float16


def test_job_without_memory_fails_and_the_next_one_is_made(half: SdxlDiffusion) -> None:
    half.release_memory()
    total = torch.cuda.mem_get_info()[1]
    torch.cuda.set_per_process_memory_fraction(torch.cuda.memory_reserved() / total)
    big = real_size(job(), 0)
    try:
        with pytest.raises(torch.OutOfMemoryError) as raised:
            made(half, [big])
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert half.fault(raised.value) == "memory"
    half.release_memory()
    assert len(made(half, [big])) == 1


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


def test_sdxl_turbo_makes_a_finite_image(turbo: SdxlDiffusion) -> None:
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
