"""Layers of a large model on the CPU whose weights are packed: reordered once into oneDNN's blocked layout.

torch has oneDNN reorder a plain weight in every call. For SDXL's 1280 channels at 16x16 that takes half as long as the
convolution. A packed weight takes the same memory. This holds for float32 and bfloat16. Sums are in another
order, so results differ from a plain layer's in the last bits. `scripts/bench --case full` measures the gain.

Packing takes longer than everything else between a start and the first image, so it is done later, layer by layer.
Until `pack`, a layer keeps its stored weight and casts it in each call.
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
"""The least number of parameters of a packed model. Smaller ones gain nothing and stay bit-equal to diffusers."""

_LARGE_WEIGHT = 2**18
"""The least number of elements of a packed weight. With smaller ones a plain layer is as fast."""

_ROWS = 256
"""The number of input rows that a linear layer is packed for. Other numbers of rows have the same layout."""


class Packed(nn.Module, ABC):
    """A layer whose weight is stored or packed. Its bias is an ordinary parameter.

    Args:
        weight: the stored weight, in any floating-point dtype.
        bias: the bias, or None.
        dtype: the dtype of inputs and of the packed weight: float32, or bfloat16 where oneDNN has it.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.bias = bias
        self.dtype = dtype
        self.elements = weight.numel()
        # Not parameters: `stored` must keep its dtype, and a packed tensor is opaque and can be neither moved nor cast.
        self.stored: torch.Tensor | None = weight.detach()
        self.packed: torch.Tensor | None = None

    def pack(self) -> None:
        """Pack the weight and free the stored one; no effect if it is packed."""
        if self.stored is not None:
            self.packed = self._reorder(self.stored)
            release_pages(self.stored)
            self.stored = None

    def forward(self, x: torch.Tensor, output_size: tuple[int, int] | None = None) -> torch.Tensor:
        if output_size is not None:
            raise ValueError("a packed model upsamples by 2 only: the image's sides must be multiples of 32 pixels")
        if self.stored is not None:
            return self._plain(x, self.stored.to(x.dtype))
        return self._fast(x)

    @abstractmethod
    def _reorder(self, weight: torch.Tensor) -> torch.Tensor: ...
    @abstractmethod
    def _plain(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor: ...
    @abstractmethod
    def _fast(self, x: torch.Tensor) -> torch.Tensor: ...


class PackedLinear(Packed):
    """`nn.Linear`, for `[..., in_features]`."""

    def _reorder(self, weight: torch.Tensor) -> torch.Tensor:
        reordered: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.to(self.dtype), _ROWS)
        return reordered

    def _plain(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, weight, self.bias)

    def _fast(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")
        return result


class PackedConv2d(Packed):
    """`nn.Conv2d` with zero padding, for `[n, c, h, w]`; its output is in channels-last memory order."""

    def __init__(self, layer: nn.Conv2d, dtype: torch.dtype) -> None:
        super().__init__(layer.weight, layer.bias, dtype)
        padding, stride, dilation = (tuple(map(int, pair)) for pair in (layer.padding, layer.stride, layer.dilation))
        self._geometry = padding, stride, dilation, layer.groups

    def _reorder(self, weight: torch.Tensor) -> torch.Tensor:
        weight = weight.to(self.dtype)
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
    """`Upsample2D` (nearest-neighbour upsampling by 2, then a 3x3 convolution) as one transposed convolution.

    This takes four multiplications for each output pixel instead of nine. Of the nine upsampled pixels under the
    kernel, only four are different, so the weights that meet the same pixel are summed beforehand. In one dimension,
    the weights `a b c` become `c, b + c, a + b, a` with stride 2.
    """

    _SUMS = ((0.0, 0.0, 1.0), (0.0, 1.0, 1.0), (1.0, 1.0, 0.0), (1.0, 0.0, 0.0))
    _GEOMETRY = ([1, 1], [0, 0], [2, 2], [1, 1], 1)
    """Padding, output padding, stride, dilation, groups."""

    @staticmethod
    def matches(block: nn.Module) -> bool:
        """Whether a module computes exactly this."""
        if type(block) is not Upsample2D or block.norm is not None or not block.use_conv or not block.interpolate:
            return False
        inner = _convolution(block)
        return type(inner) is nn.Conv2d and inner.kernel_size == (3, 3) and inner.padding == (1, 1)

    def _reorder(self, weight: torch.Tensor) -> torch.Tensor:
        sums = torch.tensor(self._SUMS)
        summed = torch.einsum("yh,xw,oihw->ioyx", sums, sums, weight.float()).to(self.dtype).contiguous()
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
    """`nn.Linear` that keeps its stored weight and casts it in each call, with the same results.

    For the text encoders, which have a quarter of SDXL's weights and encode each prompt once: this halves their memory
    in float32. In bfloat16 it would save nothing.
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.bias = layer.bias
        # Not a parameter, which `move_to_device` would cast.
        self.stored = layer.weight.detach()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, self.stored.to(x.dtype), self.bias)


def keep_stored(model: nn.Module) -> None:
    """Replace all linear layers of a model by `StoredLinear`."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Linear:
                setattr(parent, name, StoredLinear(child))


class InplaceResnetBlock(nn.Module):
    """`ResnetBlock2D` with in-place operations on its intermediate tensors: less memory, the same results.

    Those tensors of SDXL's VAE have 134 and 268 MB for a 512x512 image.
    """

    def __init__(self, block: ResnetBlock2D) -> None:
        super().__init__()
        self.block = block

    @staticmethod
    def matches(block: nn.Module) -> bool:
        """Whether a module is a `ResnetBlock2D` that neither resamples nor scales its output."""
        return (
            type(block) is ResnetBlock2D
            and block.upsample is None
            and block.downsample is None
            # `group` without a projection is the VAE decoder's block, which has no time embedding.
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
    """Whether a model has at least `_LARGE_MODEL` parameters: one image then keeps all cores of a CPU busy."""
    plain = sum(parameter.numel() for parameter in model.parameters())
    return plain + sum(layer.elements for layer in _layers(model)) >= _LARGE_MODEL


def can_pack(model: nn.Module, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether to pack a model: it is large, runs on the CPU, and oneDNN has the dtype here."""
    return device.type == "cpu" and has_kernels(dtype) and is_large(model)


def has_kernels(dtype: torch.dtype) -> bool:
    """Whether oneDNN packs weights of a dtype on this CPU.

    float16 is left out: SDXL's values exceed its range, and most CPUs compute with it in float32.
    """
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def replace_layers(model: nn.Module, dtype: torch.dtype) -> None:
    """Replace the layers and blocks of a model that have a faster variant; `unpacked` lists the layers to pack.

    Args:
        model: the model, with its weights as stored.
        dtype: the dtype that the model will compute in.
    """
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            setattr(parent, name, _packed_variant(child, dtype))


def unpacked(*models: nn.Module) -> Iterator[Packed]:
    """The layers of some models that are not packed yet."""
    return (layer for layer in _layers(*models) if layer.stored is not None)


def pack_one_of_each(*models: nn.Module) -> None:
    """Pack the smallest layer of each class, so that the test pass before readiness runs the packed kernels too."""
    largest_first = sorted(unpacked(*models), key=lambda layer: layer.elements, reverse=True)
    for layer in {type(layer): layer for layer in largest_first}.values():
        layer.pack()


def _layers(*models: nn.Module) -> Iterator[Packed]:
    return (layer for model in models for layer in model.modules() if isinstance(layer, Packed))


def _packed_variant(layer: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The faster variant of a layer; the layer itself if there is none or it would gain nothing."""
    if InplaceResnetBlock.matches(layer):
        return InplaceResnetBlock(layer)
    if PackedUpsample.matches(layer):
        inner = _convolution(layer)
        return PackedUpsample(inner.weight, inner.bias, dtype) if inner.weight.numel() >= _LARGE_WEIGHT else layer
    if isinstance(layer, (nn.Linear, nn.Conv2d)) and layer.weight.numel() >= _LARGE_WEIGHT:
        # Exact types: subclasses may compute something else.
        if type(layer) is nn.Linear:
            return PackedLinear(layer.weight, layer.bias, dtype)
        if type(layer) is nn.Conv2d and layer.padding_mode == "zeros" and not isinstance(layer.padding, str):
            return PackedConv2d(layer, dtype)
    return layer


def channels_last(layer: nn.Module) -> nn.Module:
    """Put a convolution's weight into channels-last memory order, which tensor cores and oneDNN use.

    Its output has that order too. Other layers are returned unchanged.
    """
    if isinstance(layer, nn.Conv2d):
        layer.weight.data = layer.weight.detach().contiguous(memory_format=torch.channels_last)
    return layer
