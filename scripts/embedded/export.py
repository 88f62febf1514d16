"""Writes the trained parts as an SDXL checkpoint in diffusers format, float16."""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderTiny, UNet2DConditionModel
from safetensors.torch import save_file
from torch import nn

from scripts.embedded import text, translator
from scripts.embedded.text import TextEncoders
from scripts.make_checkpoint import model_index

_WEIGHTS = "diffusion_pytorch_model.safetensors"


def write(folder: Path, vae: AutoencoderTiny, encoders: TextEncoders, unet: UNet2DConditionModel) -> int:
    """Writes all parts except the tokenizers, which exist already, and the licences; returns the size in bytes."""
    index = model_index()
    index["vae"] = ["diffusers", "AutoencoderTiny"]
    _json(folder / "model_index.json", index)
    _json(folder / "scheduler" / "scheduler_config.json", translator.scheduler_config())
    _model(folder / "unet", translator.config(), unet, _WEIGHTS)
    # diffusers warns about its own `block_out_channels` when it reads them.
    kept = {key: value for key, value in vae.config.items() if key[0] != "_" and key != "block_out_channels"}
    _model(folder / "vae", {"_class_name": "AutoencoderTiny", **kept}, vae, _WEIGHTS)
    for part, architecture, encoder in (
        ("text_encoder", "CLIPTextModel", encoders.first),
        ("text_encoder_2", "CLIPTextModelWithProjection", encoders.second),
    ):
        _model(folder / part, text.config(architecture), encoder, "model.safetensors", prefix="text_model.")
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _model(folder: Path, config: dict[str, Any], model: nn.Module, file: str, prefix: str = "") -> None:
    _json(folder / "config.json", config)
    weights = {}
    for name, value in model.state_dict().items():
        # The names in the hub's files. transformers 5 drops this prefix in memory for a model without projection.
        full_name = name if not prefix or name.startswith((prefix, "text_projection")) else prefix + name
        weights[full_name] = value.to(torch.float16).contiguous()
    save_file(weights, folder / file, metadata={"format": "pt"})
    # safetensors writes files that only their owner can read. A container that runs as another user needs more.
    (folder / file).chmod(0o644)


def _json(path: Path, value: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
