"""The UNet's training data: the latents of many scenes, computed once.

A scene is ten images of one background: six with a concept's icon exactly in the middle, three with other icons near
the middle, and one without an icon. Any of the ten is a start image for each of the first six.

Targets are in the middle only. At the noise level where a pass begins, an image hardly shows where its subject is. A
target that could be in many places would come out as the mean of them.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny
from rich.progress import track
from torch import Tensor
from torch.nn import functional

from scripts.embedded import scenes
from scripts.embedded.prompts import NOTHING
from scripts.embedded.sources import Pixels, Sources
from scripts.embedded.text import PATCH, SIDE, SLOTS
from scripts.embedded.vocabulary import CONCEPTS

IMAGE_SIDE = 512
LATENT = IMAGE_SIDE // 16
SUBJECT = SIDE * PATCH * 16
"""Height of a target's icon, pixels."""

SQUARE = slice((LATENT - SIDE * PATCH) // 2, (LATENT + SIDE * PATCH) // 2)
"""The rows, and the columns, of a target's icon in the latents."""

TARGETS, STARTS = 6, 4
BARE = TARGETS + STARTS - 1
"""The index of the background without an icon."""

BUSY = 0.35
"""The share of busy backgrounds. Detail that the noise hides cannot be learnt, and dominates the loss."""


@dataclass
class Scenes:
    """All scenes.

    Attributes:
        latents: (N, 10, 8, 32, 32) float16, unit variance; the six targets first.
        concepts: (N, 6), which concept each target shows.
    """

    latents: np.memmap
    concepts: np.ndarray


def encode(vae: AutoencoderTiny, images: Tensor) -> Tensor:
    """Latents (B, 8, H / 16, W / 16) of images (B, 3, H, W) in [0, 255]."""
    with torch.inference_mode():
        ready = (images / 127.5 - 1).contiguous(memory_format=torch.channels_last)
        return vae.encode(ready).latents * vae.config.scaling_factor  # type: ignore[no-any-return]


def canvases(vae: AutoencoderTiny, sources: Sources) -> Tensor:
    """The targets of the text encoders' slots, (185, 36, 144); the last is for no concept.

    Each patch of an icon at full size has its latents, weighted by coverage, and the coverage. The latents are the mean
    over four backgrounds.
    """
    found = []
    for concept in track(CONCEPTS, "canvases"):
        icon = scenes.icon_batch(sources.pixels, [sources.icons[concept.icon]] * 4)
        greys = torch.tensor([40.0, 110.0, 180.0, 250.0]).view(4, 1, 1, 1).expand(4, 3, IMAGE_SIDE, IMAGE_SIDE)
        scale, centre = torch.full((4,), float(SUBJECT)), torch.full((4, 2), IMAGE_SIDE / 2)
        latents = encode(vae, scenes.place(icon, greys, scale, centre)).mean(0)
        silhouette = icon[:1].clone()
        silhouette[:, :3] = 255
        cover = scenes.place(silhouette, torch.zeros(1, 3, IMAGE_SIDE, IMAGE_SIDE), scale[:1], centre[:1])[0, :1] / 255
        share = functional.avg_pool2d(cover, 16)
        canvas = torch.cat([latents * share, share])[:, SQUARE, SQUARE]
        found.append(canvas.unfold(1, PATCH, PATCH).unfold(2, PATCH, PATCH).permute(1, 2, 0, 3, 4).reshape(SLOTS, -1))
    found.append(torch.zeros_like(found[0]))
    return torch.stack(found)


def _scene(sources: Sources, photographs: list[Pixels], seed: int, index: int) -> tuple[Tensor, list[int]]:
    """One scene's ten images (10, 3, 512, 512), and its targets' concepts."""
    rng = np.random.default_rng((seed, 3, index))
    behind = scenes.to_tensor([scenes.background(rng, IMAGE_SIDE, photographs, BUSY)])
    concepts = [int(one) for one in rng.choice(NOTHING, TARGETS, replace=False)]
    rows = [sources.icons[CONCEPTS[one].icon] for one in concepts]
    rows += [int(one) for one in rng.integers(len(sources.icons), size=STARTS - 1)]
    icons = scenes.icon_batch(sources.pixels, rows)
    for row in range(TARGETS, len(rows)):
        if rng.random() < 0.5:
            icons[row] = icons[row].flip(-1)
    shift = np.full((len(rows), 2), IMAGE_SIDE / 2)
    scale = np.full(len(rows), float(SUBJECT))
    shift[TARGETS:] += rng.uniform(-30, 30, (STARTS - 1, 2))
    scale[TARGETS:] = rng.uniform(280, 470, STARTS - 1)
    many = behind.expand(len(rows), -1, -1, -1)
    placed = scenes.place(icons, many, torch.from_numpy(scale).float(), torch.from_numpy(shift).float())
    return torch.cat([placed, behind]), concepts


def make(vae: AutoencoderTiny, sources: Sources, folder: Path, count: int, seed: int = 0) -> Scenes:
    """`count` scenes in `folder`; computes the missing ones."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "latents.npy"
    shape = (count, TARGETS + STARTS, 8, LATENT, LATENT)
    if path.exists() and np.load(path, mmap_mode="r").shape != shape:
        raise SystemExit(f"{path} has another number of scenes: remove {folder} to compute them again.")
    latents = np.lib.format.open_memmap(
        path, "r+" if path.exists() else "w+", np.float16, None if path.exists() else shape
    )
    labels_path = folder / "labels.npy"
    labels = np.load(labels_path) if labels_path.exists() else np.full((count, TARGETS), -1)
    photographs = sources.photographs()
    for index in track([int(one) for one in np.flatnonzero(labels[:, 0] < 0)], "scenes"):
        images, concepts = _scene(sources, photographs, seed, index)
        latents[index] = torch.cat([encode(vae, part) for part in torch.split(images, 5)]).numpy()
        labels[index] = concepts
        if index % 100 == 99 or index == count - 1:
            latents.flush()
            np.save(labels_path, labels)
    return Scenes(latents, labels)
