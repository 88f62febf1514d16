"""What int8 would bring for a full-size model on this CPU: an image with int8 layers, beside packed bfloat16.

The weights of linear layers and convolutions are int8 with a scale for each output channel, made from the stored
weights. Each layer quantizes its input to uint8 with the input's own smallest and largest value. oneDNN multiplies them
(VNNI or AMX on x86) and returns bfloat16. The VAE, upsampling and all other operations stay as they are.
"""

import io
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from app.engine.messages import Job
from app.model.diffusion import SdxlDiffusion
from app.model.load import load
from app.model.packed import Packed, PackedConv2d, PackedLinear
from app.pixels import IMAGE_SIZE, Pixels
from app.settings import WorkerSettings
from scripts.benchmarks.likeness import psnr
from scripts.benchmarks.report import Goal, Outcome
from scripts.benchmarks.single import upload

TURNS = 2
Seconds = dict[str, float]
"""By kind of layer."""

LEVELS = 255
"""Steps of a uint8 input; a weight has 127 on each side of zero."""


class Int8(nn.Module):
    """`layer` of a packed model, in int8. Takes and returns what it does."""

    def __init__(self, layer: Packed) -> None:
        super().__init__()
        if layer.stored is None:
            raise ValueError("the layer is packed already")
        weight = layer.stored.float()
        self.scales = weight.flatten(1).abs().amax(1).clamp_min(1e-9) / 127
        scaled = weight / self.scales.view(-1, *[1] * (weight.ndim - 1))
        self.zeros = torch.zeros(len(weight), dtype=torch.int64)
        self.bias = None if layer.bias is None else layer.bias.detach().float()
        self.geometry = layer._geometry if isinstance(layer, PackedConv2d) else None
        self.weight = scaled.round().to(torch.int8)
        self.packed: torch.Tensor | None = None

    def forward(self, x: torch.Tensor, output_size: tuple[int, int] | None = None) -> torch.Tensor:
        if self.geometry:
            x = x.contiguous(memory_format=torch.channels_last)
        least, most = (float(value) for value in torch.aminmax(x))
        scale = max(max(most, 0.0) - min(least, 0.0), 1e-8) / LEVELS
        zero = round(-min(least, 0.0) / scale)
        quantized = torch.quantize_per_tensor(x.float(), scale, zero, torch.quint8).int_repr()
        if self.packed is None:
            self.packed = self._pack(list(x.shape))
        weight = (quantized, scale, zero, self.packed, self.scales, self.zeros, self.bias)
        end: tuple[Any, ...] = (1.0, 0, torch.bfloat16, "none", [], "")
        result: torch.Tensor
        if self.geometry:
            padding, stride, dilation, groups = self.geometry
            result = torch.ops.onednn.qconv_pointwise(*weight, stride, padding, dilation, groups, *end)
        else:
            result = torch.ops.onednn.qlinear_pointwise(*weight, *end)
        return result

    def _pack(self, shape: list[int]) -> torch.Tensor:
        packed: torch.Tensor
        if self.geometry:
            padding, stride, dilation, groups = self.geometry
            packed = torch.ops.onednn.qconv_prepack(
                self.weight, self.scales, 1.0, 0, stride, padding, dilation, groups, shape
            )
        else:
            packed = torch.ops.onednn.qlinear_prepack(self.weight, None)
        del self.weight
        return packed


def case(model: Path) -> Outcome:
    """Make an image with both kinds of layers, alternating, and compare times and images."""
    diffusion = load(WorkerSettings(model=str(model), dtype="bfloat16", vae="checkpoint", cache_bytes=0), "cpu")
    places: list[tuple[nn.Module, str, Packed]] = [
        (parent, name, child)
        for parent in diffusion.pipe.unet.modules()
        for name, child in parent.named_children()
        if isinstance(child, PackedLinear | PackedConv2d) and child.stored is not None
    ]
    ways: dict[str, Sequence[nn.Module]] = {
        "bfloat16": [layer for _, _, layer in places],
        "int8": [Int8(layer) for _, _, layer in places],
    }
    while diffusion.pack_next_layers():
        pass
    pixels = Image.open(io.BytesIO(upload())).resize((IMAGE_SIZE, IMAGE_SIZE))
    job = Job(
        "int8", Pixels(*pixels.size, pixels.tobytes()), "wizard", None, 4, 0.9, 0.0, seed=0, deadline=float("inf")
    )
    images: dict[str, np.ndarray] = {}
    seconds: dict[str, list[Seconds]] = {name: [] for name in ways}
    for turn in range(TURNS + 1):
        for way, layers in ways.items():
            for (parent, name, _), layer in zip(places, layers, strict=True):
                setattr(parent, name, layer)
            with _timed(places, layers) as spent:
                images[way] = _image(diffusion, job, spent)
            if turn:
                seconds[way].append(spent)
    return _outcome(model, seconds, psnr(images["int8"], images["bfloat16"]))


def _image(diffusion: SdxlDiffusion, job: Job, spent: Seconds) -> np.ndarray:
    """Make an image, `uint8[height, width, 3]`, and add its seconds to `spent`."""
    start = time.perf_counter()
    state = diffusion.admit(job)
    admitted = time.perf_counter()
    while not state.done:
        diffusion.tick([state])
    spent["UNet calls"] = time.perf_counter() - admitted
    (decoding,) = diffusion.finish([state])
    result = diffusion.collect(decoding)
    spent["the image"] = time.perf_counter() - start
    if result is None:
        raise RuntimeError("the image holds NaN")
    width, height, data = result.pixels
    return np.frombuffer(data, np.uint8).reshape(height, width, 3)


@contextmanager
def _timed(places: list[tuple[nn.Module, str, Packed]], layers: Sequence[nn.Module]) -> Iterator[Seconds]:
    """Seconds inside the layers, by their kind."""
    spent: Seconds = defaultdict(float)

    def add(kind: str, sign: int) -> Callable[..., None]:
        def hook(*_: object) -> None:
            spent[kind] += sign * time.perf_counter()

        return hook

    hooks = []
    for (_, _, original), layer in zip(places, layers, strict=True):
        kind = "linear layers" if isinstance(original, PackedLinear) else "convolutions"
        hooks += [layer.register_forward_pre_hook(add(kind, -1)), layer.register_forward_hook(add(kind, 1))]
    try:
        yield spent
    finally:
        for hook in hooks:
            hook.remove()


def _outcome(model: Path, seconds: dict[str, list[Seconds]], likeness: float) -> Outcome:
    """The least seconds of each kind of layer and of the image: other processes only add time."""
    kinds = ("linear layers", "convolutions", "UNet calls", "the image")
    least = {way: {kind: min(turn[kind] for turn in turns) for kind in kinds} for way, turns in seconds.items()}
    gains = {kind: least["bfloat16"][kind] / least["int8"][kind] for kind in kinds}
    return Outcome(
        "int8",
        f"An image of {model.name} on the CPU, 4 steps, strength 0.9; int8 has {likeness:.3g} dB PSNR to bfloat16",
        ("what", "bfloat16, s", "int8, s", "times as fast"),
        [(kind, least["bfloat16"][kind], least["int8"][kind], gain) for kind, gain in gains.items()],
        [Goal("time", "the image in int8, times as fast", gains["the image"], at_least=1.5)],
    )
