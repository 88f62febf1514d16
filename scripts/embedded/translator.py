"""The UNet: denoises an image towards the prompt's concept.

It is trained for image-to-image. At high noise the noisy image shows another subject than the target, on the same
background. At low noise it shows the target, with any prompt. So at high strength the prompt decides the subject and
the image decides the background, and at low strength the image is kept.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from diffusers import EulerAncestralDiscreteScheduler, UNet2DConditionModel
from torch import Tensor, nn

from scripts import make_checkpoint
from scripts.embedded.alignment import Alignment
from scripts.embedded.latents import BARE, LATENT, SQUARE, TARGETS, Scenes
from scripts.embedded.probes import Probes
from scripts.embedded.prompts import NOTHING, Prompts
from scripts.embedded.state import Stage, fast_precision
from scripts.embedded.text import WIDTH, TextEncoders, TextOutputs, Tokenizers

Half = npt.NDArray[np.float16]

BATCH = 16
PEAK_RATE = 3e-3
TIME_WIDTH = 8

ALIGNMENT_WEIGHT = 0.5
"""The weight of a nat of the attention loss."""

PROBES_WEIGHT = 0.3
"""The weight of an error in the probes' latents, relative to an error in the predicted latents."""

TRANSLATE = 560
"""From this timestep on the start may differ from the target; the four-step pass visits 749 and 499."""

SUBJECT_WEIGHT = 3.0
"""The weight of an error in the middle, where the subject is, relative to an error around it."""


def scheduler_config() -> dict[str, Any]:
    """SDXL-Turbo's scheduler with v-prediction, which is well scaled at the highest noise too."""
    return {**make_checkpoint.scheduler_config(), "prediction_type": "v_prediction"}


def config() -> dict[str, Any]:
    """The UNet's configuration: cross-attention in the up blocks, where a position is a patch or a quarter of one."""
    return {
        "_class_name": "UNet2DConditionModel",
        "act_fn": "silu",
        "addition_embed_type": "text_time",
        "addition_embed_type_num_heads": 64,
        "addition_time_embed_dim": TIME_WIDTH,
        "attention_head_dim": 4,
        "block_out_channels": [32, 96, 192],
        "center_input_sample": False,
        "cross_attention_dim": 2 * WIDTH,
        "down_block_types": ["DownBlock2D", "DownBlock2D", "DownBlock2D"],
        "downsample_padding": 1,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": 8,
        "layers_per_block": 1,
        "mid_block_type": "UNetMidBlock2D",
        "norm_eps": 1e-05,
        "norm_num_groups": 8,
        "out_channels": 8,
        "projection_class_embeddings_input_dim": 6 * TIME_WIDTH + WIDTH,
        "resnet_time_scale_shift": "scale_shift",
        "sample_size": 32,
        "transformer_layers_per_block": 1,
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "use_linear_projection": True,
    }


def build() -> UNet2DConditionModel:
    """The untrained UNet; its output and the residual branches of the up blocks start at zero.

    Those of the down blocks do not. Only the zero padding at the edges carries positions, and it must spread inwards
    before attention can find a position's patch.
    """
    unet = UNet2DConditionModel.from_config(config())
    for name, module in unet.named_modules():
        if name.endswith(".proj_out") or name == "conv_out" or (name.startswith("up_") and name.endswith(".conv2")):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    return unet


def grid(steps: int) -> list[int]:
    """The timesteps of a schedule of `steps` steps, trailing."""
    return [round(1000 - 1000 * k / steps) - 1 for k in range(steps)]


class Levels:
    """The noise levels (sigmas) of all timesteps."""

    def __init__(self) -> None:
        scheduler = EulerAncestralDiscreteScheduler.from_config(scheduler_config())
        self._levels = ((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod) ** 0.5

    def __call__(self, timesteps: Tensor) -> Tensor:
        """Timesteps (B,) to (B, 1, 1, 1)."""
        return self._levels[timesteps].view(-1, 1, 1, 1)  # type: ignore[no-any-return]


def fresh_timestep(rng: np.random.Generator) -> int:
    """Timesteps to train with fresh noise: mostly the first one of a four-step pass or of another short one."""
    kind = rng.random()
    if kind < 0.6:
        return int(rng.choice(grid(4), p=[0.2, 0.45, 0.2, 0.15]))
    if kind < 0.85:
        return int(rng.choice(grid(int(rng.integers(1, 9)))))
    return int(rng.integers(20, 1000))


def path(rng: np.random.Generator, depth: int) -> list[int]:
    """`depth` + 1 successive timesteps of a short schedule, mostly of four steps; a third begins below `TRANSLATE`."""
    keeps = rng.random() < 1 / 3
    while True:
        steps = 4 if rng.random() < 0.6 else int(rng.integers(2, 9))
        timesteps = grid(steps)
        begins = [at for at in range(steps - depth) if (timesteps[at] < TRANSLATE) == keeps]
        if begins:
            # The default strength skips the first of four steps.
            at = 1 if 1 in begins and rng.random() < 0.5 else int(rng.choice(begins))
            return timesteps[at : at + depth + 1]


def time_ids(count: int) -> Tensor:
    """SDXL's micro-conditioning as the service sends it, (B, 6)."""
    return torch.tensor([[512.0, 512.0, 0.0, 0.0, 512.0, 512.0]]).expand(count, 6)


def denoise(
    unet: UNet2DConditionModel, noisy: Tensor, level: Tensor, timesteps: Tensor, text_outputs: TextOutputs
) -> Tensor:
    """The UNet's prediction of the clean latents.

    Args:
        unet: the model.
        noisy: (B, 8, 32, 32), clean + level * noise.
        level: (B, 1, 1, 1), sigma.
        timesteps: (B,).
        text_outputs: the encoders' outputs for the prompts.
    """
    scaled = noisy / (level**2 + 1) ** 0.5
    added = {"text_embeds": text_outputs.pooled, "time_ids": time_ids(len(noisy))}
    with fast_precision():
        out = unet(scaled, timesteps, encoder_hidden_states=text_outputs.context, added_cond_kwargs=added)
    velocity = out.sample.float()
    # Salimans and Ho 2022 (arXiv:2202.00512), with sigma for their ratio of sigma to alpha.
    return noisy / (level**2 + 1) - velocity * level / (level**2 + 1) ** 0.5  # type: ignore[no-any-return]


def ancestral(noisy: Tensor, clean: Tensor, level: Tensor, following: Tensor, noise: Tensor) -> Tensor:
    """The scheduler's step (Euler ancestral) from sigma `level` to sigma `following`, which differ by row."""
    up = (following**2 * (level**2 - following**2) / level**2).sqrt().minimum(following)
    down = (following**2 - up**2).sqrt()
    return clean + (noisy - clean) * down / level + up * noise


@dataclass
class Lesson:
    """A training batch.

    Attributes:
        starts: (B, 8, 32, 32), the clean latents of the noisy images.
        targets: (B, 8, 32, 32), the target latents.
        paths: (B, depth + 1), timesteps; the UNet runs all but the last like the service, and is trained at the last.
        prompts: B prompts.
    """

    starts: Tensor
    targets: Tensor
    paths: Tensor
    prompts: list[str]


class Lessons:
    """Draws the training batch of a step by its index."""

    def __init__(self, scenes: Scenes, seed: int) -> None:
        self._scenes, self._seed = scenes, seed
        self._prompts = Prompts()

    def draw(self, step: int, rolled: bool) -> Lesson:
        """The batch of one step; a `rolled` one trains on the UNet's own results for the start."""
        rng = np.random.default_rng((self._seed, 4, step))
        depth = int(rng.choice([1, 2, 3], p=[0.55, 0.35, 0.1])) if rolled else 0
        starts, targets, paths, prompts = [], [], [], []
        for _ in range(BATCH):
            way = path(rng, depth) if rolled else [fresh_timestep(rng)]
            start, target, prompt = self._pair(rng, way[0])
            starts.append(start)
            targets.append(target)
            paths.append(way)
            prompts.append(prompt)
        return Lesson(_stack(starts), _stack(targets), torch.tensor(paths), prompts)

    def _pair(self, rng: np.random.Generator, timestep: int) -> tuple[Half, Half, str]:
        """Start, target and prompt for a pass that begins at `timestep`."""
        target = start = int(rng.integers(TARGETS))
        keeps = timestep < TRANSLATE
        if rng.random() < (0.4 if keeps else 0.94):
            # Sometimes the bare background, since images to keep usually show something other than an icon.
            start = BARE if rng.random() < (0.5 if keeps else 0.2) else int(rng.integers(BARE))
        scene = int(rng.integers(len(self._scenes.concepts)))
        concept = int(self._scenes.concepts[scene, target])
        if keeps:
            target = start
        if rng.random() < 0.06:
            concept, target = NOTHING, start
        latents = self._scenes.latents[scene]
        return latents[start], latents[target], self._prompts.draw(rng, concept)


def _stack(latents: list[Half]) -> Tensor:
    return torch.from_numpy(np.stack(latents).astype(np.float32))


def roll(
    unet: UNet2DConditionModel, lesson: Lesson, text_outputs: TextOutputs, levels: Levels, generator: torch.Generator
) -> Tensor:
    """The noisy latents at the last timestep of each path."""

    def noise() -> Tensor:
        return torch.randn(lesson.starts.shape, generator=generator)

    noisy = lesson.starts + levels(lesson.paths[:, 0]) * noise()
    for now, following in zip(lesson.paths.T, lesson.paths.T[1:], strict=False):
        with torch.no_grad():
            clean = denoise(unet, noisy, levels(now), now, text_outputs)
        noisy = ancestral(noisy, clean, levels(now), levels(following), noise())
    return noisy


def train(
    scenes: Scenes, encoders: TextEncoders, tokenizers: Tokenizers, state: Path, steps: int, seed: int = 0
) -> UNet2DConditionModel:
    """The trained UNet."""
    torch.manual_seed(seed)
    unet = build()
    alignment, probes = Alignment(unet), Probes(unet)
    stage = Stage("unet", state, nn.ModuleList([unet, probes]), steps, PEAK_RATE)
    lessons, levels = Lessons(scenes, seed), Levels()
    area = torch.ones(LATENT, LATENT)
    area[SQUARE, SQUARE] = SUBJECT_WEIGHT
    area /= area.mean()
    for step in stage.steps():
        # Train on its own results only after they resemble images.
        lesson = lessons.draw(step, rolled=step > 0.3 * steps and step % 2 == 1)
        with torch.no_grad():
            text_outputs = encoders(tokenizers(lesson.prompts))
        noisy = roll(unet, lesson, text_outputs, levels, torch.Generator().manual_seed(step))
        timesteps = lesson.paths[:, -1]
        clean = denoise(unet, noisy, levels(timesteps), timesteps, text_outputs)
        errors = (clean - lesson.targets).square().mean(1)
        error = (errors * area).mean((1, 2))
        # The loss in v, which gives the small errors at low noise more weight.
        weight = (1 + levels(timesteps).flatten() ** -2).clamp(max=5)
        high = lesson.paths[:, 0] >= TRANSLATE
        subject = errors[:, SQUARE, SQUARE].mean((1, 2))
        shown = {"rolled" if lesson.paths.shape[1] > 1 else "high": subject[high].mean()} if high.any() else {}
        if (~high).any():
            shown["low"] = subject[~high].mean()
        astray = alignment.loss()
        shown["astray"] = astray
        inner = PROBES_WEIGHT * probes.loss(lesson.targets)
        stage.learn((error * weight).mean() + ALIGNMENT_WEIGHT * astray + inner, shown)
    stage.finish()
    alignment.stop()
    probes.stop()
    return unet.eval()
