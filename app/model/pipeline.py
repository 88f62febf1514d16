"""A checkpoint's files to a diffusers pipeline, with its parts on a device. Only safetensors files are loaded."""

import logging
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, StableDiffusionXLImg2ImgPipeline
from diffusers.utils import logging as diffusers_logging
from huggingface_hub.utils import enable_progress_bars  # type: ignore[attr-defined]
from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

from app.engine.messages import ModelInfo
from app.errors import CheckpointError
from app.model import checkpoint, hub
from app.model.cpu_probe import choose_dtype
from app.model.packed import can_pack, channels_last, keep_stored, replace_layers
from app.model.weights import move_to_device, stored_dtype
from app.settings import WorkerSettings

logger = logging.getLogger(__name__)


def load_pipeline(settings: WorkerSettings, device: str) -> tuple[StableDiffusionXLImg2ImgPipeline, ModelInfo]:
    """Load the checkpoint that the settings select onto a device (`cpu` or `cuda:N`).

    Raises:
        CheckpointError: the checkpoint cannot be found, downloaded or used.
    """
    found = checkpoint.fetch(settings, device)
    info = found.info
    _quiet_libraries()
    pipe = _read(found)
    _check(pipe, info.model)
    if info.dtype == "auto":
        dtype, reason = choose_dtype(pipe.unet)
        info = replace(info, dtype=str(dtype).removeprefix("torch."))
        logger.info("IMG2IMG_DTYPE=auto is %s: %s", info.dtype, reason)
    logger.info("loading %s onto %s in %s, VAE %s: %s", info.model, device, info.dtype, info.vae, info.reason)
    # Inductor cannot compile packed layers.
    _move_parts(pipe, torch.device(device), getattr(torch, info.dtype), may_pack=settings.compile == "off")
    return pipe, info


def _quiet_libraries() -> None:
    """Switch off the libraries' progress bars for loading, which would fill the log, and one warning."""
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    # The line above switches off the download bars as well, which are wanted.
    enable_progress_bars()
    logging.getLogger("diffusers.pipelines.pipeline_utils").addFilter(_keep_record)


def _keep_record(record: logging.LogRecord) -> bool:
    """Drop the warning about a tiny VAE: the pipeline works with it, though its signature names AutoencoderKL alone."""
    return not record.getMessage().startswith("Expected types for vae")


def _read(found: checkpoint.Checkpoint) -> StableDiffusionXLImg2ImgPipeline:
    """The pipeline with its weights as they are stored, mapped from their files."""
    folder, vae_folder = found.folder, found.vae_folder
    weights = _weights(folder, hub.pipeline_files(hub.list_folder(folder), with_vae=vae_folder is None))
    variant = "fp16" if any(path.name.endswith(".fp16.safetensors") for path in weights) else None
    try:
        replaced = {"vae": _read_vae(vae_folder)} if vae_folder else {}
        return StableDiffusionXLImg2ImgPipeline.from_pretrained(
            folder,
            dtype={path.parent.name: stored_dtype(path) for path in weights},
            variant=variant,
            use_safetensors=True,
            local_files_only=True,
            add_watermarker=False,
            **replaced,
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise CheckpointError(f"{found.info.model} cannot be loaded as an SDXL checkpoint: {error}") from error


def _read_vae(folder: Path) -> AutoencoderKL | AutoencoderTiny:
    kind = hub.read_json(folder / "config.json").get("_class_name")
    classes = {"AutoencoderKL": AutoencoderKL, "AutoencoderTiny": AutoencoderTiny}
    if kind not in classes:
        raise CheckpointError(f"{folder} holds {kind}; IMG2IMG_VAE takes {' or '.join(classes)}.")
    weights, *_ = _weights(folder, hub.vae_files(hub.list_folder(folder)))
    return classes[kind].from_pretrained(
        folder, dtype=stored_dtype(weights), use_safetensors=True, local_files_only=True
    )


def _weights(folder: Path, files: list[str]) -> list[Path]:
    return [folder / name for name in files if name.endswith(".safetensors")]


def _check(pipe: StableDiffusionXLImg2ImgPipeline, name: str) -> None:
    """Refuse models of the SDXL family that take other inputs: their images would be wrong."""
    if pipe.tokenizer is None or pipe.config.requires_aesthetics_score:
        raise CheckpointError(f"{name} is an SDXL refiner. Set a base, Turbo or Lightning checkpoint instead.")
    if pipe.unet.config.time_cond_proj_dim is not None:
        raise CheckpointError(f"{name} takes its guidance as an embedding (LCM), which is not supported.")


def _move_parts(
    pipe: StableDiffusionXLImg2ImgPipeline, device: torch.device, dtype: torch.dtype, *, may_pack: bool
) -> None:
    """Move each part to its device and dtype; pack a large model on the CPU, and change the memory layout on CUDA."""
    # diffusers casts such a VAE to float32 and back in every call. Keeping it there takes 0.17 GB more.
    vae_dtype = torch.float32 if dtype == torch.float16 and pipe.vae.config.force_upcast else dtype
    packs = may_pack and can_pack(pipe.unet, device, dtype)
    if packs:
        replace_layers(pipe.unet, dtype)
        replace_layers(pipe.vae, vae_dtype)
    if packs and dtype == torch.float32:
        for encoder in (pipe.text_encoder, pipe.text_encoder_2):
            keep_stored(encoder)
    change = channels_last if packs or device.type == "cuda" else None
    move_to_device(pipe.unet, device, dtype, change)
    move_to_device(pipe.vae, device, vae_dtype, change)
    for encoder in (pipe.text_encoder, pipe.text_encoder_2):
        move_to_device(encoder, device, dtype)
