"""The training of the embedded checkpoint, compared with diffusers where possible."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import EulerAncestralDiscreteScheduler, StableDiffusionXLImg2ImgPipeline
from torch import nn

from app.model.sources import EMBEDDED
from scripts.embedded import alignment, autoencoder, export, translator
from scripts.embedded.probes import Probes
from scripts.embedded.prompts import NOTHING, Prompts
from scripts.embedded.scenes import place
from scripts.embedded.state import Stage
from scripts.embedded.text import FIRST_SLOT, POSITIONS, SLOTS, WIDTH, Blur, TextEncoders, TextOutputs
from scripts.embedded.vocabulary import COMMON, CONCEPTS
from scripts.embedded.words import WordNet, similarities


@pytest.fixture(scope="module")
def scheduler() -> EulerAncestralDiscreteScheduler:
    return EulerAncestralDiscreteScheduler.from_config(translator.scheduler_config())


class TestTheDenoising:
    @pytest.mark.parametrize("steps", range(1, 9))
    def test_timesteps_are_those_of_the_scheduler(self, scheduler: EulerAncestralDiscreteScheduler, steps: int) -> None:
        scheduler.set_timesteps(steps)
        assert translator.grid(steps) == scheduler.timesteps.tolist()

    @pytest.mark.parametrize("at", range(3))
    def test_step_is_that_of_the_scheduler(self, scheduler: EulerAncestralDiscreteScheduler, at: int) -> None:
        torch.manual_seed(0)
        unet = translator.build()
        nn.init.normal_(unet.conv_out.weight, std=0.02)
        text_outputs = TextOutputs(torch.randn(2, POSITIONS, 2 * WIDTH), torch.randn(2, WIDTH))
        levels = translator.Levels()
        scheduler.set_timesteps(4)
        now, following = (scheduler.timesteps[index].long().expand(2) for index in (at, at + 1))
        noisy = torch.randn(2, 8, 32, 32) * float(levels(now)[0])
        with torch.inference_mode():
            clean = translator.denoise(unet, noisy, levels(now), now, text_outputs)
            added = {"text_embeds": text_outputs.pooled, "time_ids": translator.time_ids(2)}
            scaled = scheduler.scale_model_input(noisy, scheduler.timesteps[at])
            output = unet(scaled, now, encoder_hidden_states=text_outputs.context, added_cond_kwargs=added).sample
        stepped = scheduler.step(output, scheduler.timesteps[at], noisy, generator=torch.Generator().manual_seed(1))
        noise = torch.randn(noisy.shape, generator=torch.Generator().manual_seed(1))

        # bfloat16 has eight bits.
        assert torch.allclose(clean, stepped.pred_original_sample, atol=0.05 * float(output.abs().max()))
        exact = stepped.pred_original_sample
        ours = translator.ancestral(noisy, exact, levels(now), levels(following), noise)
        assert torch.allclose(ours, stepped.prev_sample, atol=1e-4)

    @pytest.mark.parametrize("depth", [1, 2, 3])
    def test_path_is_successive_timesteps_of_a_short_schedule(self, depth: int) -> None:
        pairs = {pair for steps in range(2, 9) for pair in itertools.pairwise(translator.grid(steps))}
        rng = np.random.default_rng(0)
        paths = [translator.path(rng, depth) for _ in range(200)]
        for path in paths:
            assert len(path) == depth + 1
            assert set(itertools.pairwise(path)) <= pairs
        assert 0.5 < np.mean([path[0] >= translator.TRANSLATE for path in paths]) < 0.8


class TestTheAlignment:
    def test_watched_attention_computes_the_same(self) -> None:
        torch.manual_seed(0)
        unet = translator.build()
        for name, module in unet.named_modules():
            if name.endswith(".proj_out") or name == "conv_out":
                nn.init.normal_(module.weight, std=0.02)
        noisy, text_outputs = (
            torch.randn(2, 8, 32, 32),
            TextOutputs(torch.randn(2, POSITIONS, 2 * WIDTH), torch.randn(2, WIDTH)),
        )
        arguments = (noisy, torch.full((2, 1, 1, 1), 4.0), torch.full((2,), 749), text_outputs)
        with torch.inference_mode():
            before = translator.denoise(unet, *arguments)
            watched = alignment.Alignment(unet)
            during = translator.denoise(unet, *arguments)
            watched.stop()
            assert torch.equal(translator.denoise(unet, *arguments), before)
        assert torch.allclose(during, before, atol=0.05)

    @pytest.mark.parametrize("side", [8, 16])
    def test_each_patch_is_attended_once_from_its_place(self, side: int) -> None:
        heads = 4
        tokens = alignment.wanted(side, heads).view(heads, side, side)
        for slot in range(SLOTS):
            y, x = (at * side // 8 for at in (slot // 6 + 1, slot % 6 + 1))
            from_there = tokens[:, y : y + side // 8, x : x + side // 8]
            # At 8 x 8 each head, at 16 x 16 one head for each of the four positions.
            assert (from_there == FIRST_SLOT + slot).sum() == heads
            assert (tokens == FIRST_SLOT + slot).sum() == heads


class TestTheProbes:
    def test_probes_teach_their_levels_and_not_the_output(self) -> None:
        torch.manual_seed(0)
        unet = translator.build()
        noisy, text_outputs = (
            torch.randn(2, 8, 32, 32),
            TextOutputs(torch.randn(2, POSITIONS, 2 * WIDTH), torch.randn(2, WIDTH)),
        )
        arguments = (noisy, torch.full((2, 1, 1, 1), 4.0), torch.full((2,), 749), text_outputs)
        with torch.inference_mode():
            before = translator.denoise(unet, *arguments)
        probes = Probes(unet)
        during = translator.denoise(unet, *arguments)
        probes.loss(torch.randn(2, 8, 32, 32)).backward()  # type: ignore[no-untyped-call]
        taught = {
            name.split(".", 2)[0] + name.split(".", 2)[1]
            for name, one in unet.named_parameters()
            if one.grad is not None
        }

        assert torch.equal(during, before)
        assert {"down_blocks0", "mid_blockresnets", "up_blocks0", "up_blocks1"} <= taught
        assert "up_blocks2" not in taught

    def test_state_that_holds_the_target_is_read_without_error(self) -> None:
        probes, targets = Probes(translator.build()), torch.randn(2, 8, 32, 32)
        rows = torch.arange(8)
        where = torch.stack(
            [rows[:, None].expand(8, 8) == row for row in rows] + [rows.expand(8, 8) == row for row in rows]
        )
        states = {
            "where": 100.0 * where.expand(2, 16, 8, 8),
            "patch": _cells(targets, 4),
            "quarter": _cells(targets, 2),
        }
        for name, probe in (("where", probes.where), ("patch", probes.patch), ("quarter", probes.quarter)):
            assert probe.bias is not None
            nn.init.dirac_(probe.weight)
            nn.init.zeros_(probe.bias)
            padding = probe.in_channels - states[name].shape[1]
            probes.keep(name, nn.functional.pad(states[name], (0, 0, 0, 0, 0, padding)))
        assert probes.loss(targets).item() < 1e-6


def _cells(latents: torch.Tensor, side: int) -> torch.Tensor:
    """The `side` x `side` latents under each cell, as its channels."""
    cells = latents.unfold(2, side, side).unfold(3, side, side)
    return cells.permute(0, 1, 4, 5, 2, 3).flatten(1, 3)


class TestTheBlur:
    def test_blur_changes_all_but_exact_prompts_until_stopped(self) -> None:
        torch.manual_seed(0)
        encoders = TextEncoders().eval()
        ids = (torch.arange(POSITIONS).expand(3, -1),) * 2
        with torch.inference_mode():
            before = encoders(ids).context
            blur = Blur(encoders)
            blur(ids, 2, torch.Generator().manual_seed(0))
            during = encoders(ids).context
            blur.stop()
            assert torch.equal(encoders(ids).context, before)
        assert torch.equal(during[:2], before[:2])
        assert not torch.allclose(during[2], before[2], atol=0.01)


class TestTheWords:
    def test_each_word_means_one_thing(self) -> None:
        words = [word for concept in CONCEPTS for word in (concept.name, *concept.synonyms, *concept.kept_back)]
        assert len(words) == len(set(words))
        assert len(COMMON) == 100
        assert set(COMMON) <= {concept.name for concept in CONCEPTS}

    def test_no_prompt_holds_a_held_out_word(self) -> None:
        kept_back = {word for concept in CONCEPTS for word in concept.kept_back}
        rng, prompts = np.random.default_rng(0), Prompts()
        for _ in range(20_000):
            words = prompts.draw(rng, int(rng.integers(NOTHING))).lower().replace(",", "").split()
            assert not kept_back & {word.removesuffix("s") for word in words}

    def test_prompt_holds_a_word_for_its_concept(self) -> None:
        rng, prompts = np.random.default_rng(0), Prompts()
        for index, concept in enumerate(CONCEPTS):
            prompt = prompts.draw(rng, index).lower()
            assert any(word in prompt for word in (concept.name, *concept.synonyms)), prompt

    def test_untrained_word_lies_beside_its_meaning(self, tmp_path: Path) -> None:
        # Three nouns in WordNet's format: a magician and a sorcerer are diviners, a stone is not.
        (tmp_path / "data.noun").write_text(
            "00000001 18 n 01 diviner 0 000 | one who tells the future\n"
            "00000002 18 n 01 magician 0 001 @ 00000001 n 0000 | one who works magic\n"
            "00000003 18 n 01 sorcerer 0 001 @ 00000001 n 0000 | one who works magic\n"
            "00000004 18 n 01 stone 0 000 | hard matter\n"
        )
        (tmp_path / "index.noun").write_text(
            "diviner n 1 0 1 0 00000001\nmagician n 1 1 @ 1 0 00000002\n"
            "sorcerer n 1 1 @ 1 0 00000003\nstone n 1 0 1 0 00000004\n"
        )
        (wizard,) = [index for index, concept in enumerate(CONCEPTS) if concept.name == "wizard"]
        near = similarities(WordNet(tmp_path), ["magician", "sorcerer", "stone", "nonsense"])[:, wizard]
        assert near[0] == 1
        assert near[1] > 0.5
        assert near[2] == near[3] == 0


class TestTheParts:
    def test_untrained_autoencoder_keeps_colours(self) -> None:
        model = autoencoder.build()
        colours = torch.tensor([-0.8, 0.0, 0.6]).view(1, 3, 1, 1).expand(1, 3, 96, 96)
        with torch.inference_mode():
            again = model.decode(model.encode(colours).latents).sample
        assert torch.allclose(again[:, :, 32:64, 32:64], colours[:, :, 32:64, 32:64], atol=0.1)

    def test_icon_is_placed_at_the_given_position(self) -> None:
        icon = torch.full((1, 4, 256, 256), 255.0)
        behind = torch.zeros(1, 3, 128, 128)
        made = place(icon, behind, torch.tensor([64.0]), torch.tensor([[32.0, 96.0]]))[0, 0]
        assert made[66:126, 2:62].min() > 250
        assert made[:62].max() < 5
        assert made[:, 66:].max() < 5

    def test_exported_files_are_loaded_by_diffusers(self, tmp_path: Path) -> None:
        torch.manual_seed(0)
        vae, encoders, unet = autoencoder.build(), TextEncoders().eval(), translator.build()
        vae.register_to_config(scaling_factor=autoencoder.SCALE)
        for name in ("tokenizer", "tokenizer_2"):
            (tmp_path / name).symlink_to(EMBEDDED / name)
        export.write(tmp_path, vae, encoders, unet)
        pipe = StableDiffusionXLImg2ImgPipeline.from_pretrained(tmp_path, use_safetensors=True, dtype=torch.float32)

        ids = torch.arange(POSITIONS)[None]
        with torch.inference_mode():
            ours = encoders((ids, ids))
            first = pipe.text_encoder(ids, output_hidden_states=True).hidden_states[-2]
            second = pipe.text_encoder_2(ids, output_hidden_states=True)
        context = torch.cat([first, second.hidden_states[-2]], -1)
        assert torch.allclose(context, ours.context, atol=0.02)
        assert torch.allclose(second.text_embeds, ours.pooled, atol=0.02)
        assert pipe.vae_scale_factor == autoencoder.FACTOR
        for one, other in ((pipe.unet, unet), (pipe.vae, vae)):
            for name, value in one.state_dict().items():
                assert torch.equal(value, other.state_dict()[name].half().float()), name


class TestGoingOn:
    def learn(self, folder: Path, stop_before: int | None = None) -> nn.Linear:
        torch.manual_seed(0)
        model = nn.Linear(3, 1)
        stage = Stage("line", folder, model, 20, 0.1)
        for step in stage.steps():
            if step == stop_before:
                stage.save()
                break
            x = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
            loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
            stage.learn(loss, {"loss": loss})
        else:
            stage.finish()
        return model

    def test_resumed_run_ends_like_an_uninterrupted_one(self, tmp_path: Path) -> None:
        uninterrupted = self.learn(tmp_path / "uninterrupted")
        self.learn(tmp_path / "parts", stop_before=7)
        assert torch.equal(self.learn(tmp_path / "parts").weight, uninterrupted.weight)
