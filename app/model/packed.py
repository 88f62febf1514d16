"""Layers of a large model on the CPU, with their weights in the order in which oneDNN reads them.

torch hands over a weight as it lies and has it reordered anew at every call, which for SDXL's 1280 channels at 16x16
takes as long as half of the convolution. A packed one takes the room of the plain one. It sums up in another order: the
results differ from the plain layer's in the last bits. `scripts/bench --case full` measures what it brings.

Packing takes longer than everything else between a start and the first picture, so it can wait: until `pack`, a layer
keeps its weight as the file has it, and casts it at each call.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import nn
from torch.nn import functional

from app.model.weights import release_pages

_LARGE_MODEL = 100_000_000
"""Parameters from which on a model is packed. A small one gains nothing, and stays bit-equal to diffusers'."""

_LARGE_WEIGHT = 2**18
"""Elements from which on a layer is packed: below, plain ones are as fast."""

_ROWS = 256
"""Rows of the input that a linear layer is packed for: other numbers take the same order."""


class Packed(nn.Module, ABC):
    """A layer for float32, packed or yet to be. Its bias is a parameter as any.

    Args:
        weight: as it is stored, in any floating-point dtype.
        bias: if the layer has one.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.bias = bias
        self.elements = weight.numel()
        # No parameters: the one would be cast with the rest, the other's opaque kind can be neither moved nor cast.
        self.stored: torch.Tensor | None = weight.detach()
        self.packed: torch.Tensor | None = None

    def pack(self) -> None:
        """Put the weight into its faster form, and give back the memory of the other."""
        if self.stored is not None:
            self.packed = self._reordered(self.stored.float())
            release_pages(self.stored)
            self.stored = None

    def forward(self, x: torch.Tensor, output_size: tuple[int, int] | None = None) -> torch.Tensor:
        if output_size is not None:
            raise ValueError("a packed model only doubles: sides must be multiples of 32 pixels")
        if self.stored is not None:
            return self._plain(x, self.stored.to(x.dtype))
        return self._fast(x)

    @abstractmethod
    def _reordered(self, weight: torch.Tensor) -> torch.Tensor: ...
    @abstractmethod
    def _plain(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor: ...
    @abstractmethod
    def _fast(self, x: torch.Tensor) -> torch.Tensor: ...


class PackedLinear(Packed):
    """`nn.Linear`, for `[..., in_features]`."""

    def _reordered(self, weight: torch.Tensor) -> torch.Tensor:
        reordered: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS)
        return reordered

    def _plain(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, weight, self.bias)

    def _fast(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")
        return result


class PackedConv2d(Packed):
    """`nn.Conv2d` padded with zeros, for `[n, c, h, w]`; its output is in channels-last order."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__(layer.weight, layer.bias)
        padding, stride, dilation = (tuple(map(int, pair)) for pair in (layer.padding, layer.stride, layer.dilation))
        self._geometry = padding, stride, dilation, layer.groups

    def _reordered(self, weight: torch.Tensor) -> torch.Tensor:
        reordered: torch.Tensor = torch.ops.mkldnn._reorder_convolution_weight(weight, *self._geometry, [])
        return reordered

    def _plain(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        padding, stride, dilation, groups = self._geometry
        return functional.conv2d(_channels_last(x), weight, self.bias, stride, padding, dilation, groups)

    def _fast(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = torch.ops.mkldnn._convolution_pointwise(
            _channels_last(x), self.packed, self.bias, *self._geometry, "none", [], ""
        )
        return result


class PackedUpsample(Packed):
    """`Upsample2D`, where each pixel becomes four that a 3 x 3 convolution sees, as one transposed convolution.

    That multiplies four times for each output pixel instead of nine: of the nine pixels that the kernel sees, only four
    are different, and weights that meet the same one are added up beforehand. In one dimension, the weights `a b c`
    become `c, b + c, a + b, a` of stride 2.
    """

    _SUMS = ((0.0, 0.0, 1.0), (0.0, 1.0, 1.0), (1.0, 1.0, 0.0), (1.0, 0.0, 0.0))
    _GEOMETRY = ([1, 1], [0, 0], [2, 2], [1, 1], 1)
    """Padding, output padding, stride, dilation, groups."""

    @staticmethod
    def matches(block: nn.Module) -> bool:
        """Whether a module does just that."""
        if type(block) is not Upsample2D or block.norm is not None or not block.use_conv or not block.interpolate:
            return False
        inner = _convolution(block)
        return type(inner) is nn.Conv2d and inner.kernel_size == (3, 3) and inner.padding == (1, 1)

    def _reordered(self, weight: torch.Tensor) -> torch.Tensor:
        sums = torch.tensor(self._SUMS)
        summed = torch.einsum("yh,xw,oihw->ioyx", sums, sums, weight).contiguous()
        reordered: torch.Tensor = torch.ops.mkldnn._reorder_convolution_transpose_weight(summed, *self._GEOMETRY, [])
        return reordered

    def _plain(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return functional.conv2d(functional.interpolate(x, scale_factor=2.0), weight, self.bias, padding=1)

    def _fast(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = torch.ops.mkldnn._convolution_transpose_pointwise(
            _channels_last(x), self.packed, self.bias, *self._GEOMETRY, "none", [], ""
        )
        return result


def _convolution(block: nn.Module) -> Any:
    return block.conv if block.name == "conv" else block.Conv2d_0


def _channels_last(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous(memory_format=torch.channels_last)


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


class InplaceResnetBlock(nn.Module):
    """`ResnetBlock2D` that overwrites its own intermediate pictures: fewer of them to find room for, the same numbers.

    Those of SDXL's VAE at 512x512 are of 134 and 268 MB.
    """

    def __init__(self, block: ResnetBlock2D) -> None:
        super().__init__()
        self.block = block

    @staticmethod
    def matches(block: nn.Module) -> bool:
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


def is_large(model: nn.Module) -> bool:
    """Whether a model has so many weights that one picture fills a CPU."""
    plain = sum(parameter.numel() for parameter in model.parameters())
    return plain + sum(layer.elements for layer in _layers(model)) >= _LARGE_MODEL


def can_pack(model: nn.Module, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a model is to be packed: it is large, on the CPU in float32, and torch has oneDNN."""
    here = device.type == "cpu" and dtype == torch.float32 and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return here and is_large(model)


def replace_layers(model: nn.Module) -> None:
    """Have every layer and block of a model that has a faster form take it; `unpacked` lists what is to pack."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            setattr(parent, name, _packed_variant(child))


def unpacked(*models: nn.Module) -> Iterator[Packed]:
    """The layers of some models that are yet to be packed."""
    return (layer for layer in _layers(*models) if layer.stored is not None)


def pack_one_of_each(*models: nn.Module) -> None:
    """Pack the smallest layer of each kind, so that the first pass goes through all kernels that are to come."""
    largest_first = sorted(unpacked(*models), key=lambda layer: layer.elements, reverse=True)
    for layer in {type(layer): layer for layer in largest_first}.values():
        layer.pack()


def _layers(*models: nn.Module) -> Iterator[Packed]:
    return (layer for model in models for layer in model.modules() if isinstance(layer, Packed))


def _packed_variant(layer: nn.Module) -> nn.Module:
    """Itself if it has no faster form, or would gain nothing."""
    if InplaceResnetBlock.matches(layer):
        return InplaceResnetBlock(layer)
    if PackedUpsample.matches(layer):
        inner = _convolution(layer)
        return PackedUpsample(inner.weight, inner.bias) if inner.weight.numel() >= _LARGE_WEIGHT else layer
    if isinstance(layer, (nn.Linear, nn.Conv2d)) and layer.weight.numel() >= _LARGE_WEIGHT:
        # Subclasses may compute something else.
        if type(layer) is nn.Linear:
            return PackedLinear(layer.weight, layer.bias)
        if type(layer) is nn.Conv2d and layer.padding_mode == "zeros" and not isinstance(layer.padding, str):
            return PackedConv2d(layer)
    return layer


def channels_last(layer: nn.Module) -> nn.Module:
    """A convolution's weight in the order of tensor cores and oneDNN: its results come in that order too."""
    if isinstance(layer, nn.Conv2d):
        layer.weight.data = layer.weight.detach().contiguous(memory_format=torch.channels_last)
    return layer
