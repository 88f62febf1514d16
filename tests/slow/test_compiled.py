"""A compiled model against the plain one. Inductor generates C++ on the CPU and Triton on CUDA."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from app.errors import CheckpointError
from app.model import toolchain
from app.model.compiled import regions
from app.model.load import load
from app.model.previews import chart
from app.pixels import IMAGE_SIZE
from app.settings import Settings
from scripts.make_checkpoint import write_tiny_vae
from tests.support.models import job, together


def test_compile_without_a_compiler_is_refused(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(CheckpointError, match="IMG2IMG_COMPILE=default needs a C\\+\\+ compiler"):
        load(Settings(model=str(tiny_checkpoint), compile="default"), "cpu")


def test_fused_projections_replace_the_separate_ones(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toolchain, "missing_tools", lambda *, on_cuda: "")
    write_tiny_vae(tmp_path, seed=0)
    diffusion = load(Settings(model=str(tiny_checkpoint), vae=str(tmp_path), compile="max"), "cpu")
    names = {name.rpartition(".")[2] for name, _ in diffusion.pipe.unet.named_modules()}
    assert {"to_qkv", "to_kv"} <= names
    assert not {"to_k", "to_v"} & names


@pytest.mark.skipif(bool(toolchain.missing_tools(on_cuda=False)), reason="there is no C++ compiler")
@pytest.mark.filterwarnings("ignore")
def test_compiled_model_gives_the_images_of_the_plain_model(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # So that the variables that the product sets are restored.
    monkeypatch.setenv("TRITON_CACHE_DIR", "")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "another"))
    cache = tmp_path / "not" / "yet"
    plain = load(Settings(model=str(tiny_checkpoint)), "cpu")
    other = load(Settings(model=str(tiny_checkpoint), compile="default", compile_cache=cache, max_batch=1), "cpu")
    # At the size that is prepared: another one would be compiled again.
    image = chart(IMAGE_SIZE, IMAGE_SIZE)
    jobs = [job(steps=2, strength=1.0), job("a cat", 1, 1.0, seed=1, guidance=2.0), job("a dog", 4, 0.5, seed=2)]
    jobs = [replace(each, pixels=image) for each in jobs]
    with caplog.at_level("INFO"):
        other.prepare()
    parts = ("the VAE's encoder", "the UNet for 1 rows", "the VAE's decoder")
    lines = [message for message in caplog.messages if message.startswith("compiled ")]
    assert len(lines) == len(parts)
    for number, (line, part) in enumerate(zip(lines, parts, strict=True), 1):
        assert re.fullmatch(rf"compiled {part} in [\d.]+ s, {number} of 3", line)
    assert other.compiled
    assert other.max_jobs == 1
    for ours, theirs in zip(together(other, jobs), together(plain, jobs), strict=True):
        assert np.abs(ours - theirs).max() <= 1
    assert list(cache.rglob("*.cpp"))
    assert not (tmp_path / "another").exists()


def test_blocks_are_compiled_and_a_tiny_vae_as_a_whole(tiny_checkpoint: Path, tmp_path: Path) -> None:
    write_tiny_vae(tmp_path, seed=0)
    pipe = load(Settings(model=str(tiny_checkpoint), vae=str(tmp_path)), "cpu").pipe
    names = {type(region).__name__ for region in regions(pipe.unet)}
    assert names == {"BasicTransformerBlock", "ResnetBlock2D"}
    assert regions(pipe.vae.decoder) == [pipe.vae.decoder]
