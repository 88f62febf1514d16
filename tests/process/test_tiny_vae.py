"""The real TAESDXL in place of SDXL's VAE.

`IMG2IMG_TEST_TAESDXL` names its folder. Without it these tests take `../shared/data/taesdxl`, or are skipped.
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from app.client import Img2Img
from app.model.diffusion import SdxlDiffusion
from app.model.load import load
from app.pixels import IMAGE_SIZE, Pixels
from app.settings import Settings
from scripts.benchmarks.likeness import psnr
from scripts.make_checkpoint import vae_config
from tests.support.images import opened
from tests.support.paths import ROOT
from tests.support.servers import run_server

TAESDXL = Path(os.environ.get("IMG2IMG_TEST_TAESDXL") or ROOT.parent / "shared" / "data" / "taesdxl")
DEMO = ROOT / "scripts" / "demo.png"

pytestmark = pytest.mark.skipif(
    not TAESDXL.is_dir(), reason="TAESDXL is not here: IMG2IMG_TEST_TAESDXL names its folder"
)


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small UNet beside the configuration of SDXL's VAE, whose weights are missing: they are not to be read."""
    folder = tmp_path_factory.mktemp("checkpoint")
    for path in tiny_checkpoint.rglob("*"):
        if path.is_file() and path.parent.name != "vae":
            copy = folder / path.relative_to(tiny_checkpoint)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.symlink_to(path)
    (folder / "vae").mkdir()
    (folder / "vae" / "config.json").write_text(json.dumps(vae_config("full")))
    return folder


@pytest.fixture(scope="module")
def diffusion(checkpoint: Path) -> SdxlDiffusion:
    return load(Settings(model=str(checkpoint), vae=str(TAESDXL)), "cpu")


def test_service_makes_an_image_with_taesdxl(checkpoint: Path) -> None:
    with run_server("app.model.load:load", model=str(checkpoint), vae=str(TAESDXL)) as url, Img2Img(url) as client:
        edited = client.edit(DEMO, "wizard", num_inference_steps=2, strength=0.5)
        assert client.health()["model"]["vae"] == str(TAESDXL)
    assert opened(edited.data).size == (IMAGE_SIZE, IMAGE_SIZE)


@pytest.mark.parametrize("name", ["demo", "astronaut", "chelsea", "coffee", "rocket"])
@torch.inference_mode()
def test_photograph_comes_back_from_taesdxl_with_25_db(diffusion: SdxlDiffusion, name: str) -> None:
    image = photograph(name)
    latents, _ = diffusion.encoders.image(Pixels(*image.size, image.tobytes()))
    assert latents.shape == (1, 4, IMAGE_SIZE // 8, IMAGE_SIZE // 8)
    rgb, finite = diffusion.vae.decode(latents)
    assert finite.tolist() == [True, True]
    assert psnr(rgb.numpy().astype(int), np.asarray(image).astype(int)) >= 25


def photograph(name: str) -> Image.Image:
    """The demo's image, or one of scikit-image's, at the size of the model."""
    if name == "demo":
        return Image.open(DEMO).convert("RGB")
    data = pytest.importorskip("skimage.data")
    return Image.fromarray(getattr(data, name)()).convert("RGB").resize((IMAGE_SIZE, IMAGE_SIZE))
