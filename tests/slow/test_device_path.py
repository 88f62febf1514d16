"""The GPU path without a GPU: full-size SDXL-Turbo in float16 on torch's meta device.

There a host read raises, a tensor left on the CPU meets one that is not, and every operation can be counted.
"""

import re
from collections.abc import Iterator

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from app.engine.messages import Job
from app.model.diffusion import SdxlDiffusion
from app.model.states import State
from app.pixels import Pixels
from scripts.benchmarks.counted import full_size
from tests.support.pages import read, section

UNET, ENCODE, DECODE, TEXT = 1588.8, 1116.7, 2514.5, 111.2
TINY_ENCODE, TINY_DECODE = 122.3, 141.4


@pytest.fixture(scope="module")
def diffusion() -> SdxlDiffusion:
    return full_size("float16")


@pytest.fixture
def counter() -> Iterator[FlopCounterMode]:
    with FlopCounterMode(display=False) as mode:
        yield mode


def job(
    name: str = "a",
    steps: int = 4,
    strength: float = 0.9,
    guidance: float = 0.0,
    prompt: str = "a dog wizard",
    grey: int = 0,
) -> Job:
    pixels = Pixels(512, 512, bytes([grey]) * (512 * 512 * 3))
    return Job(name, pixels, prompt, "blurry", steps, strength, guidance, 7, 1e12)


def run(diffusion: SdxlDiffusion, *jobs: Job) -> list[State]:
    """All operations up to the copy to the host, the first one that may wait for the device."""
    states = [diffusion.admit(each) for each in jobs]
    while running := [state for state in states if not state.done]:
        diffusion.tick(running)
    with torch.inference_mode():
        for state in states:
            rgb, finite = diffusion.vae.decode(state.latents)
            assert (rgb.device.type, rgb.dtype, tuple(rgb.shape)) == ("meta", torch.uint8, (512, 512, 3))
            assert finite.device.type == "meta"
    return states


def gigaflop(counter: FlopCounterMode) -> float:
    return counter.get_total_flops() / 1e9


@pytest.mark.parametrize("vae", ["float16", "float32", "tiny"])
def test_batch_runs_without_reading_from_the_device(vae: str) -> None:
    jobs = [job("a", 4, 0.5), job("b", 3, 0.4), job("c", 5, 0.4, guidance=2.0), job("d", 1, 1.0)]
    for state in run(full_size(vae), *jobs):
        for tensor in (state.latents, state.embeds, state.pooled, state.time_ids):
            assert (tensor.device.type, tensor.dtype) == ("meta", torch.float16)
        assert tuple(state.latents.shape) == (1, 4, 64, 64)
        assert tuple(state.embeds.shape[1:]) == (77, 2048)
        assert state.stepper.timesteps.device.type == "cpu"


def test_read_from_the_device_would_raise(diffusion: SdxlDiffusion) -> None:
    state = diffusion.admit(job(steps=1, strength=1.0))
    diffusion.tick([state])
    (decoding,) = diffusion.finish([state])
    with pytest.raises((NotImplementedError, RuntimeError)):
        diffusion.collect(decoding)


def test_operations_of_a_request_are_the_sum_of_its_parts(diffusion: SdxlDiffusion, counter: FlopCounterMode) -> None:
    run(diffusion, job())
    assert gigaflop(counter) == pytest.approx(3 * UNET + ENCODE + DECODE + TEXT, rel=1e-3)
    assert gigaflop(counter) == pytest.approx(8510, rel=1e-3)


def test_request_with_the_tiny_vae_costs_two_fifths_less(counter: FlopCounterMode) -> None:
    run(full_size("tiny"), job())
    assert gigaflop(counter) == pytest.approx(3 * UNET + TINY_ENCODE + TINY_DECODE + TEXT, rel=1e-3)
    assert gigaflop(counter) == pytest.approx(5140, rel=1e-3)


def test_shared_call_costs_its_rows(diffusion: SdxlDiffusion, counter: FlopCounterMode) -> None:
    states = [diffusion.admit(job("a")), diffusion.admit(job("b", 2, 0.5)), diffusion.admit(job("c", guidance=2.0))]
    before = gigaflop(counter)
    diffusion.tick(states)
    assert gigaflop(counter) - before == pytest.approx(4 * UNET, rel=1e-3)


def test_guidance_costs_a_second_row_and_a_second_prompt(diffusion: SdxlDiffusion, counter: FlopCounterMode) -> None:
    run(diffusion, job(steps=1, strength=1.0, guidance=2.0))
    assert gigaflop(counter) == pytest.approx(2 * UNET + ENCODE + DECODE + 2 * TEXT, rel=1e-3)


@pytest.mark.parametrize("vae", ["float16", "tiny"])
def test_cached_prompt_and_image_cost_nothing(vae: str, counter: FlopCounterMode) -> None:
    diffusion = full_size(vae, cache_bytes=2**20)
    encode = TINY_ENCODE if vae == "tiny" else ENCODE

    def cost(each: Job) -> float:
        before = gigaflop(counter)
        diffusion.admit(each)
        return gigaflop(counter) - before

    assert cost(job("a")) == pytest.approx(encode + TEXT, rel=1e-3)
    assert cost(job("b", strength=0.5)) == 0
    assert cost(job("c", prompt="a cat")) == pytest.approx(TEXT, rel=1e-3)
    assert cost(job("d", prompt="a cat", grey=1)) == pytest.approx(encode, rel=1e-3)
    # The cache holds one prompt of 0.32 MB.
    assert cost(job("e", prompt="a cat", grey=1)) == 0
    assert cost(job("f")) == pytest.approx(TEXT, rel=1e-3)


def test_docs_have_the_counted_operations() -> None:
    text = section(read("docs/architecture/04-model.md"), "## Work of a request")
    documented = [float(number) for number in re.findall(r"\d\.\d{3}", text)]
    assert documented == pytest.approx([gigaflop / 1000 for gigaflop in (UNET, ENCODE, DECODE, TEXT)], abs=6e-4)
