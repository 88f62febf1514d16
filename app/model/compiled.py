"""The UNet and the VAE with `torch.compile`, for a few batch sizes, compiled before the worker is ready."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import StableDiffusionXLImg2ImgPipeline
from torch import nn

from app.errors import CheckpointError
from app.model import toolchain

Compile = Literal["off", "default", "max"]

_MODES = {"default": "reduce-overhead", "max": "max-autotune"}
"""Modes of `torch.compile`. Both use CUDA graphs: at batch 1, Python launches kernels slower than the GPU runs them."""


def compiled_batch_sizes(max_rows: int) -> tuple[int, ...]:
    """The batch sizes to compile, ascending: the powers of two up to `max_rows`, and `max_rows`."""
    return tuple(sorted({max_rows, *(2**power for power in range(max_rows.bit_length()))}))


def compile_parts(pipe: StableDiffusionXLImg2ImgPipeline, how: Compile, cache: Path | None = None) -> None:
    """Make the UNet, the VAE's encoder and its decoder compile at their first call with each batch size.

    Their query, key and value projections are fused into one matrix product.

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
    for part in (pipe.unet, pipe.vae.encoder, pipe.vae.decoder):
        part.compile(mode=_MODES[how], fullgraph=True, dynamic=False)
    pipe.vae.encoder, pipe.vae.decoder = CloneOutputs(pipe.vae.encoder), CloneOutputs(pipe.vae.decoder)


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


class CloneOutputs(nn.Module):
    """A compiled module that returns copies. A CUDA graph writes each result over the previous one."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Any) -> Any:
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        return self.module(*inputs).clone()


class Batched:
    """A compiled model for any number of rows, which it splits and pads to the compiled batch sizes.

    Args:
        model: takes tensors `[rows, ...]` and returns one.
        sizes: the compiled batch sizes, ascending (`compiled_batch_sizes`).
    """

    def __init__(self, model: Callable[..., torch.Tensor], sizes: Sequence[int]) -> None:
        self.model = model
        self.sizes = sizes

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        results = []
        for start, stop, size in _calls(len(inputs[0]), self.sizes):
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
            result = self.model(*(_padded(tensor[start:stop], size) for tensor in inputs))
            # A copy, as in `CloneOutputs`.
            results.append(result[: stop - start].clone())
        return torch.cat(results)


def _calls(rows: int, sizes: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Start row, stop row (exclusive) and compiled size of each call."""
    for start in range(0, rows, sizes[-1]):
        stop = min(rows, start + sizes[-1])
        yield start, stop, next(size for size in sizes if size >= stop - start)


def _padded(tensor: torch.Tensor, rows: int) -> torch.Tensor:
    """Pad to a number of rows by repeating the last one; always a copy."""
    missing = rows - len(tensor)
    return torch.cat([tensor, tensor[-1:].expand(missing, *tensor.shape[1:])]) if missing else tensor.clone()
