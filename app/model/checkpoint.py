"""The files of the checkpoint and VAE that the settings select, on this disk."""

import os
from dataclasses import dataclass
from pathlib import Path

from app.engine.messages import ModelInfo
from app.errors import CheckpointError
from app.model import hub
from app.model.devices import resolve_dtype
from app.model.sources import resolve_model, resolve_vae
from app.settings import WorkerSettings


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk. `vae_folder` is None if the checkpoint's own VAE is used.

    The dtype of `info` is `auto` if `app.model.cpu_probe` has to choose it.
    """

    folder: Path
    vae_folder: Path | None
    info: ModelInfo


def fetch(settings: WorkerSettings, device: str) -> Checkpoint:
    """Download the files that a pipeline on `device` (`cpu` or `cuda:N`) loads, unless they are on this disk.

    Raises:
        CheckpointError: the settings select no checkpoint, a file is missing, or the hub cannot be reached.
    """
    dtype = resolve_dtype(settings.dtype, device)
    model = resolve_model(settings.model, device)
    if model.folder and not os.path.lexists(model.folder / "model_index.json"):
        raise CheckpointError(
            f"IMG2IMG_MODEL={settings.model} is not a checkpoint in diffusers format: there is no "
            "model_index.json in that folder."
        )
    config = hub.read_json(model.fetch(lambda names: ["vae/config.json"], settings) / "vae/config.json")
    vae = resolve_vae(settings.vae, config, device, dtype)
    folder = model.fetch(lambda names: hub.pipeline_files(names, with_vae=vae is None), settings)
    vae_folder = vae.fetch(hub.vae_files, settings) if vae else None
    info = ModelInfo(
        model=model.name,
        revision=model.revision,
        vae=vae.name if vae else "checkpoint",
        device=device,
        dtype=str(dtype).removeprefix("torch.") if dtype else "auto",
        reason=model.reason + (f"; {vae.reason}" if vae else ""),
        scheduler=hub.class_name(folder, "scheduler"),
        model_setting=model.setting(folder),
        vae_setting=vae.setting(vae_folder) if vae and vae_folder else "checkpoint",
    )
    return Checkpoint(folder, vae_folder, info)
