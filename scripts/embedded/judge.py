"""A classifier of icons, trained separately from the generator, to check what an image shows."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from scripts.embedded import scenes
from scripts.embedded.sources import HELD_OUT, PHOTOGRAPHS, Sources
from scripts.embedded.state import Stage
from scripts.embedded.vocabulary import CONCEPTS

SIZE = 64
"""Height and width of its input, in pixels."""

BATCH = 64
PEAK_RATE = 2e-3


class _Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(x + self.layers(x))


class Judge(nn.Module):
    """Images (B, 3, 64, 64) in [-1, 1] to scores (B, 184), one for each concept."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for channels in (32, 64, 128, 192):
            layers += [
                nn.Conv2d(before, channels, 3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(channels),
                nn.ReLU(),
            ]
            layers.append(_Block(channels))
            before = channels
        self.features = nn.Sequential(*layers)
        self.scores = nn.Linear(before, len(CONCEPTS))

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.features(images)
        return self.scores(features.amax((2, 3)))  # type: ignore[no-any-return]


class Examples:
    """Images of all concepts: placed, turned, tinted and blurred at random, on random backgrounds."""

    def __init__(self, sources: Sources, photographs: tuple[str, ...]) -> None:
        self._photographs = sources.photographs(photographs)
        icons = scenes.icon_batch(sources.pixels, [sources.icons[concept.icon] for concept in CONCEPTS])
        cover = icons[:, 3:] / 255
        small = functional.interpolate(
            torch.cat([icons[:, :3] * cover, icons[:, 3:]], 1), size=(SIZE, SIZE), mode="area"
        )
        small[:, :3] /= (small[:, 3:] / 255).clamp(min=1e-3)
        self._icons = small.clamp(0, 255)

    def draw(self, rng: np.random.Generator, count: int) -> tuple[Tensor, Tensor]:
        """Images (B, 3, 64, 64) in [-1, 1], and which concept each shows."""
        concepts = torch.from_numpy(rng.integers(len(CONCEPTS), size=count))
        # Backgrounds at half the size: only their rough shapes matter here.
        behind = scenes.to_tensor([scenes.background(rng, SIZE, self._photographs) for _ in range(count)])
        scale = torch.from_numpy(SIZE * rng.uniform(0.55, 0.95, count)).float()
        shift = torch.from_numpy(SIZE * (0.5 + rng.uniform(-0.15, 0.15, (count, 2)))).float()
        images = scenes.place(self._icons[concepts], behind, scale, shift) / 127.5 - 1
        blur = torch.from_numpy(rng.uniform(0, 1, count)).float().view(-1, 1, 1, 1)
        images = images.lerp(functional.avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False), blur)
        gain = torch.from_numpy(rng.uniform(0.75, 1.25, (count, 3))).float().view(-1, 3, 1, 1)
        noise = torch.from_numpy(rng.standard_normal(images.shape, np.float32)) * 0.05
        return (images * gain + noise).clamp(-1, 1), concepts


def train(sources: Sources, state: Path, steps: int, seed: int = 0) -> Judge:
    """The trained classifier."""
    torch.manual_seed(seed)
    judge = Judge()
    examples = Examples(sources, PHOTOGRAPHS)
    stage = Stage("judge", state, judge, steps, PEAK_RATE)
    for step in stage.steps():
        images, concepts = examples.draw(np.random.default_rng((seed, 5, step)), BATCH)
        loss = functional.cross_entropy(judge(images), concepts, label_smoothing=0.05)
        stage.learn(loss, {"loss": loss})
    stage.finish()
    return judge.eval()


def accuracy(judge: Judge, sources: Sources, count: int = 2000, seed: int = 1) -> tuple[float, float]:
    """Top-1 and top-5 accuracy on new images with photographs that are not in the training data."""
    examples = Examples(sources, HELD_OUT)
    first = five = 0
    for part in range(count // BATCH):
        images, concepts = examples.draw(np.random.default_rng((seed, 6, part)), BATCH)
        with torch.inference_mode():
            best = judge(images).topk(5).indices
        hits = best == concepts[:, None]
        first += int(hits[:, 0].sum())
        five += int(hits.any(1).sum())
    total = count // BATCH * BATCH
    return first / total, five / total


def look(image: Tensor) -> Tensor:
    """Images (B, 3, H, W) in [-1, 1], resized to the judge's input."""
    return functional.interpolate(image, size=(SIZE, SIZE), mode="area")
