"""Layers of a large model on the CPU, with their weights in the order in which oneDNN reads them.

torch hands over a weight as it lies and has it reordered anew at every call, which for SDXL's 1280 channels at 16x16
takes as long as half of the convolution. A packed one takes the room of the plain one. It sums up in another order: the
results differ from the plain layer's in the last bits. `scripts/bench --case full` measures what it brings.
"""

from collections.abc import Callable
from typing import Any

import torch
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import nn
from torch.nn import functional

_LARGE_MODEL = 100_000_000
"""Parameters from which on a model is packed. A small one gains nothing, and stays bit-equal to diffusers'."""

_LARGE_WEIGHT = 2**18
"""Elements from which on a layer is packed: below, plain ones are as fast."""

_ROWS = 256
"""Rows of the input that a linear layer is packed for: other numbers take the same order."""


class PackedLinear(nn.Module):
    """`nn.Linear`, for float32 `[..., in_features]`."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.bias = layer.bias
        # No parameter, as its opaque kind of tensor can be neither moved nor cast.
        self.packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), _ROWS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")
        return result


class PackedConv2d(nn.Module):
    """`nn.Conv2d` padded with zeros, for float32 `[n, c, h, w]`; its output is in channels-last order."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.bias = layer.bias
        self._geometry = [list(map(int, pair)) for pair in (layer.padding, layer.stride, layer.dilation)]
        self._groups = layer.groups
        self.packed = torch.ops.mkldnn._reorder_convolution_weight(
            layer.weight.detach(), *self._geometry, layer.groups, []
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        result: torch.Tensor = torch.ops.mkldnn._convolution_pointwise(
            x, self.packed, self.bias, *self._geometry, self._groups, "none", [], ""
        )
        return result


class Doubling(nn.Module):
    """`Upsample2D`: each pixel becomes four, then a 3 x 3 convolution with weight `[out, in, 3, 3]`."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.weight = convolution.weight
        self.bias = convolution.bias

    @staticmethod
    def stands_for(block: nn.Module) -> bool:
        """Whether a module does just that."""
        if type(block) is not Upsample2D or block.norm is not None or not block.use_conv or not block.interpolate:
            return False
        convolution = _convolution(block)
        return type(convolution) is nn.Conv2d and convolution.kernel_size == (3, 3) and convolution.padding == (1, 1)

    def forward(self, x: torch.Tensor, output_size: tuple[int, int] | None = None) -> torch.Tensor:
        larger = functional.interpolate(x, output_size, None if output_size else 2.0)
        return functional.conv2d(larger, self.weight, self.bias, padding=1)


class PackedDoubling(nn.Module):
    """`Doubling` as one transposed convolution, which multiplies four times for each output pixel instead of nine.

    Of the nine pixels that a 3 x 3 kernel sees in an enlarged picture, only four are different: weights that meet the
    same one are added up beforehand. In one dimension, the weights `a b c` become `c, b + c, a + b, a` of stride 2.
    """

    _SUMS = ((0.0, 0.0, 1.0), (0.0, 1.0, 1.0), (1.0, 1.0, 0.0), (1.0, 0.0, 0.0))
    _GEOMETRY = ([1, 1], [0, 0], [2, 2], [1, 1], 1)
    """Padding, output padding, stride, dilation, groups."""

    def __init__(self, layer: Doubling) -> None:
        super().__init__()
        self.bias = layer.bias
        sums = torch.tensor(self._SUMS)
        weight = torch.einsum("yh,xw,oihw->ioyx", sums, sums, layer.weight.detach())
        self.packed = torch.ops.mkldnn._reorder_convolution_transpose_weight(weight.contiguous(), *self._GEOMETRY, [])

    def forward(self, x: torch.Tensor, output_size: tuple[int, int] | None = None) -> torch.Tensor:
        if output_size is not None:
            raise ValueError("a packed model doubles: sides must be multiples of 32 pixels")
        x = x.contiguous(memory_format=torch.channels_last)
        result: torch.Tensor = torch.ops.mkldnn._convolution_transpose_pointwise(
            x, self.packed, self.bias, *self._GEOMETRY, "none", [], ""
        )
        return result


def _convolution(block: Upsample2D) -> nn.Module:
    return block.conv if block.name == "conv" else block.Conv2d_0


def merge_doubling(model: nn.Module) -> None:
    """Have each `Upsample2D` of a model be one layer with its convolution, which `packed` then knows."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if Doubling.stands_for(child):
                setattr(parent, name, Doubling(_convolution(child)))


class StoredLinear(nn.Module):
    """`nn.Linear` whose weight stays as it is stored, and is cast at each call: the same numbers.

    For the text encoders, a quarter of SDXL's weights, which see each prompt once: half of their room is saved.
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.bias = layer.bias
        # No parameter, which would be cast with the rest.
        self.stored = layer.weight.detach()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, self.stored.to(x.dtype), self.bias)


def keep_stored(model: nn.Module) -> None:
    """Have all linear layers of a model keep their weights as they are."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Linear:
                setattr(parent, name, StoredLinear(child))


class Residual(nn.Module):
    """`ResnetBlock2D` that overwrites its own intermediate pictures: fewer of them to find room for, the same numbers.

    Those of SDXL's VAE at 512x512 are of 134 and 268 MB.
    """

    def __init__(self, block: ResnetBlock2D) -> None:
        super().__init__()
        self.block = block

    @staticmethod
    def stands_for(block: nn.Module) -> bool:
        """Whether a module is such a block that neither changes the size nor scales what it gives."""
        return (
            type(block) is ResnetBlock2D
            and block.upsample is None
            and block.downsample is None
            # As the VAE's decoder calls it, which has no time to embed.
            and (
                block.time_embedding_norm == "default"
                or (block.time_embedding_norm, block.time_emb_proj) == ("group", None)
            )
            and not block.skip_time_act
            and block.output_scale_factor == 1
            and isinstance(block.nonlinearity, nn.SiLU)
        )

    def forward(self, x: torch.Tensor, temb: torch.Tensor | None) -> torch.Tensor:
        block = self.block
        hidden: torch.Tensor = block.conv1(functional.silu(block.norm1(x), inplace=True))
        if block.time_emb_proj is not None and temb is not None:
            hidden += block.time_emb_proj(functional.silu(temb))[:, :, None, None]
        hidden = block.conv2(functional.silu(block.norm2(hidden), inplace=True))
        hidden += x if block.conv_shortcut is None else block.conv_shortcut(x)
        return hidden


_KINDS: dict[type[nn.Module], Callable[[Any], nn.Module]] = {
    nn.Linear: PackedLinear,
    nn.Conv2d: PackedConv2d,
    Doubling: PackedDoubling,
}


def can_pack(model: nn.Module, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a model is to be packed: it is large, on the CPU in float32, and torch has oneDNN."""
    here = device.type == "cpu" and dtype == torch.float32 and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return here and sum(parameter.numel() for parameter in model.parameters()) >= _LARGE_MODEL


def packed(layer: nn.Module) -> nn.Module:
    """A layer of float32, or a block of such, in its faster form; itself if it has none, or would gain nothing.

    A small convolution gets channels-last order, in which its neighbours' pictures come.
    """
    if Residual.stands_for(layer):
        return Residual(layer)
    # Subclasses may compute something else.
    kind, weight = _KINDS.get(type(layer)), getattr(layer, "weight", None)
    if kind is None or weight is None or getattr(layer, "padding_mode", "zeros") != "zeros":
        return layer
    if weight.numel() >= _LARGE_WEIGHT and not isinstance(getattr(layer, "padding", None), str):
        return kind(layer)
    return channels_last(layer)


def channels_last(layer: nn.Module) -> nn.Module:
    """A convolution's weight in the order of tensor cores and oneDNN: its results come in that order too."""
    if isinstance(layer, nn.Conv2d):
        layer.weight.data = layer.weight.detach().contiguous(memory_format=torch.channels_last)
    return layer
