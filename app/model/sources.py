"""Which weights the settings select on a device: the embedded checkpoint, a local folder, or a hub repository."""

import logging
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from app.errors import CheckpointError
from app.model import hub
from app.settings import WorkerSettings

logger = logging.getLogger(__name__)

EMBEDDED = Path(__file__).parent / "embedded"
TURBO = "stabilityai/sdxl-turbo"
FP16_VAE = "madebyollin/sdxl-vae-fp16-fix"
TINY_VAE = "madebyollin/taesdxl"

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", re.ASCII)


@dataclass(frozen=True)
class Source:
    """Where weights are: the local `folder` if it is set, else `hub_id` at `revision`. `reason` says why."""

    reason: str
    folder: Path | None = None
    hub_id: str = ""
    revision: str = ""

    @property
    def name(self) -> str:
        if self.folder == EMBEDDED:
            return "embedded"
        return str(self.folder) if self.folder else self.hub_id

    def setting(self, fetched: Path) -> str:
        """The value of a setting that selects the same files again. `fetched` is what `fetch` returned.

        The hub client names the folder of a snapshot after its commit.
        """
        if self.folder == EMBEDDED:
            return "embedded"
        return str(self.folder.absolute()) if self.folder else f"{self.hub_id}@{fetched.name}"

    def fetch(self, select: Callable[[list[str]], list[str]], settings: WorkerSettings) -> Path:
        """The folder with the files that `select` chooses from a list of paths. Missing files are downloaded.

        Raises:
            CheckpointError: a file is missing or unreadable, or the hub cannot be reached.
        """
        if self.folder:
            for name in select(hub.list_folder(self.folder)):
                if not os.access(self.folder / name, os.R_OK):
                    raise CheckpointError(f"{self.folder / name} cannot be read: check its permissions.")
            return self.folder
        return hub.fetch(self.hub_id, self.revision, select, cache=settings.hub_cache, offline=settings.offline)


def resolve_model(model: str, device: str) -> Source:
    """The checkpoint that `IMG2IMG_MODEL` selects on a device.

    Raises:
        CheckpointError: the value is neither a keyword, nor a folder, nor formed like a hub id.
    """
    if model == "auto":
        if device.startswith("cuda"):
            return _from_hub(TURBO, f"model is auto, and {device} is there")
        return Source("model is auto, and there is no CUDA device", folder=EMBEDDED)
    if model == "embedded":
        return Source("model is embedded", folder=EMBEDDED)
    return _folder_or_hub(model, "IMG2IMG_MODEL", "auto, embedded")


def resolve_vae(vae: str, checkpoint_vae: dict[str, Any], device: str, dtype: torch.dtype | None) -> Source | None:
    """The VAE that `IMG2IMG_VAE` selects; None for the checkpoint's own, whose config is `checkpoint_vae`.

    Raises:
        CheckpointError: the value is neither a keyword, nor a folder, nor formed like a hub id.
    """
    if vae == "checkpoint":
        return None
    if vae == "tiny":
        return _from_hub(TINY_VAE, "VAE is tiny")
    if vae != "auto":
        return _folder_or_hub(vae, "IMG2IMG_VAE", "auto, checkpoint, tiny")
    # The fixed weights are SDXL's VAE, rescaled. They do not fit another latent space.
    sdxl = {"scaling_factor": 0.13025, "block_out_channels": [128, 256, 512, 512]}
    is_sdxl = {name: checkpoint_vae.get(name) for name in sdxl} == sdxl
    overflows = dtype == torch.float16 and checkpoint_vae.get("force_upcast", True)
    if device.startswith("cuda") and overflows and is_sdxl:
        return _from_hub(FP16_VAE, "the checkpoint's own VAE overflows in float16")
    return None


def _folder_or_hub(name: str, variable: str, keywords: str) -> Source:
    folder = Path(name).expanduser()
    try:
        if folder.is_dir():
            return Source(f"{variable} names this folder", folder=folder)
    except OSError as error:
        raise CheckpointError(f"{variable}={name} cannot be read: {error.strerror}.") from error
    if _HUB_ID.fullmatch(name) and not name.startswith("."):
        return _from_hub(name, f"{variable} names it")
    raise CheckpointError(f"{variable}={name} is not a folder, not a hub id (owner/name), and none of: {keywords}.")


def _from_hub(name: str, reason: str) -> Source:
    hub_id, _, revision = name.partition("@")
    revision = revision or hub.PINS.get(hub_id, "main")
    if not re.fullmatch(r"[0-9a-f]{40}", revision):
        logger.warning("%s is not pinned: use %s@<commit, 40 hex digits> to always load the same files", hub_id, hub_id)
    return Source(reason, hub_id=hub_id, revision=revision)
