"""A model of SDXL-Turbo's size without its weights."""

from typing import Any

import torch
from diffusers import EulerAncestralDiscreteScheduler, StableDiffusionXLImg2ImgPipeline
from transformers import CLIPTokenizer

from app.engine.messages import ModelInfo
from app.model.diffusion import SdxlDiffusion
from app.model.sources import EMBEDDED
from scripts.make_checkpoint import (
    on_meta,
    scheduler_config,
    text_encoder_2_config,
    text_encoder_config,
    unet_config,
    vae_config,
)

A10G_BYTES = 24e9


def full_size(device: str = "cuda:0", **options: Any) -> SdxlDiffusion:
    """SDXL-Turbo's configuration with weights of zero, made on the device. The VAE runs in float16.

    `options` are arguments of `SdxlDiffusion`.
    """
    parts = {
        "vae": {**vae_config("full"), "force_upcast": False},
        "text_encoder": text_encoder_config("full"),
        "text_encoder_2": text_encoder_2_config("full"),
        "unet": unet_config("full"),
    }
    modules = {name: on_meta(config).half().to_empty(device=device) for name, config in parts.items()}
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
        torch.device(device),
        ModelInfo("full", "", "checkpoint", device, "float16", "a test", "EulerAncestralDiscreteScheduler"),
        **options,
    )
