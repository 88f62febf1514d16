"""FLOPs of full-size SDXL-Turbo, counted on torch's meta device: without weights, and the same in every run.

A FLOP is an addition or a multiplication in a matrix product, a convolution or attention. Others are not counted.
"""

import torch
from diffusers import EulerAncestralDiscreteScheduler, StableDiffusionXLImg2ImgPipeline
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTokenizer

from app.engine.messages import Job, ModelInfo
from app.model.diffusion import SdxlDiffusion
from app.model.sources import EMBEDDED
from app.pixels import Pixels
from scripts.benchmarks.report import Goal, Outcome
from scripts.make_checkpoint import (
    on_meta,
    scheduler_config,
    text_encoder_2_config,
    text_encoder_config,
    tiny_vae_config,
    unet_config,
    vae_config,
)


def full_size(vae: str, cache_bytes: int = 0) -> SdxlDiffusion:
    """SDXL-Turbo's configuration on the meta device: 3.5 billion parameters in float16, none of them in memory.

    Args:
        vae: `float16` or `float32` for SDXL-Turbo's VAE in this dtype, or `tiny`.
        cache_bytes: the size of the encoders' caches.
    """
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
    info = ModelInfo("full", "", "checkpoint", "meta", "float16", "it is counted", "EulerAncestralDiscreteScheduler")
    return SdxlDiffusion(pipe, torch.device("meta"), info, cache_bytes)


def _job(prompt: str, grey: int) -> Job:
    pixels = Pixels(512, 512, bytes([grey]) * (512 * 512 * 3))
    return Job("counted", pixels, prompt, None, 4, 0.9, 0.0, 7, float("inf"))


def _request(diffusion: SdxlDiffusion, job: Job) -> FlopCounterMode:
    counter = FlopCounterMode(display=False)
    with counter:
        state = diffusion.admit(job)
        while not state.done:
            diffusion.tick([state])
        with torch.inference_mode():
            diffusion.vae.decode(state.latents)
    return counter


def case() -> Outcome:
    """FLOPs of a default request, and those saved when its prompt or image is cached."""
    diffusion = full_size("float16", cache_bytes=2**24)
    first = _request(diffusion, _job("a dog", 0))
    total = first.get_total_flops()
    rows = [("a new prompt, a new image", total / 1e12, 1.0)]
    for what, job in (("a cached prompt", _job("a dog", 1)), ("a cached image", _job("a cat", 0))):
        flops = _request(diffusion, job).get_total_flops()
        rows.append((what, flops / 1e12, flops / total))
    both = _request(diffusion, _job("a cat", 1)).get_total_flops()
    rows.append(("both known", both / 1e12, both / total))
    keys = sum(
        sum(counts.values())
        for name, counts in first.get_flop_counts().items()
        if name.endswith(("attn2.to_k", "attn2.to_v"))
    )
    rows.append(("cross-attention's keys and values, of all three calls", keys / 1e12, keys / total))
    return Outcome(
        "flops",
        "Work of a request: SDXL-Turbo, 4 steps, strength 0.9, its own VAE",
        ("request", "TFLOP", "of a new one"),
        rows,
        [Goal("count", "both cached, TFLOP", both / 1e12, at_most=3 * 1.5888 + 2.5145 + 0.001)],
    )
