"""The files of a repository in diffusers format: which of them are loaded, and their download from the model hub."""

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
"""The commit of each known repository, so that every start loads the same files."""

_TOKENIZER = ("vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def default_cache() -> Path:
    """The folder where the hub client keeps downloads, unless a setting names another."""
    return Path(constants.HF_HUB_CACHE)


def pipeline_files(names: list[str], with_vae: bool) -> list[str]:
    """The files of a repository that an SDXL pipeline loads, without single-file checkpoints and other variants.

    Raises:
        CheckpointError: a part is missing, or is present only in a format that can run code when loaded.
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
    """The files of a repository that holds one VAE; raises as `pipeline_files`."""
    return [*_present(names, "config.json"), *_weights(names, "diffusion_pytorch_model")]


def class_name(folder: Path, part: str) -> str:
    """The class of a pipeline's part in `model_index.json`, for example `EulerDiscreteScheduler` for `scheduler`."""
    entry = read_json(folder / "model_index.json").get(part)
    return str(entry[-1]) if isinstance(entry, list) and entry else ""


def _present(names: list[str], *wanted: str) -> list[str]:
    for name in wanted:
        if name not in names:
            raise CheckpointError(f"{name} is missing: this is not a complete checkpoint in diffusers format.")
    return list(wanted)


def _weights(names: list[str], stem: str) -> list[str]:
    """One part's safetensors files, float16 if there is such a variant: a single file, or shards with their index."""
    for variant in (".fp16", ""):
        single, index = f"{stem}{variant}.safetensors", f"{stem}.safetensors.index{variant}.json"
        if single in names:
            return [single]
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
    """Relative paths of all files below a folder, without indexes of shards some of which are missing."""
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    for index in [name for name in names if ".safetensors.index" in name]:
        shards = {str(Path(index).parent / shard) for shard in read_json(folder / index)["weight_map"].values()}
        if not shards <= set(names):
            names.remove(index)
    return names


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        CheckpointError: the file cannot be read or is not JSON.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    return content


def fetch(
    hub_id: str, revision: str, select: Callable[[list[str]], list[str]], *, cache: Path | None, offline: bool
) -> Path:
    """The local folder of a repository's snapshot with the files that `select` chooses from a list of paths.

    Asks the hub only if a file is missing. A download shows its progress on standard error and resumes after an
    interruption.

    Args:
        hub_id: `owner/name`.
        revision: a commit, branch or tag.
        select: the files to load, of all paths in the repository; may raise CheckpointError.
        cache: the cache folder; None for the hub client's default.
        offline: never ask the hub.

    Raises:
        CheckpointError: a file is missing and cannot be downloaded; the message says why.
    """
    try:
        # Empty patterns: else the hub client would require all files of the repository, of which only some are loaded.
        folder = Path(
            snapshot_download(hub_id, revision=revision, cache_dir=cache, local_files_only=True, allow_patterns=[])
        )
        names = list_folder(folder)
        if all(name in names for name in select(names)):
            return folder
    except (LocalEntryNotFoundError, CheckpointError):
        pass
    if offline:
        raise CheckpointError(f"{hub_id} is not completely on this disk: `img2img download` downloads it.")
    try:
        siblings = HfApi().model_info(hub_id, revision=revision).siblings or []
        files = select([sibling.rfilename for sibling in siblings])
        return Path(snapshot_download(hub_id, revision=revision, cache_dir=cache, allow_patterns=files))
    except GatedRepoError as error:
        raise CheckpointError(
            f"{hub_id} requires that you accept its terms: do that on the hub, and set HF_TOKEN."
        ) from error
    except RevisionNotFoundError as error:
        raise CheckpointError(f"{hub_id} has no revision {revision}.") from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{hub_id} does not exist on the hub, or is private: set HF_TOKEN for a private one."
        ) from error
    except (httpx2.HTTPError, HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        raise CheckpointError(
            f"{hub_id} is not on this disk, and the hub cannot be reached ({type(error).__name__}). Run "
            "`img2img download` on a machine with network access, or set IMG2IMG_MODEL to a folder or to embedded."
        ) from error
