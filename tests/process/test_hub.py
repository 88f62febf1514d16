"""The real hub client against a hub on loopback: which files come, when the hub is asked, and what an error says."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.errors import CheckpointError
from app.model import checkpoint, hub
from app.model.checkpoint import Checkpoint
from app.model.sources import FP16_VAE, TINY_VAE, TURBO
from app.settings import Settings
from tests.support.checkpoints import files_of
from tests.support.hub import HUB_PORT, Hub, run_hub

# What lies beside the diffusers files in the real repository, and must never come.
BALLAST = (
    "sd_xl_turbo_1.0.safetensors",
    "sd_xl_turbo_1.0_fp16.safetensors",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
    "text_encoder/model.safetensors",
    "text_encoder/model.onnx",
    "text_encoder_2/model.safetensors",
    "text_encoder_2/model.onnx_data",
    "unet/model.onnx_data",
    "unet/diffusion_pytorch_model.bin",
    "vae_decoder/model.onnx",
    "README.md",
    "LICENSE.md",
    "output_tile.jpg",
)
SDXL_VAE = {"scaling_factor": 0.13025, "block_out_channels": [128, 256, 512, 512], "force_upcast": True}
VAE_FILES = {"config.json": b"{}", "diffusion_pytorch_model.safetensors": b"v", "sdxl_vae.safetensors": b"no"}


@pytest.fixture
def model_hub(tiny_checkpoint: Path) -> Iterator[Hub]:
    """A hub with SDXL-Turbo's file names, the real VAE's configuration, and the two other VAEs."""
    turbo = files_of(tiny_checkpoint) | dict.fromkeys(BALLAST, b"too much")
    turbo["vae/config.json"] = json.dumps(json.loads(turbo["vae/config.json"]) | SDXL_VAE).encode()
    with run_hub(HUB_PORT) as running:
        running.add(TURBO, hub.PINS[TURBO], turbo)
        running.add(FP16_VAE, hub.PINS[FP16_VAE], VAE_FILES)
        running.add(TINY_VAE, hub.PINS[TINY_VAE], VAE_FILES)
        yield running


class Fetch:
    """`checkpoint.fetch` with the hub client pointed at the hub on loopback."""

    def __init__(self, model_hub: Hub, cache: Path) -> None:
        self.hub = model_hub
        self.cache = cache

    def __call__(self, device: str = "cuda:0", **knobs: Any) -> Checkpoint:
        return checkpoint.fetch(Settings(**{"model": TURBO, "hub_cache": self.cache, **knobs}), device)


@pytest.fixture
def fetch(model_hub: Hub, tmp_path: Path) -> Fetch:
    return Fetch(model_hub, tmp_path / "cache")


def test_cuda_downloads_the_float16_files_and_the_fixed_vae(fetch: Fetch) -> None:
    found = fetch()
    folder, vae, info = found.folder, found.vae_folder, found.info
    assert vae is not None
    assert sorted(files_of(folder)) == sorted(EXPECTED)
    assert sorted(files_of(vae)) == ["config.json", "diffusion_pytorch_model.safetensors"]
    # Both tokenizers share files: the client fetches such a one once.
    assert {name.rpartition("/")[2] for name in fetch.hub.fetched} == {
        name.rpartition("/")[2] for name in files_of(folder) | files_of(vae)
    }
    assert (info.model, info.revision, info.vae) == (TURBO, hub.PINS[TURBO], FP16_VAE)
    assert (info.model_setting, info.vae_setting) == (f"{TURBO}@{hub.PINS[TURBO]}", f"{FP16_VAE}@{hub.PINS[FP16_VAE]}")
    assert "overflows in float16" in info.reason


EXPECTED = [
    "model_index.json",
    "scheduler/scheduler_config.json",
    *(
        f"{tokenizer}/{name}"
        for tokenizer in ("tokenizer", "tokenizer_2")
        for name in ("merges.txt", "special_tokens_map.json", "tokenizer_config.json", "vocab.json")
    ),
    "text_encoder/config.json",
    "text_encoder/model.fp16.safetensors",
    "text_encoder_2/config.json",
    "text_encoder_2/model.fp16.safetensors",
    "unet/config.json",
    "unet/diffusion_pytorch_model.fp16.safetensors",
    "vae/config.json",
]


def test_download_shows_its_progress(fetch: Fetch, capfd: pytest.CaptureFixture[str]) -> None:
    fetch()
    assert "100%" in capfd.readouterr().err


def test_cpu_downloads_the_vae_of_the_checkpoint(fetch: Fetch) -> None:
    found = fetch("cpu")
    folder, vae = found.folder, found.vae_folder
    assert vae is None
    assert sorted(files_of(folder)) == sorted([*EXPECTED, "vae/diffusion_pytorch_model.fp16.safetensors"])


def test_tiny_vae_is_downloaded_on_request(fetch: Fetch) -> None:
    found = fetch("cpu", vae="tiny")
    vae, info = found.vae_folder, found.info
    assert vae is not None
    assert info.vae == TINY_VAE


def test_complete_cache_makes_no_request_to_the_hub(fetch: Fetch) -> None:
    first = fetch()
    asked = fetch.hub.requests
    assert fetch() == first
    assert fetch(offline=True) == first
    assert fetch.hub.requests == asked


def test_broken_download_is_completed_with_the_missing_files(fetch: Fetch) -> None:
    folder = fetch().folder
    fetch.hub.fetched.clear()
    (folder / "unet/diffusion_pytorch_model.fp16.safetensors").unlink()
    fetch()
    assert fetch.hub.fetched == []  # the cache still has its content
    (folder / "vae/config.json").unlink()
    fetch()
    assert fetch.hub.fetched == []
    (folder / "tokenizer/vocab.json").resolve().unlink()
    (folder / "tokenizer/vocab.json").unlink()
    for link in folder.parent.rglob("tokenizer*/vocab.json"):
        link.unlink()
    fetch()
    assert {name.rpartition("/")[2] for name in fetch.hub.fetched} == {"vocab.json"}


def test_offline_without_the_files_says_how_to_get_them(fetch: Fetch) -> None:
    with pytest.raises(CheckpointError, match="img2img download"):
        fetch(offline=True)
    assert fetch.hub.requests == 0


def test_unreachable_hub_is_an_error_with_advice(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be reached"):
        checkpoint.fetch(Settings(model=TURBO, hub_cache=tmp_path), "cuda:0")


def test_unknown_repository_is_an_error(fetch: Fetch) -> None:
    with pytest.raises(CheckpointError, match="example/nothing does not exist on the hub"):
        fetch(model="example/nothing")


def test_unknown_revision_is_an_error(fetch: Fetch) -> None:
    with pytest.raises(CheckpointError, match="has no revision"):
        fetch(model=f"{TURBO}@{'0' * 40}")


def test_gated_repository_is_an_error_about_its_terms(fetch: Fetch) -> None:
    fetch.hub.gated.add(TURBO)
    with pytest.raises(CheckpointError, match="accept its terms"):
        fetch()


def test_unpinned_repository_is_loaded_with_a_warning(
    fetch: Fetch, tiny_checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fetch.hub.add("example/lightning", "a" * 40, files_of(tiny_checkpoint))
    info = fetch("cpu", model="example/lightning").info
    assert info.revision == "main"
    assert "is not pinned" in caplog.text
    asked = fetch.hub.requests
    fetch("cpu", model="example/lightning")
    assert fetch.hub.requests == asked


def test_unpinned_repository_is_found_again_at_its_commit(fetch: Fetch, tiny_checkpoint: Path) -> None:
    fetch.hub.add("example/lightning", "a" * 40, files_of(tiny_checkpoint))
    first = fetch("cpu", model="example/lightning")
    assert (first.info.model_setting, first.info.vae_setting) == (f"example/lightning@{'a' * 40}", "checkpoint")
    fetch.hub.add("example/lightning", "b" * 40, files_of(tiny_checkpoint))
    again = fetch("cpu", model=first.info.model_setting, vae=first.info.vae_setting)
    assert (again.folder, again.info.model_setting) == (first.folder, first.info.model_setting)


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        ("model_index.json", "model_index.json is missing"),
        ("tokenizer_2/merges.txt", "tokenizer_2/merges.txt is missing"),
        ("unet/diffusion_pytorch_model.fp16.safetensors", "Only safetensors are loaded"),
    ],
)
def test_incomplete_checkpoint_is_refused_with_what_it_lacks(gone: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        hub.pipeline_files([name for name in EXPECTED if name != gone], with_vae=False)


def test_plain_and_sharded_weights_are_used_without_float16() -> None:
    names = [name.replace(".fp16", "") for name in EXPECTED if not name.startswith("unet/diff")]
    shards = [
        "unet/diffusion_pytorch_model-00001-of-00002.safetensors",
        "unet/diffusion_pytorch_model-00002-of-00002.safetensors",
    ]
    index = "unet/diffusion_pytorch_model.safetensors.index.json"
    stray = "unet/diffusion_pytorch_model-00001-of-00002.fp16.safetensors"
    wanted = hub.pipeline_files([*names, *shards, index, stray], with_vae=False)
    assert sorted(wanted) == sorted([*names, *shards, index])


def test_folder_without_a_shard_of_its_index_is_incomplete(tmp_path: Path) -> None:
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (tmp_path / "m.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "one.safetensors").touch()
    assert hub.list_folder(tmp_path) == ["one.safetensors"]
    (tmp_path / "two.safetensors").touch()
    assert sorted(hub.list_folder(tmp_path)) == ["m.safetensors.index.json", "one.safetensors", "two.safetensors"]


def test_malformed_json_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read"):
        hub.read_json(tmp_path / "config.json")
