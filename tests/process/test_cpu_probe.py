"""The dtype of a large model on the CPU. The layers are real; how long they take is not tested."""

import json
import logging
from pathlib import Path

import pytest
import torch
from torch import nn

from app.errors import CheckpointError
from app.model import cpu_probe, packed
from app.model.describe import describe
from app.model.load import load
from app.settings import Settings

HALF = pytest.mark.skipif(not packed.has_kernels(torch.bfloat16), reason="oneDNN has no bfloat16 here")


@pytest.fixture
def all_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "_LARGE_MODEL", 1)


def prefer(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> list[object]:
    """Make the layers take 1 ms in one dtype and 2 ms in others; returns the list of the measured configurations."""
    measured: list[object] = []

    def measure(config: object, dtypes: list[torch.dtype]) -> dict[torch.dtype, float]:
        measured.append(config)
        return {each: 0.001 if each == dtype else 0.002 for each in dtypes}

    monkeypatch.setattr(cpu_probe, "measure", measure)
    return measured


@pytest.mark.parametrize(
    ("half", "full", "dtype"),
    [
        (0.020, 0.040, torch.bfloat16),
        (0.032, 0.040, torch.bfloat16),
        (0.033, 0.040, torch.float32),
        (0.080, 0.040, torch.float32),
    ],
)
def test_bfloat16_is_chosen_where_it_is_much_faster(half: float, full: float, dtype: torch.dtype) -> None:
    choice = cpu_probe.fastest({torch.bfloat16: half, torch.float32: full})
    assert choice.dtype == dtype
    assert f"{half * 1000:.1f} ms in bfloat16 and {full * 1000:.1f} ms in float32" in choice.reason


@HALF
def test_measurement_has_seconds_of_each_dtype() -> None:
    seconds = cpu_probe.measure({"block_out_channels": [16, 32, 64]}, cpu_probe.DTYPES)
    assert list(seconds) == [torch.float32, torch.bfloat16]
    assert all(0 < each < 10 for each in seconds.values())


def test_small_model_is_float32_without_a_measurement(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = prefer(monkeypatch, torch.bfloat16)
    assert load(Settings(model=str(tiny_checkpoint)), "cpu").info.dtype == "float32"
    assert measured == []


@HALF
@pytest.mark.usefixtures("all_are_large")
@pytest.mark.parametrize("faster", [torch.bfloat16, torch.float32])
def test_large_model_is_loaded_in_the_faster_dtype(
    tiny_checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    faster: torch.dtype,
) -> None:
    caplog.set_level(logging.INFO)
    measured = prefer(monkeypatch, faster)
    diffusion = load(Settings(model=str(tiny_checkpoint)), "cpu")
    name = str(faster).removeprefix("torch.")
    assert diffusion.info.dtype == name
    assert diffusion.pipe.unet.dtype == diffusion.pipe.vae.dtype == faster
    assert f"IMG2IMG_DTYPE=auto is {name}: a linear layer" in caplog.text
    assert measured == [diffusion.pipe.unet.config]


@pytest.mark.usefixtures("all_are_large")
def test_set_dtype_of_a_large_model_is_not_measured(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = prefer(monkeypatch, torch.bfloat16)
    assert load(Settings(model=str(tiny_checkpoint), dtype="float32"), "cpu").info.dtype == "float32"
    assert measured == []


def test_cpu_without_bfloat16_kernels_takes_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "_LARGE_MODEL", 1)
    monkeypatch.setattr(cpu_probe, "has_kernels", lambda dtype: dtype == torch.float32)
    assert cpu_probe.choose_dtype(nn.Linear(8, 8)) == (torch.float32, "oneDNN has no bfloat16 on this CPU")


@HALF
@pytest.mark.usefixtures("all_are_large")
def test_description_has_the_measured_dtype_and_its_reason(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefer(monkeypatch, torch.bfloat16)
    model = describe(Settings(model=str(tiny_checkpoint), devices="cpu"))
    assert model.dtype == "bfloat16"
    assert "1.0 ms in bfloat16 and 2.0 ms in float32" in model.dtype_reason


@pytest.mark.parametrize(
    ("settings", "dtype", "reason"),
    [
        ({"dtype": "float16"}, "float16", "IMG2IMG_DTYPE is set"),
        ({"model": "example/away", "offline": True}, "float32", "the first start measures"),
        ({"model": "embedded"}, "float32", "a small model runs in float32 on the CPU"),
    ],
)
def test_description_has_the_reason_of_a_dtype_that_is_not_measured(
    settings: dict[str, str | bool], dtype: str, reason: str, tmp_path: Path
) -> None:
    model = describe(Settings(devices="cpu", hub_cache=tmp_path, **settings))  # type: ignore[arg-type]
    assert model.dtype == dtype
    assert reason in model.dtype_reason


def test_description_refuses_a_unet_that_cannot_be_built(damaged_checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match=r"unet/config\.json cannot be used"):
        describe(Settings(model=str(damaged_checkpoint), devices="cpu"))


@pytest.fixture
def damaged_checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint whose UNet's configuration contradicts itself."""
    for path in tiny_checkpoint.rglob("*"):
        if path.is_file():
            copy = tmp_path / path.relative_to(tiny_checkpoint)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.symlink_to(path)
    config = tmp_path / "unet" / "config.json"
    content = json.loads(config.read_text())
    config.unlink()
    config.write_text(json.dumps({**content, "up_block_types": []}))
    return tmp_path
