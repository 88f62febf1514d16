"""Random checkpoints: the hub's layout, loadable, sensitive to their inputs, and the same for the same seed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny, EulerAncestralDiscreteScheduler, StableDiffusionXLImg2ImgPipeline
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPTokenizer

from app.model.sources import EMBEDDED
from scripts.make_checkpoint import (
    CONFIGS,
    Config,
    main,
    on_meta,
    text_encoder_2_config,
    text_encoder_config,
    tiny_vae_config,
    unet_config,
    vae_config,
    write_checkpoint,
    write_tiny_vae,
)
from tests.support.checkpoints import DEMO, ON_THE_HUB, files

WEIGHTS = sorted(name for name in ON_THE_HUB if name.endswith(".safetensors"))


def parameters(config: Config) -> int:
    return sum(parameter.numel() for parameter in on_meta(config).parameters())


def load(folder: Path, dtype: torch.dtype) -> Any:
    return StableDiffusionXLImg2ImgPipeline.from_pretrained(folder, variant="fp16", use_safetensors=True, dtype=dtype)


@pytest.fixture(scope="module")
def pipe(tiny_checkpoint: Path) -> Any:
    pipe = load(tiny_checkpoint, torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module", params=["tokenizer", "tokenizer_2"])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return CLIPTokenizer.from_pretrained(EMBEDDED / request.param)


def make_image(pipe: Any, prompt: str = "a cat", seed: int = 0, image: Image.Image | None = None) -> Any:
    """Pixels in 0..255, float32[height, width, 3]: those of `image`, by default the demo image at 256 pixels."""
    generator = torch.Generator().manual_seed(seed)
    knobs = {"num_inference_steps": 4, "strength": 0.9, "guidance_scale": 0.0, "output_type": "np"}
    return (
        pipe(prompt, image=image or Image.open(DEMO).resize((256, 256)), generator=generator, **knobs).images[0] * 255
    )


class TestTheFiles:
    def test_file_names_are_those_of_the_hub(self, tiny_checkpoint: Path) -> None:
        assert files(tiny_checkpoint) == ON_THE_HUB

    def test_same_seed_gives_the_same_bytes_and_another_does_not(self, tiny_checkpoint: Path, tmp_path: Path) -> None:
        main(["--out", str(tmp_path)])
        for name in ON_THE_HUB:
            assert (tmp_path / name).read_bytes() == (tiny_checkpoint / name).read_bytes(), name
        write_checkpoint(tmp_path, "tiny", seed=1)
        for name in WEIGHTS:
            assert (tmp_path / name).read_bytes() != (tiny_checkpoint / name).read_bytes(), name

    @pytest.mark.parametrize("name", WEIGHTS)
    def test_all_weights_are_finite_and_in_float16(self, tiny_checkpoint: Path, name: str) -> None:
        for weight in load_file(tiny_checkpoint / name).values():
            assert weight.dtype == torch.float16
            assert weight.isfinite().all()

    def test_files_can_be_read_by_other_users(self, tiny_checkpoint: Path) -> None:
        assert all((tiny_checkpoint / name).stat().st_mode & 0o004 for name in WEIGHTS)


class TestThePictures:
    def test_same_inputs_give_the_same_image_that_is_not_flat(self, pipe: Any) -> None:
        first, second = (make_image(pipe, image=Image.open(DEMO)) for _ in range(2))

        assert first.shape == (512, 512, 3)
        assert np.isfinite(first).all()
        assert (first == second).all()
        assert first.std() > 25

    def test_prompt_seed_and_image_each_change_the_result(self, pipe: Any) -> None:
        first = make_image(pipe)

        assert np.abs(make_image(pipe, prompt="a dog") - first).max() > 20
        assert np.abs(make_image(pipe, seed=1) - first).max() > 100
        assert np.abs(make_image(pipe, image=Image.new("RGB", (256, 256), "crimson")) - first).max() > 10

    def test_unet_stays_finite_in_float16(self, tiny_checkpoint: Path) -> None:
        half = load(tiny_checkpoint, torch.float16)

        with torch.inference_mode():
            prompt, _, pooled, _ = half.encode_prompt("a cat", do_classifier_free_guidance=False)
            noise = half.unet(
                torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0)).half(),
                torch.tensor([999]),
                encoder_hidden_states=prompt,
                added_cond_kwargs={"text_embeds": pooled, "time_ids": torch.full((1, 6), 512.0).half()},
            ).sample

        assert noise.dtype == torch.float16
        assert noise.isfinite().all()
        assert 0.1 < noise.std() < 10

    def test_timesteps_are_those_of_sdxl_turbo(self, pipe: Any) -> None:
        assert isinstance(pipe.scheduler, EulerAncestralDiscreteScheduler)
        pipe.scheduler.set_timesteps(4)

        assert pipe.scheduler.timesteps.tolist() == [999, 749, 499, 249]
        assert pipe.scheduler.sigmas[0].item() == pytest.approx(14.615, abs=1e-3)

    def test_eight_pixels_are_one_latent_and_an_empty_prompt_is_zeros(self, pipe: Any) -> None:
        assert pipe.vae_scale_factor == 8
        assert pipe.config.force_zeros_for_empty_prompt


class TestTheFullSize:
    @pytest.mark.parametrize(
        ("config", "count"),
        [
            (unet_config("full"), 2_567_463_684),
            (text_encoder_config("full"), 123_060_480),
            (text_encoder_2_config("full"), 694_659_840),
            (vae_config("full"), 83_653_863),
            (tiny_vae_config("full"), 2_445_063),
        ],
        ids=["unet", "text_encoder", "text_encoder_2", "vae", "tiny_vae"],
    )
    def test_full_size_has_as_many_parameters_as_sdxl_turbo(self, config: Config, count: int) -> None:
        assert parameters(config) == count

    def test_model_on_the_meta_device_takes_no_memory(self) -> None:
        model = on_meta(unet_config("full"))

        assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
        assert not model.training

    @pytest.mark.parametrize("part", CONFIGS)
    def test_tiny_is_the_same_architecture(self, part: str) -> None:
        tiny, full = CONFIGS[part]("tiny"), CONFIGS[part]("full")

        assert tiny.keys() == full.keys()
        assert {type(module) for module in on_meta(tiny).modules()} == {
            type(module) for module in on_meta(full).modules()
        }


class TestTheTokenizers:
    @pytest.mark.parametrize(
        ("prompt", "ids"),
        [
            ("", []),
            ("a photo of a cat", [320, 1125, 539, 320, 2368]),
            ("  A  PHOTO\nof a cat ", [320, 1125, 539, 320, 2368]),
            ("Собака 犬 🐶", [23669, 20978, 109, 16912, 27152, 27080, 163, 232, 361, 10631]),
            ("犬の写真 Ça été", [163, 232, 105, 21575, 44653, 33440, 509, 22711, 3459, 39694]),
        ],
        ids=["empty", "plain", "untidy", "russian", "japanese"],
    )
    def test_prompts_become_the_tokens_of_clip(self, tokenizer: Any, prompt: str, ids: list[int]) -> None:
        assert tokenizer(prompt).input_ids == [49406, *ids, 49407]

    def test_long_prompt_is_cut_to_77_tokens_with_its_end_token(self, tokenizer: Any) -> None:
        ids = tokenizer("word " * 200, padding="max_length", truncation=True).input_ids

        assert ids == [49406, *[2653] * 75, 49407]

    def test_vocabulary_is_that_of_clip(self, tokenizer: Any) -> None:
        assert len(tokenizer) == 49408
        assert tokenizer.model_max_length == 77

    @pytest.mark.parametrize(("name", "pad"), [("tokenizer", 49407), ("tokenizer_2", 0)])
    def test_each_tokenizer_pads_as_its_encoder_was_trained(self, name: str, pad: int) -> None:
        tokenizer = CLIPTokenizer.from_pretrained(EMBEDDED / name)

        ids = tokenizer("a cat", padding="max_length").input_ids

        assert ids == [49406, 320, 2368, 49407, *[pad] * 73]

    def test_number_of_merges_is_that_of_clip(self) -> None:
        header, *merges = (EMBEDDED / "tokenizer" / "merges.txt").read_text("utf-8").splitlines()

        assert header == "#version: 0.2"
        assert len(merges) == 48894


class TestTheTinyVae:
    def test_tiny_vae_loads_and_keeps_the_image_size(self, tmp_path: Path) -> None:
        write_tiny_vae(tmp_path, seed=0)
        vae = AutoencoderTiny.from_pretrained(tmp_path, use_safetensors=True)

        with torch.inference_mode():
            latents = vae.encode(torch.rand(1, 3, 64, 64)).latents
            pixels = vae.decode(latents).sample

        assert files(tmp_path) == {"config.json", "diffusion_pytorch_model.safetensors"}
        assert latents.shape == (1, 4, 8, 8)
        assert pixels.shape == (1, 3, 64, 64)
        assert pixels.isfinite().all()
        assert vae.config.scaling_factor == 1.0

    def test_same_seed_gives_the_same_bytes(self, tmp_path: Path) -> None:
        for folder, seed in (("a", 3), ("b", 3), ("c", 4)):
            write_tiny_vae(tmp_path / folder, seed)
        first, second, other = ((tmp_path / x / "diffusion_pytorch_model.safetensors").read_bytes() for x in "abc")

        assert first == second
        assert first != other


class TestTheCommand:
    def test_command_reports_the_folder_and_its_size(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        main(["--out", str(tmp_path / "made"), "--seed", "5"])

        size = sum((tmp_path / "made" / name).stat().st_size for name in ON_THE_HUB)
        assert capsys.readouterr().out == f"wrote {tmp_path / 'made'}: {size:,} bytes\n"

    def test_unknown_size_is_refused(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit):
            main(["--size", "medium"])

        assert "choose from" in capsys.readouterr().err


def test_demo_image_is_512_pixels_of_rgb_and_small() -> None:
    with Image.open(DEMO) as image:
        assert (image.format, image.mode, image.size) == ("PNG", "RGB", (512, 512))
    assert DEMO.stat().st_size < 250_000
    assert "MIT License" in (DEMO.parent / "demo.LICENSE").read_text()
