"""The dtype that a large model runs fastest in on this CPU: measured with two layers of its UNet.

No flag of a processor says this for sure. bfloat16 takes half of float32's time where a CPU has instructions for it,
and twice that time on some that do not. The layers are packed, as those of the model will be.
"""

import time
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from app import malloc
from app.model.packed import PackedConv2d, PackedLinear, has_kernels, is_large
from app.pixels import IMAGE_SIZE

DTYPES = (torch.float32, torch.bfloat16)
"""The dtypes that are safe: SDXL's values exceed the range of float16."""

_WORTH = 0.8
"""The most time that bfloat16 takes of float32's to be chosen: its images differ a little."""

_RUNS = 3
"""Runs of a measurement, after one that is not timed. The fastest counts: other processes only add time."""

_PIXELS_PER_LATENT = 8


class Choice(NamedTuple):
    """A dtype, and why it was chosen."""

    dtype: torch.dtype
    reason: str


def choose_dtype(unet: Any) -> Choice:
    """The dtype for a UNet on this CPU if `IMG2IMG_DTYPE` is `auto`. Takes about a second for a large one.

    Args:
        unet: a diffusers UNet, which may be on the meta device: only its configuration and its size are read.
    """
    if not is_large(unet):
        return Choice(torch.float32, "a small model runs in float32 on the CPU")
    dtypes = [dtype for dtype in DTYPES if has_kernels(dtype)]
    if len(dtypes) < len(DTYPES):
        return Choice(torch.float32, "oneDNN has no bfloat16 on this CPU")
    return fastest(measure(unet.config, dtypes))


def fastest(seconds: Mapping[torch.dtype, float]) -> Choice:
    """The better dtype by the seconds that the layers take in float32 and in bfloat16."""
    full, half = seconds[torch.float32], seconds[torch.bfloat16]
    dtype = torch.bfloat16 if half <= _WORTH * full else torch.float32
    return Choice(
        dtype,
        f"a linear layer and a convolution of the UNet take {half * 1000:.1f} ms in bfloat16 and {full * 1000:.1f} ms "
        "in float32 on this CPU",
    )


def measure(config: Mapping[str, Any], dtypes: Iterable[torch.dtype]) -> dict[torch.dtype, float]:
    """Seconds that the two layers take together in each dtype, for one row.

    They are a 3x3 convolution and a feed-forward layer at the UNet's lowest resolution, where most of its weights are.

    Args:
        config: the UNet's configuration.
        dtypes: dtypes for which `has_kernels` is true.
    """
    channels = config["block_out_channels"]
    width, side = channels[-1], IMAGE_SIZE // _PIXELS_PER_LATENT // 2 ** (len(channels) - 1)
    with torch.inference_mode(), malloc.loading():
        layers = {dtype: _layers(width, dtype) for dtype in dtypes}
        inputs = {
            dtype: (torch.ones(1, width, side, side, dtype=dtype), torch.ones(1, side * side, width, dtype=dtype))
            for dtype in layers
        }
        found = dict.fromkeys(layers, float("inf"))
        # Interleaved, so that a busy moment of the machine does not fall on one dtype alone.
        for run in range(1 + _RUNS):
            for dtype, (convolution, linear) in layers.items():
                image, tokens = inputs[dtype]
                start = time.perf_counter()
                convolution(image)
                linear(tokens)
                if run > 0:
                    found[dtype] = min(found[dtype], time.perf_counter() - start)
    return found


def _layers(width: int, dtype: torch.dtype) -> tuple[PackedConv2d, PackedLinear]:
    """The two layers, packed. All weights are ones: random ones would take as long as the measurement."""
    plain = (nn.Conv2d(width, width, 3, padding=1, device="meta"), nn.Linear(width, 4 * width, device="meta"))
    for layer in plain:
        layer.to(dtype).to_empty(device="cpu").requires_grad_(False)
        for parameter in layer.parameters():
            parameter.fill_(1)
    convolution, linear = PackedConv2d(plain[0], dtype), PackedLinear(plain[1].weight, plain[1].bias, dtype)
    convolution.pack()
    linear.pack()
    return convolution, linear
