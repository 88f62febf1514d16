"""The UNet and the VAE through `torch.compile`, at a few batch sizes that are compiled before the worker is ready."""

import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import StableDiffusionXLImg2ImgPipeline
from torch import nn

from app.errors import CheckpointError

logger = logging.getLogger(__name__)

Compile = Literal["off", "default", "max"]

_MODES = {"default": "reduce-overhead", "max": "max-autotune"}
"""Both replay CUDA graphs: at batch 1 a call's kernels take less time than Python needs to launch them one by one."""

ADVICE = "Install g++ (docker build --build-arg COMPILER=g++), or set it to off."


def has_compiler() -> bool:
    """Whether there is one for Inductor and Triton."""
    return any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++"))


def compiled_batch_sizes(most: int) -> tuple[int, ...]:
    """The batch sizes that are compiled, for at most so many rows: powers of two and the largest."""
    return tuple(sorted({most, *(2**power for power in range(most.bit_length()) if 2**power <= most)}))


def compile_parts(pipe: StableDiffusionXLImg2ImgPipeline, how: Compile, cache: Path | None = None) -> None:
    """Have the UNet and both halves of the VAE compiled at their first call with each batch size.

    Queries, keys and values are projected by one matrix product from then on.

    Args:
        pipe: the pipeline whose parts are compiled.
        how: a mode of `torch.compile`.
        cache: the folder where compiled code is looked for and kept; None for torch's own choice.

    Raises:
        CheckpointError: there is no C++ compiler.
    """
    if not has_compiler():
        raise CheckpointError(f"IMG2IMG_COMPILE={how} needs a C++ compiler, and there is none. {ADVICE}")
    if cache:
        _keep_in(cache)
    _fuse(pipe)
    for part in (pipe.unet, pipe.vae.encoder, pipe.vae.decoder):
        part.compile(mode=_MODES[how], fullgraph=True, dynamic=False)
    pipe.vae.encoder, pipe.vae.decoder = CloneOutputs(pipe.vae.encoder), CloneOutputs(pipe.vae.decoder)


def _keep_in(cache: Path) -> None:
    """Not in the environment from the start: torch then makes the folder when it is imported, or fails to."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        # The only sure way to know, whatever the mode bits say.
        with tempfile.TemporaryFile(dir=cache):
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache)
    except OSError as error:
        logger.warning("compiled code is not kept for the next start, IMG2IMG_COMPILE_CACHE: %s", error)


def _fuse(pipe: StableDiffusionXLImg2ImgPipeline) -> None:
    for part in (pipe.unet, pipe.vae):
        if hasattr(part, "fuse_qkv_projections"):
            part.fuse_qkv_projections()
    for module in pipe.unet.modules():
        # What was fused is kept beside it, for taking it apart again: a third of the attention's weights.
        for fused, parts in (("to_qkv", ("to_q", "to_k", "to_v")), ("to_kv", ("to_k", "to_v"))):
            if hasattr(module, fused):
                for name in parts:
                    delattr(module, name)


class CloneOutputs(nn.Module):
    """A compiled module whose results stay as they are: a CUDA graph writes each to the place of the one before."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Any) -> Any:
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        return self.module(*inputs).clone()


class Batched:
    """A compiled model that takes any number of rows: as calls of the sizes that were compiled.

    Args:
        model: takes tensors of equal first dimension and returns one of it.
        sizes: ascending; see `compiled_batch_sizes`.
    """

    def __init__(self, model: Callable[..., torch.Tensor], sizes: Sequence[int]) -> None:
        self.model = model
        self.sizes = sizes

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        results = []
        for start, stop, size in _calls(len(inputs[0]), self.sizes):
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
            result = self.model(*(_padded(tensor[start:stop], size) for tensor in inputs))
            # As above.
            results.append(result[: stop - start].clone())
        return torch.cat(results)


def _calls(rows: int, sizes: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """First row, last row and compiled size of each call."""
    for start in range(0, rows, sizes[-1]):
        stop = min(rows, start + sizes[-1])
        yield start, stop, next(size for size in sizes if size >= stop - start)


def _padded(tensor: torch.Tensor, rows: int) -> torch.Tensor:
    """The last row again until there are enough."""
    missing = rows - len(tensor)
    return torch.cat([tensor, tensor[-1:].expand(missing, *tensor.shape[1:])]) if missing else tensor.clone()
