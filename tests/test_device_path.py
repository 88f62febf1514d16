"""The GPU path without a GPU: full-size SDXL-Turbo in float16 on torch's meta device.

There a host read raises, a tensor left on the CPU meets one that is not, and every operation can be counted.
"""

from collections.abc import Iterator

import pytest
import torch
from diffusers import EulerAncestralDiscreteScheduler, StableDiffusionXLImg2ImgPipeline
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTokenizer

from app.engine.checkpoint import EMBEDDED
from app.engine.diffusion import SdxlDiffusion, State
from app.engine.jobs import Job, ModelInfo, Pixels
from scripts.make_checkpoint import (
    on_meta,
    scheduler_config,
    text_encoder_2_config,
    text_encoder_config,
    tiny_vae_config,
    unet_config,
    vae_config,
)

INFO = ModelInfo("full", "", "checkpoint", "meta", "float16", "it is a test")
UNET, ENCODE, DECODE, TEXT = 1588.8, 1116.7, 2514.5, 111.2
TINY_ENCODE, TINY_DECODE = 122.3, 141.4


def full_size(vae: str) -> SdxlDiffusion:
    """SDXL-Turbo's exact configuration, 3.5 billion parameters, none of them in memory."""
    pipe = StableDiffusionXLImg2ImgPipeline(
        vae=on_meta(tiny_vae_config("full") if vae == "tiny" else vae_config("full")),
        text_encoder=on_meta(text_encoder_config("full")),
        text_encoder_2=on_meta(text_encoder_2_config("full")),
        tokenizer=CLIPTokenizer.from_pretrained(EMBEDDED / "tokenizer"),
        tokenizer_2=CLIPTokenizer.from_pretrained(EMBEDDED / "tokenizer_2"),
        unet=on_meta(unet_config("full")),
        scheduler=EulerAncestralDiscreteScheduler.from_config(scheduler_config()),
        add_watermarker=False,
    )
    for part in (pipe.unet, pipe.text_encoder, pipe.text_encoder_2):
        part.half()
    pipe.vae.to(torch.float32 if vae == "float32" else torch.float16)
    return SdxlDiffusion(pipe, torch.device("meta"), INFO)


@pytest.fixture(scope="module")
def diffusion() -> SdxlDiffusion:
    return full_size("float16")


@pytest.fixture
def counter() -> Iterator[FlopCounterMode]:
    with FlopCounterMode(display=False) as mode:
        yield mode


def job(name: str = "a", steps: int = 4, strength: float = 0.9, guidance: float = 0.0) -> Job:
    pixels = Pixels(512, 512, bytes(512 * 512 * 3))
    return Job(name, pixels, "a dog wizard", "blurry", steps, strength, guidance, 7, 1e12)


def run(diffusion: SdxlDiffusion, *jobs: Job) -> list[State]:
    """Everything up to the copy to the host, which is the first that may wait for the device."""
    states = [diffusion.admit(each) for each in jobs]
    while running := [state for state in states if not state.done]:
        diffusion.tick(running)
    with torch.inference_mode():
        for state in states:
            rgb, finite = diffusion.decode(state.latents)
            assert (rgb.device.type, rgb.dtype, tuple(rgb.shape)) == ("meta", torch.uint8, (512, 512, 3))
            assert finite.device.type == "meta"
    return states


def gigaflop(counter: FlopCounterMode) -> float:
    return counter.get_total_flops() / 1e9


@pytest.mark.parametrize("vae", ["float16", "float32", "tiny"])
def test_mixed_jobs_run_on_the_device_without_a_host_read(vae: str) -> None:
    jobs = [job("a", 4, 0.5), job("b", 3, 0.4), job("c", 5, 0.4, guidance=2.0), job("d", 1, 1.0)]
    for state in run(full_size(vae), *jobs):
        for tensor in (state.latents, state.embeds, state.pooled, state.time_ids):
            assert (tensor.device.type, tensor.dtype) == ("meta", torch.float16)
        assert tuple(state.latents.shape) == (1, 4, 64, 64)
        assert tuple(state.embeds.shape[1:]) == (77, 2048)
        assert state.timesteps.device.type == "cpu"


def test_a_host_read_would_be_noticed(diffusion: SdxlDiffusion) -> None:
    state = diffusion.admit(job(steps=1, strength=1.0))
    diffusion.tick([state])
    with pytest.raises((NotImplementedError, RuntimeError)):
        diffusion.finish([state])


def test_a_default_request_costs_what_its_parts_cost(diffusion: SdxlDiffusion, counter: FlopCounterMode) -> None:
    run(diffusion, job())
    assert gigaflop(counter) == pytest.approx(3 * UNET + ENCODE + DECODE + TEXT, rel=1e-3)
    assert gigaflop(counter) == pytest.approx(8510, rel=1e-3)


def test_with_the_tiny_vae_it_costs_two_fifths_less(counter: FlopCounterMode) -> None:
    run(full_size("tiny"), job())
    assert gigaflop(counter) == pytest.approx(3 * UNET + TINY_ENCODE + TINY_DECODE + TEXT, rel=1e-3)
    assert gigaflop(counter) == pytest.approx(5140, rel=1e-3)


def test_a_shared_call_costs_the_rows_that_are_in_it(diffusion: SdxlDiffusion, counter: FlopCounterMode) -> None:
    states = [diffusion.admit(job("a")), diffusion.admit(job("b", 2, 0.5)), diffusion.admit(job("c", guidance=2.0))]
    before = gigaflop(counter)
    diffusion.tick(states)
    assert gigaflop(counter) - before == pytest.approx(4 * UNET, rel=1e-3)


def test_guidance_costs_a_second_row_and_a_second_prompt(diffusion: SdxlDiffusion, counter: FlopCounterMode) -> None:
    run(diffusion, job(steps=1, strength=1.0, guidance=2.0))
    assert gigaflop(counter) == pytest.approx(2 * UNET + ENCODE + DECODE + 2 * TEXT, rel=1e-3)
