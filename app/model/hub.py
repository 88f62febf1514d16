"""Which files of a repository in diffusers format are loaded, and how they come from the model hub to the disk."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from app.errors import CheckpointError

PINS = {
    "stabilityai/sdxl-turbo": "71153311d3dbb46851df1931d3ca6e939de83304",
    "stabilityai/stable-diffusion-xl-base-1.0": "462165984030d82259a11f4367a4eed129e94a7b",
    "madebyollin/sdxl-vae-fp16-fix": "207b116dae70ace3637169f1ddd2434b91b3a8cd",
    "madebyollin/taesdxl": "b20258aaef75ef61e659c1e0f14f251cf0ad153e",
}
"""The commit of each known repository: what was loaded yesterday is loaded tomorrow."""

_TOKENIZER = ("vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def default_cache() -> Path:
    """The folder that the model hub's client keeps downloads in, if no setting names one."""
    return Path(constants.HF_HUB_CACHE)


def pipeline_files(names: list[str], with_vae: bool) -> list[str]:
    """Of a repository's files, exactly those that an SDXL pipeline loads: never the single-file checkpoints beside it.

    Raises:
        CheckpointError: a part is missing, or is there only in a format that can run code when loaded.
    """
    files = _present(names, "model_index.json", "scheduler/scheduler_config.json")
    for folder in ("tokenizer", "tokenizer_2"):
        files += [name for part in _TOKENIZER if (name := f"{folder}/{part}") in names]
        if f"{folder}/tokenizer.json" not in files:
            _present(names, f"{folder}/vocab.json", f"{folder}/merges.txt")
    for folder, stem in (
        ("text_encoder", "model"),
        ("text_encoder_2", "model"),
        ("unet", "diffusion_pytorch_model"),
        ("vae", "diffusion_pytorch_model"),
    ):
        files += _present(names, f"{folder}/config.json")
        if folder != "vae" or with_vae:
            files += _weights(names, f"{folder}/{stem}")
    return files


def vae_files(names: list[str]) -> list[str]:
    """The same for a repository that holds one VAE."""
    return [*_present(names, "config.json"), *_weights(names, "diffusion_pytorch_model")]


def class_name(folder: Path, part: str) -> str:
    """Of a pipeline's part, as its `model_index.json` names it: `EulerDiscreteScheduler` for `scheduler`."""
    entry = read_json(folder / "model_index.json").get(part)
    return str(entry[-1]) if isinstance(entry, list) and entry else ""


def _present(names: list[str], *wanted: str) -> list[str]:
    for name in wanted:
        if name not in names:
            raise CheckpointError(f"{name} is missing: this is no complete checkpoint in diffusers format.")
    return list(wanted)


def _weights(names: list[str], stem: str) -> list[str]:
    """One component's safetensors: float16 if it is there, else the plain ones; whole or in shards."""
    for variant in (".fp16", ""):
        whole, index = f"{stem}{variant}.safetensors", f"{stem}.safetensors.index{variant}.json"
        if whole in names:
            return [whole]
        if index in names:
            return [index, *(name for name in names if _is_shard(name, stem, variant))]
    raise CheckpointError(
        f"{stem}.safetensors is missing. Only safetensors are loaded: .bin and .ckpt files can run code."
    )


def _is_shard(name: str, stem: str, variant: str) -> bool:
    return (
        name.startswith(f"{stem}-") and name.endswith(f"{variant}.safetensors") and (".fp16." in name) == bool(variant)
    )


def list_folder(folder: Path) -> list[str]:
    """Relative paths of all files below a folder; without the shards if some that an index names are not there."""
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    for index in [name for name in names if ".safetensors.index" in name]:
        shards = {str(Path(index).parent / shard) for shard in read_json(folder / index)["weight_map"].values()}
        if not shards <= set(names):
            names.remove(index)
    return names


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        CheckpointError: it is not there or not JSON.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    return content


def fetch(
    hub_id: str, revision: str, wanted: Callable[[list[str]], list[str]], *, cache: Path | None, offline: bool
) -> Path:
    """The local folder of a repository's snapshot with all `wanted` files in it; the hub is asked only for others.

    A download shows its progress on standard error, and goes on where a broken one stopped.

    Raises:
        CheckpointError: the files are not there, and cannot be had.
    """
    try:
        # No patterns: the hub client would hold the whole repository against the folder, we want but a part of it.
        folder = Path(
            snapshot_download(hub_id, revision=revision, cache_dir=cache, local_files_only=True, allow_patterns=[])
        )
        names = list_folder(folder)
        if all(name in names for name in wanted(names)):
            return folder
    except (LocalEntryNotFoundError, CheckpointError):
        pass
    if offline:
        raise CheckpointError(f"{hub_id} is not all on this disk: `img2img download` fetches it.")
    try:
        siblings = HfApi().model_info(hub_id, revision=revision).siblings or []
        files = wanted([sibling.rfilename for sibling in siblings])
        return Path(snapshot_download(hub_id, revision=revision, cache_dir=cache, allow_patterns=files))
    except GatedRepoError as error:
        raise CheckpointError(f"{hub_id} asks you to accept its terms first: do that, and set HF_TOKEN.") from error
    except RevisionNotFoundError as error:
        raise CheckpointError(f"{hub_id} has no revision {revision}.") from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(f"There is no {hub_id} on the hub, or it is private: then set HF_TOKEN.") from error
    except (httpx2.HTTPError, HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        raise CheckpointError(
            f"{hub_id} is not on this disk, and the hub cannot be reached ({type(error).__name__}). Run "
            "`img2img download` where it can be, or set IMG2IMG_MODEL to a folder or to embedded."
        ) from error
