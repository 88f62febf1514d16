"""Writes an SDXL checkpoint of random weights, laid out as the hub lays out `stabilityai/sdxl-turbo` in float16.

`tiny` is the real architecture at a few MB. It makes noise on a CPU in a fraction of a second, for tests that check
numbers and not what an image shows. `full` has SDXL-Turbo's configuration, 6.9 GB: benchmarks and memory checks with it
have the cost of the trained checkpoint. The same seed gives the same bytes on every machine.
"""

import argparse
import json
import math
import shutil
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch

Size = Literal["tiny", "full"]
Config = dict[str, Any]

EMBEDDED = Path(__file__).parent.parent / "app" / "model" / "embedded"
"""The trained checkpoint that the service ships with. All checkpoints use its tokenizers."""

_TOKENIZER_FILES = ("merges.txt", "special_tokens_map.json", "tokenizer_config.json", "vocab.json")
_VOCABULARY = 49408
_WEIGHTS = "diffusion_pytorch_model"


def model_index() -> Config:
    """`model_index.json`: which library's class loads each folder."""
    return {
        "_class_name": "StableDiffusionXLPipeline",
        "force_zeros_for_empty_prompt": True,
        "scheduler": ["diffusers", "EulerAncestralDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }


def scheduler_config() -> Config:
    """Euler ancestral with trailing timesteps, the same for both sizes."""
    return {
        "_class_name": "EulerAncestralDiscreteScheduler",
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "num_train_timesteps": 1000,
        "prediction_type": "epsilon",
        "steps_offset": 1,
        "timestep_spacing": "trailing",
        "trained_betas": None,
    }


def text_encoder_config(size: Size) -> Config:
    """CLIP ViT-L/14's text model (123.1 M parameters at full size)."""
    if size == "full":
        return _clip("CLIPTextModel", "quick_gelu", width=768, heads=12, layers=12)
    return _clip("CLIPTextModel", "quick_gelu", width=8, heads=2, layers=2)


def text_encoder_2_config(size: Size) -> Config:
    """OpenCLIP ViT-bigG/14's text model with its projection (694.7 M parameters at full size)."""
    if size == "full":
        return _clip("CLIPTextModelWithProjection", "gelu", width=1280, heads=20, layers=32)
    return _clip("CLIPTextModelWithProjection", "gelu", width=16, heads=2, layers=2)


def _clip(architecture: str, activation: str, *, width: int, heads: int, layers: int) -> Config:
    return {
        "architectures": [architecture],
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "hidden_act": activation,
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": 77,
        "model_type": "clip_text_model",
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "pad_token_id": 1,
        "projection_dim": width,
        "vocab_size": _VOCABULARY,
    }


def unet_config(size: Size) -> Config:
    """SDXL's UNet: three levels, conditioned on text, pooled text and image size (2567.5 M parameters at full size).

    `attention_head_dim` is diffusers' name for the number of heads.
    """
    full = size == "full"
    text, pooled_text = text_encoder_config(size), text_encoder_2_config(size)
    time_ids_width = 256 if full else 8
    return {
        "_class_name": "UNet2DConditionModel",
        "act_fn": "silu",
        "addition_embed_type": "text_time",
        "addition_embed_type_num_heads": 64,
        "addition_time_embed_dim": time_ids_width,
        "attention_head_dim": [5, 10, 20] if full else [2, 2, 2],
        "block_out_channels": [320, 640, 1280] if full else [16, 32, 32],
        "center_input_sample": False,
        "cross_attention_dim": text["hidden_size"] + pooled_text["hidden_size"],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "downsample_padding": 1,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": 4,
        "layers_per_block": 2 if full else 1,
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "norm_eps": 1e-05,
        "norm_num_groups": 32 if full else 8,
        "out_channels": 4,
        "projection_class_embeddings_input_dim": 6 * time_ids_width + pooled_text["projection_dim"],
        "sample_size": 128 if full else 64,
        "transformer_layers_per_block": [1, 2, 10] if full else [1, 1, 2],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "use_linear_projection": True,
    }


def vae_config(size: Size) -> Config:
    """SDXL's autoencoder: four levels, so eight pixels to a latent (83.7 M parameters at full size)."""
    full = size == "full"
    return {
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "block_out_channels": [128, 256, 512, 512] if full else [4, 8, 16, 16],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "force_upcast": True,
        "in_channels": 3,
        "latent_channels": 4,
        "layers_per_block": 2 if full else 1,
        "norm_num_groups": 32 if full else 2,
        "out_channels": 3,
        "sample_size": 1024 if full else 512,
        "scaling_factor": 0.13025,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
    }


def tiny_vae_config(size: Size) -> Config:
    """TAESDXL, a small replacement of the autoencoder (2.4 M parameters at full size)."""
    full = size == "full"
    return {
        "_class_name": "AutoencoderTiny",
        "act_fn": "relu",
        "decoder_block_out_channels": [64] * 4 if full else [8] * 4,
        "encoder_block_out_channels": [64] * 4 if full else [8] * 4,
        "force_upcast": False,
        "in_channels": 3,
        "latent_channels": 4,
        "latent_magnitude": 3,
        "latent_shift": 0.5,
        "num_decoder_blocks": [3, 3, 3, 1] if full else [1, 1, 1, 1],
        "num_encoder_blocks": [1, 3, 3, 3] if full else [1, 1, 1, 1],
        "out_channels": 3,
        "scaling_factor": 1.0,
        "upsampling_scaling_factor": 2,
    }


CONFIGS: dict[str, Callable[[Size], Config]] = {
    "text_encoder": text_encoder_config,
    "text_encoder_2": text_encoder_2_config,
    "unet": unet_config,
    "vae": vae_config,
}
"""The folders that have weights."""


def on_meta(config: Config) -> "torch.nn.Module":
    """The model of a configuration on the meta device, which has names and shapes but no weights."""
    import diffusers
    import torch
    import transformers

    with torch.device("meta"):
        if "architectures" in config:
            text_model = getattr(transformers, config["architectures"][0])
            model: torch.nn.Module = text_model(transformers.CLIPTextConfig(**config))
        else:
            model = getattr(diffusers, config["_class_name"]).from_config(config)
    return model.eval()


def random_weights(config: Config, *, seed: int, dtype: "torch.dtype") -> "dict[str, torch.Tensor]":
    """Random values for all parameters of a configuration, by their names on the hub, in `dtype` on the CPU."""
    prefix = "text_model." if config.get("architectures") == ["CLIPTextModel"] else ""
    weights = {}
    for name, parameter in on_meta(config).state_dict().items():
        # transformers 5 drops this prefix in memory and accepts it in files, such as those of the hub.
        name = name if name.startswith(prefix) else prefix + name
        weights[name] = _random_tensor(name, parameter.shape, seed).to(dtype)
    return weights


def _random_tensor(name: str, shape: Sequence[int], seed: int) -> "torch.Tensor":
    """One parameter in float32: biases are 0, norms 1, others uniform around 0 with variance gain / fan-in.

    This keeps the values of a full-depth UNet below 1000, far from float16's limit. The distribution is uniform, not
    normal, because that needs no logarithm, whose last bit differs between CPUs.
    """
    import torch

    if len(shape) < 2:
        return torch.zeros(shape) if name.endswith("bias") else torch.ones(shape)
    # Activations between linear layers weaken the prompt's signal. With a gain of 1 it would hardly have an effect.
    gain = 2 if len(shape) == 2 else 1
    # One generator per tensor, so that its values do not depend on other tensors.
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))
    return torch.rand(shape, generator=generator).sub_(0.5).mul_(2 * math.sqrt(3 * gain / math.prod(shape[1:])))


def write_checkpoint(folder: Path, size: Size, seed: int) -> None:
    """Writes the checkpoint into `folder` and overwrites files. Holds one part in memory at a time."""
    import torch

    _write_json(folder / "model_index.json", model_index())
    _write_json(folder / "scheduler" / "scheduler_config.json", scheduler_config())
    for tokenizer in ("tokenizer", "tokenizer_2"):
        _copy_tokenizer(EMBEDDED / tokenizer, folder / tokenizer)
    for part, config in CONFIGS.items():
        stem = "model" if part.startswith("text_encoder") else _WEIGHTS
        _write_model(folder / part, config(size), f"{stem}.fp16.safetensors", seed, torch.float16)


def write_tiny_vae(folder: Path, seed: int, size: Size = "tiny") -> None:
    """Writes an `AutoencoderTiny` in float32, in the layout of `madebyollin/taesdxl`."""
    import torch

    _write_model(folder, tiny_vae_config(size), f"{_WEIGHTS}.safetensors", seed, torch.float32)


def write_half_vae(folder: Path, seed: int, size: Size = "tiny") -> None:
    """Writes the checkpoint's VAE once more, as one that float16 is enough for: `madebyollin/sdxl-vae-fp16-fix`.

    Random weights do not overflow in float16.
    """
    import torch

    config = {**vae_config(size), "force_upcast": False}
    _write_model(folder, config, f"{_WEIGHTS}.safetensors", seed, torch.float16)


def _write_model(folder: Path, config: Config, weights_file: str, seed: int, dtype: "torch.dtype") -> None:
    from safetensors.torch import save_file

    _write_json(folder / "config.json", config)
    save_file(random_weights(config, seed=seed, dtype=dtype), folder / weights_file, metadata={"format": "pt"})
    # safetensors writes files that only their owner can read. A container that runs as another user needs more.
    (folder / weights_file).chmod(0o644)


def _write_json(path: Path, value: Config) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _copy_tokenizer(source: Path, target: Path) -> None:
    """Copies the tokenizer's four files."""
    target.mkdir(parents=True, exist_ok=True)
    for name in _TOKENIZER_FILES:
        shutil.copyfile(source / name, target / name)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="make_checkpoint", description="Write an SDXL checkpoint of random weights in diffusers format."
    )
    parser.add_argument("--size", choices=["tiny", "full"], default="tiny", help="tiny: a few MB; full: 6.9 GB")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="the folder, relative to the project's folder (default: out/checkpoint-SIZE)",
    )
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same bytes (default: 0)")
    options = parser.parse_args(arguments)
    folder = options.out or Path("out") / f"checkpoint-{options.size}"
    write_checkpoint(folder, options.size, options.seed)
    print(f"wrote {folder}: {sum(file.stat().st_size for file in folder.rglob('*') if file.is_file()):,} bytes")


if __name__ == "__main__":
    main()
