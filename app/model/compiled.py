"""The UNet and the VAE with `torch.compile`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from diffusers import StableDiffusionXLImg2ImgPipeline
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from torch import nn

from app.errors import CheckpointError
from app.model import toolchain

Compile = Literal["off", "default", "max"]

_MODES = {"default": "default", "max": "max-autotune-no-cudagraphs"}
"""Modes of `torch.compile`, without CUDA graphs of its own: `app.model.graphs` records the compiled parts."""

_REGIONS = (BasicTransformerBlock, ResnetBlock2D)
"""The blocks of which the UNet and the VAE are made. They do nearly all of the work."""

_RECOMPILE_LIMIT = 256
"""More than the shapes that a block's code is compiled for: some 15 for each number of rows. torch stops at 8."""


def compile_parts(pipe: StableDiffusionXLImg2ImgPipeline, how: Compile, cache: Path | None = None) -> None:
    """Make the UNet, the VAE's encoder and its decoder compile at their first call with each batch size.

    Their blocks are compiled and not the whole: code for one block serves all blocks of the same shape. CUDA graphs
    join them again. Their query, key and value projections are fused into one matrix product.

    Args:
        pipe: the pipeline whose parts are compiled.
        how: `default` or `max`, a key of `_MODES`.
        cache: the folder of the compile cache; None for a temporary one.

    Raises:
        CheckpointError: a tool is missing, or there is no folder for compiled code.
    """
    if missing := toolchain.missing_tools(on_cuda=pipe.device.type == "cuda"):
        raise CheckpointError(f"IMG2IMG_COMPILE={how} {missing}")
    toolchain.use_cache(cache)
    _fuse(pipe)
    torch._dynamo.config.recompile_limit = _RECOMPILE_LIMIT
    torch._dynamo.config.accumulated_recompile_limit = _RECOMPILE_LIMIT * len(_REGIONS)
    for part in (pipe.unet, pipe.vae.encoder, pipe.vae.decoder):
        for region in regions(part):
            region.compile(mode=_MODES[how], fullgraph=True, dynamic=False)


def regions(part: nn.Module) -> Sequence[nn.Module]:
    """The blocks of a part that are compiled; the part itself if it has none, as a tiny VAE."""
    return [module for module in part.modules() if isinstance(module, _REGIONS)] or [part]


def _fuse(pipe: StableDiffusionXLImg2ImgPipeline) -> None:
    for part in (pipe.unet, pipe.vae):
        if hasattr(part, "fuse_qkv_projections"):
            part.fuse_qkv_projections()
    for module in pipe.unet.modules():
        # diffusers keeps the unfused projections, to undo the fusion: a third of the attention's weights.
        for fused, parts in (("to_qkv", ("to_q", "to_k", "to_v")), ("to_kv", ("to_k", "to_v"))):
            if hasattr(module, fused):
                for name in parts:
                    delattr(module, name)


def end_compile_workers() -> None:
    """End Inductor's processes, which keep hundreds of megabytes of memory. No request compiles anything."""
    # Imported here, because it takes seconds and only a compiled model needs it.
    from torch._inductor.async_compile import shutdown_compile_workers

    shutdown_compile_workers()
