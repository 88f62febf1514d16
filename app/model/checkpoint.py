"""Where weights come from and how they reach the device: embedded, a folder, or a hub id. safetensors only."""

import logging
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, StableDiffusionXLImg2ImgPipeline
from diffusers.utils import logging as diffusers_logging
from huggingface_hub.utils import enable_progress_bars  # type: ignore[attr-defined]
from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

from app.engine.messages import ModelInfo
from app.errors import CheckpointError
from app.model import hub
from app.model.batch_limit import capacity
from app.model.devices import first_line, resolve_device, resolve_dtype
from app.model.packed import can_pack, channels_last, keep_stored, replace_layers
from app.model.weights import move_to_device, stored_dtype
from app.settings import Settings, WorkerSettings

logger = logging.getLogger(__name__)

EMBEDDED = Path(__file__).parent / "embedded"
TURBO = "stabilityai/sdxl-turbo"
FP16_VAE = "madebyollin/sdxl-vae-fp16-fix"
TINY_VAE = "madebyollin/taesdxl"

UNUSABLE = "cannot be used: "
"""How `describe` begins what it says of the files of a folder that no service starts with."""


_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", re.ASCII)


@dataclass(frozen=True)
class Source:
    """Weights to load: a local folder if `folder` is set, else `hub_id` at `revision`; and why these."""

    reason: str
    folder: Path | None = None
    hub_id: str = ""
    revision: str = ""

    @property
    def name(self) -> str:
        if self.folder == EMBEDDED:
            return "embedded"
        return str(self.folder) if self.folder else self.hub_id

    def fetch(self, wanted: Callable[[list[str]], list[str]], settings: WorkerSettings) -> Path:
        """The folder that holds the `wanted` of the source's files, downloaded if need be.

        Raises:
            CheckpointError: a file is missing, or the hub cannot be reached.
        """
        if self.folder:
            for name in wanted(hub.list_folder(self.folder)):
                if not os.access(self.folder / name, os.R_OK):
                    raise CheckpointError(f"{self.folder / name} cannot be read: see to its permissions.")
            return self.folder
        return hub.fetch(self.hub_id, self.revision, wanted, cache=settings.hub_cache, offline=settings.offline)


def resolve_model(model: str, device: str) -> Source:
    """The checkpoint that `IMG2IMG_MODEL` means on a device.

    Raises:
        CheckpointError: it is neither a word, nor a folder, nor of a hub id's form.
    """
    if model == "auto":
        if device.startswith("cuda"):
            return _from_hub(TURBO, f"model is auto, and {device} is there")
        return Source("model is auto, and there is no CUDA device", folder=EMBEDDED)
    if model == "embedded":
        return Source("model is embedded", folder=EMBEDDED)
    return _folder_or_hub(model, "IMG2IMG_MODEL", "auto, embedded")


def resolve_vae(vae: str, own: dict[str, Any], device: str, dtype: torch.dtype) -> Source | None:
    """The VAE that `IMG2IMG_VAE` means for a checkpoint whose own has the config `own`; None for that one."""
    if vae == "checkpoint":
        return None
    if vae == "tiny":
        return _from_hub(TINY_VAE, "VAE is tiny")
    if vae != "auto":
        return _folder_or_hub(vae, "IMG2IMG_VAE", "auto, checkpoint, tiny")
    # The fixed weights are those of SDXL's own VAE, rescaled: they fit no other latent space.
    is_sdxl = own.get("scaling_factor") == 0.13025 and own.get("block_out_channels") == [128, 256, 512, 512]
    if device.startswith("cuda") and dtype == torch.float16 and own.get("force_upcast", True) and is_sdxl:
        return _from_hub(FP16_VAE, "the checkpoint's own VAE overflows in float16")
    return None


def _folder_or_hub(name: str, variable: str, words: str) -> Source:
    folder = Path(name).expanduser()
    try:
        if folder.is_dir():
            return Source(f"{variable} names this folder", folder=folder)
    except OSError as error:
        raise CheckpointError(f"{variable}={name} cannot be read: {error.strerror}.") from error
    if _HUB_ID.fullmatch(name) and not name.startswith("."):
        return _from_hub(name, f"{variable} names it")
    raise CheckpointError(f"{variable}={name} is no folder here, no hub id (owner/name), and none of: {words}.")


def _from_hub(name: str, reason: str) -> Source:
    hub_id, _, revision = name.partition("@")
    revision = revision or hub.PINS.get(hub_id, "main")
    if not re.fullmatch(r"[0-9a-f]{40}", revision):
        logger.warning("%s is not pinned: name a commit as %s@<40 hex digits> to always load the same", hub_id, hub_id)
    return Source(reason, hub_id=hub_id, revision=revision)


def fetch(settings: WorkerSettings, device: str) -> tuple[Path, Path | None, ModelInfo]:
    """Bring exactly the files that would be loaded on `device` onto the disk: the checkpoint, and its other VAE if any.

    Raises:
        CheckpointError: see the message.
    """
    dtype = resolve_dtype(settings.dtype, device)
    model = resolve_model(settings.model, device)
    if model.folder and not os.path.lexists(model.folder / "model_index.json"):
        raise CheckpointError(
            f"IMG2IMG_MODEL={settings.model} is no checkpoint in diffusers format: there is no "
            "model_index.json in that folder."
        )
    own = hub.read_json(model.fetch(lambda names: ["vae/config.json"], settings) / "vae/config.json")
    vae = resolve_vae(settings.vae, own, device, dtype)
    folder = model.fetch(lambda names: hub.pipeline_files(names, with_vae=vae is None), settings)
    vae_folder = vae.fetch(hub.vae_files, settings) if vae else None
    info = ModelInfo(
        model=model.name,
        revision=model.revision,
        vae=vae.name if vae else "checkpoint",
        device=device,
        dtype=str(dtype).removeprefix("torch."),
        reason=model.reason + (f"; {vae.reason}" if vae else ""),
        scheduler=hub.class_name(folder, "scheduler"),
    )
    return folder, vae_folder, info


def load_pipeline(settings: WorkerSettings, device: str) -> tuple[StableDiffusionXLImg2ImgPipeline, ModelInfo]:
    """Load the checkpoint that the settings name onto a device (`cpu` or `cuda:N`).

    Raises:
        CheckpointError: it cannot be found, fetched or used.
    """
    dtype = resolve_dtype(settings.dtype, device)
    folder, vae_folder, info = fetch(settings, device)
    logger.info("loading %s onto %s in %s, VAE %s: %s", info.model, device, info.dtype, info.vae, info.reason)
    # Downloads show how far they are; these bars would but fill the log.
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    # The last line switched off those of downloads as well.
    enable_progress_bars()
    logging.getLogger("diffusers.pipelines.pipeline_utils").addFilter(_no_idle_warning)
    weights = _weights(folder, hub.pipeline_files(hub.list_folder(folder), with_vae=vae_folder is None))
    variant = "fp16" if any(path.name.endswith(".fp16.safetensors") for path in weights) else None
    try:
        replaced = {"vae": _load_vae(vae_folder)} if vae_folder else {}
        pipe = StableDiffusionXLImg2ImgPipeline.from_pretrained(
            folder,
            dtype={path.parent.name: stored_dtype(path) for path in weights},
            variant=variant,
            use_safetensors=True,
            local_files_only=True,
            add_watermarker=False,
            **replaced,
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise CheckpointError(f"{info.model} cannot be loaded as an SDXL checkpoint: {error}") from error
    _check(pipe, info.model)
    # Inductor knows nothing of packed weights.
    _place(pipe, torch.device(device), dtype, may_pack=settings.compile == "off")
    return pipe, info


def _place(pipe: StableDiffusionXLImg2ImgPipeline, device: torch.device, dtype: torch.dtype, *, may_pack: bool) -> None:
    """Every part to its device and dtype, and a large model in the form that is fast there."""
    # Diffusers casts such a VAE there and back in every call; it needs 0.17 GB more to leave it there.
    vae_dtype = torch.float32 if dtype == torch.float16 and pipe.vae.config.force_upcast else dtype
    packs = may_pack and can_pack(pipe.unet, device, dtype)
    if packs:
        for model in (pipe.unet, pipe.vae):
            replace_layers(model)
        for encoder in (pipe.text_encoder, pipe.text_encoder_2):
            keep_stored(encoder)
    change = channels_last if packs or device.type == "cuda" else None
    move_to_device(pipe.unet, device, dtype, change)
    move_to_device(pipe.vae, device, vae_dtype, change)
    for encoder in (pipe.text_encoder, pipe.text_encoder_2):
        move_to_device(encoder, device, dtype)


def _no_idle_warning(record: logging.LogRecord) -> bool:
    """The pipeline's signature names AutoencoderKL alone, so it warns of the tiny kind, which it works with as well."""
    return not record.getMessage().startswith("Expected types for vae")


def _weights(folder: Path, files: list[str]) -> list[Path]:
    return [folder / name for name in files if name.endswith(".safetensors")]


def _load_vae(folder: Path) -> AutoencoderKL | AutoencoderTiny:
    kind = hub.read_json(folder / "config.json").get("_class_name")
    classes = {"AutoencoderKL": AutoencoderKL, "AutoencoderTiny": AutoencoderTiny}
    if kind not in classes:
        raise CheckpointError(f"{folder} holds {kind}; IMG2IMG_VAE takes {' or '.join(classes)}.")
    weights, *_ = _weights(folder, hub.vae_files(hub.list_folder(folder)))
    return classes[kind].from_pretrained(
        folder, dtype=stored_dtype(weights), use_safetensors=True, local_files_only=True
    )


def _check(pipe: StableDiffusionXLImg2ImgPipeline, name: str) -> None:
    """Refuse those of the family that take other inputs, rather than make wrong pictures with them."""
    if pipe.tokenizer is None or pipe.config.requires_aesthetics_score:
        raise CheckpointError(f"{name} is an SDXL refiner. Name a base, Turbo or Lightning checkpoint instead.")
    if pipe.unet.config.time_cond_proj_dim is not None:
        raise CheckpointError(f"{name} takes its guidance as an embedding (LCM), which is not supported.")


def describe(settings: Settings) -> dict[str, str]:
    """What `img2img doctor` says of torch, the device, and the checkpoint; loads no weights, fetches nothing."""
    facts = {"torch": torch.__version__, "CUDA build": torch.version.cuda or "none"}
    if torch.cuda.is_available():
        facts |= {f"cuda:{index}": _describe_gpu(index) for index in range(torch.cuda.device_count())}
    device = resolve_device(settings.devices.split(",")[0])
    facts["device"], facts["dtype"] = device, str(resolve_dtype(settings.dtype, device)).removeprefix("torch.")
    facts["batch"] = _describe_batch(settings, device)
    model = resolve_model(settings.model, device)
    facts["model"] = f"{model.name} ({model.reason})"
    try:
        folder, _, info = fetch(settings.model_copy(update={"offline": True}), device)
        facts["VAE"], facts["files"] = info.vae, str(folder)
    except CheckpointError as error:
        facts["files"] = f"{UNUSABLE if model.folder else 'not all here yet: '}{error}"
    return facts


def _describe_gpu(index: int) -> str:
    try:
        properties = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
    except RuntimeError as error:
        return f"cannot be used: {first_line(error)}"
    return f"{properties.name}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free"


def _describe_batch(settings: Settings, device: str) -> str:
    small, large = (capacity(settings.max_batch, device, large=large) for large in (False, True))
    if settings.max_batch != "auto":
        return f"{small} (IMG2IMG_MAX_BATCH says so)"
    if small != large:
        return (
            f"{small} for a small model, which a CPU runs faster so; {large} for a large one, where the first "
            "job would be done with the last (max_batch is auto)"
        )
    return f"{small} (max_batch is auto, and a GPU is expected to make more pictures a second together)"
