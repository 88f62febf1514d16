"""The choice of a checkpoint and a device, and loading."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderTiny

from app.errors import CheckpointError
from app.model import devices, sources
from app.model.describe import describe
from app.model.hub import PINS
from app.model.load import load
from app.model.sources import EMBEDDED, FP16_VAE, TURBO
from app.settings import Settings
from scripts.make_checkpoint import vae_config, write_tiny_vae


def change_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.fixture
def copy(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint that a test may change."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "copy"))


def load_folder(folder: Path, **knobs: Any) -> Any:
    return load(Settings(model=str(folder), **knobs), "cpu")


def test_auto_model_is_turbo_on_cuda_and_embedded_on_cpu() -> None:
    turbo = sources.resolve_model("auto", "cuda:0")
    assert (turbo.name, turbo.revision) == (TURBO, PINS[TURBO])
    assert "cuda:0 is there" in turbo.reason
    embedded = sources.resolve_model("auto", "cpu")
    assert (embedded.name, embedded.folder) == ("embedded", EMBEDDED)
    assert "no CUDA device" in embedded.reason


def test_embedded_model_and_folder_are_used_on_any_device(tmp_path: Path) -> None:
    assert sources.resolve_model("embedded", "cuda:0").folder == EMBEDDED
    source = sources.resolve_model(str(tmp_path), "cpu")
    assert (source.folder, source.name) == (tmp_path, str(tmp_path))


@pytest.mark.parametrize("revision", PINS.values())
def test_known_repository_is_pinned_to_a_commit(revision: str) -> None:
    assert len(revision) == 40
    assert int(revision, 16)


def test_setting_of_a_source_selects_the_same_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models" / "turbo").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert sources.resolve_model("auto", "cpu").setting(EMBEDDED) == "embedded"
    relative = sources.resolve_model("models/turbo", "cpu")
    # A relative path is formed like a hub id once its folder is gone.
    assert relative.setting(Path("models/turbo")) == str(tmp_path / "models" / "turbo")
    assert sources.resolve_model(TURBO, "cpu").setting(tmp_path / "snapshots" / "abc") == f"{TURBO}@abc"


def test_revision_in_the_model_setting_is_used() -> None:
    source = sources.resolve_model(f"{TURBO}@{'a' * 40}", "cpu")
    assert (source.hub_id, source.revision) == (TURBO, "a" * 40)


@pytest.mark.parametrize("name", ["no-such-folder", "./no/such", "a/b/c", "../x", "sd_xl_turbo_1.0.safetensors"])
def test_unknown_model_is_refused_with_the_choices(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(CheckpointError, match="none of: auto, embedded"):
        sources.resolve_model(name, "cpu")


@pytest.mark.parametrize(
    ("device", "dtype", "own", "name"),
    [
        ("cuda:0", torch.float16, {}, FP16_VAE),
        ("cuda:0", torch.bfloat16, {}, None),
        ("cuda:0", torch.float16, {"force_upcast": False}, None),
        ("cuda:0", torch.float16, {"scaling_factor": 0.5}, None),
        ("cuda:0", torch.float16, {"block_out_channels": [1, 2]}, None),
        ("cpu", torch.float32, {}, None),
    ],
)
def test_fixed_vae_is_used_only_where_the_sdxl_vae_overflows(
    device: str, dtype: torch.dtype, own: dict[str, Any], name: str | None
) -> None:
    config = vae_config("full") | {"force_upcast": True} | own
    source = sources.resolve_vae("auto", config, device, dtype)
    assert (source and source.name) == name


def test_vae_setting_selects_checkpoint_or_folder(tmp_path: Path) -> None:
    assert sources.resolve_vae("checkpoint", {}, "cuda:0", torch.float16) is None
    named = sources.resolve_vae(str(tmp_path), {}, "cpu", torch.float32)
    assert named is not None
    assert named.folder == tmp_path
    with pytest.raises(CheckpointError, match="IMG2IMG_VAE"):
        sources.resolve_vae("nothing", {}, "cpu", torch.float32)


def test_auto_dtype_follows_the_device() -> None:
    assert devices.resolve_dtype("auto", "cuda:1") == torch.float16
    assert devices.resolve_dtype("auto", "cpu") is None
    assert devices.resolve_dtype("bfloat16", "cpu") == torch.bfloat16


def test_loaded_checkpoint_has_its_model_info(tiny_checkpoint: Path) -> None:
    diffusion = load_folder(tiny_checkpoint)
    info = diffusion.info
    assert (info.model, info.vae, info.device, info.dtype) == (str(tiny_checkpoint), "checkpoint", "cpu", "float32")
    assert "IMG2IMG_MODEL" in info.reason
    assert info.scheduler == type(diffusion.pipe.scheduler).__name__
    assert diffusion.pipe.unet.dtype == torch.float32


def test_load_of_the_embedded_checkpoint_logs_the_reason(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level("INFO"):
        assert load(Settings(), "cpu").info.model == "embedded"
    assert "loading embedded onto cpu in float32, VAE checkpoint: model is auto, and there is no CUDA" in caplog.text
    assert capfd.readouterr().err == ""


def test_vae_that_overflows_in_float16_stays_in_float32(copy: Path) -> None:
    change_json(copy / "vae" / "config.json", force_upcast=True)
    diffusion = load_folder(copy, dtype="float16")
    assert (diffusion.pipe.unet.dtype, diffusion.pipe.vae.dtype) == (torch.float16, torch.float32)
    change_json(copy / "vae" / "config.json", force_upcast=False)
    assert load_folder(copy, dtype="float16").pipe.vae.dtype == torch.float16


def test_vae_folder_replaces_the_vae_of_the_checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> None:
    write_tiny_vae(tmp_path / "vae", seed=0)
    diffusion = load_folder(tiny_checkpoint, vae=str(tmp_path / "vae"))
    assert isinstance(diffusion.pipe.vae, AutoencoderTiny)
    assert diffusion.info.vae == str(tmp_path / "vae")


def test_vae_of_an_unknown_class_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    write_tiny_vae(tmp_path / "vae", seed=0)
    change_json(tmp_path / "vae" / "config.json", _class_name="VQModel")
    with pytest.raises(CheckpointError, match="AutoencoderKL or AutoencoderTiny"):
        load_folder(tiny_checkpoint, vae=str(tmp_path / "vae"))


def test_weights_without_a_float16_variant_are_loaded(copy: Path) -> None:
    for path in copy.rglob("*.fp16.safetensors"):
        path.rename(path.with_name(path.name.replace(".fp16", "")))
    assert load_folder(copy).pipe.unet.dtype == torch.float32


def test_refiner_is_refused(copy: Path) -> None:
    change_json(copy / "model_index.json", requires_aesthetics_score=True)
    with pytest.raises(CheckpointError, match="refiner"):
        load_folder(copy)


def test_model_with_guidance_embedding_is_refused(copy: Path) -> None:
    change_json(copy / "unet" / "config.json", time_cond_proj_dim=32)
    with pytest.raises(CheckpointError, match="LCM"):
        load_folder(copy)


def test_folder_without_a_model_index_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no model_index\.json in that folder"):
        load_folder(tmp_path)


def test_checkpoint_with_an_unknown_class_is_refused(copy: Path) -> None:
    change_json(copy / "model_index.json", unet=["diffusers", "NoSuchModel"])
    with pytest.raises(CheckpointError, match="cannot be loaded as an SDXL checkpoint"):
        load_folder(copy)


def test_corrupt_weights_are_refused(copy: Path) -> None:
    weights = copy / "unet" / "diffusion_pytorch_model.fp16.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="cannot be loaded as an SDXL checkpoint"):
        load_folder(copy)


def test_description_has_device_model_and_files(tmp_path: Path) -> None:
    facts = describe(Settings(devices="cpu"))
    assert (facts.device, facts.dtype, facts.files.folder) == ("cpu", "float32", str(EMBEDDED))
    assert facts.files.vae == "checkpoint"
    assert facts.model.embedded
    assert "no CUDA device" in facts.model.reason
    missing = describe(Settings(devices="cpu", model=TURBO, hub_cache=tmp_path))
    assert (missing.files.folder, missing.files.vae, missing.files.downloadable) == ("", "", True)
    assert "img2img download" in missing.files.reason
    assert not missing.model.embedded
