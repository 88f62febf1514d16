"""Weights from their files into the memory where they are used, in their dtype.

Loaded as they are stored, tensors are windows onto the mapped files: that costs nothing yet. Here each is read, cast
and moved, by several threads, and its pages are given back at once, so that no second copy stands beside the weights.
"""

import ctypes
import mmap
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import safe_open
from torch import nn

T = TypeVar("T")

_STORED = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}


MOST_THREADS = 8
"""More gain nothing, and each holds a tensor of up to 60 MB while it is cast and changed."""


def stored_dtype(file: Path) -> torch.dtype:
    """The dtype of the first weight in a safetensors file: a model's weights all have one."""
    with safe_open(file, "pt") as weights:
        name = next(iter(weights.keys()))
        return _STORED.get(weights.get_slice(name).get_dtype(), torch.float32)


def move_to_device(
    model: nn.Module, device: torch.device, dtype: torch.dtype, change: Callable[[nn.Module], nn.Module] | None = None
) -> None:
    """Move a model's floating-point tensors to a device and dtype, and all others to the device.

    Args:
        model: as it was loaded, its tensors on the CPU.
        device: where to.
        dtype: what to.
        change: what becomes of each module below it after its own tensors were moved.
    """
    # Without the modules themselves, which would keep what has been changed.
    places = [(parent, name) for parent in model.modules() for name, _ in parent.named_children()]
    addresses = Counter(one.data_ptr() for _, one in model.named_parameters(remove_duplicate=False))
    shared = {address for address, count in addresses.items() if count > 1}

    def move(where: tuple[nn.Module, str]) -> None:
        parent, name = where
        child = getattr(parent, name)
        _move(child, device, dtype, shared)
        if change:
            setattr(parent, name, change(child))

    _move(model, device, dtype, shared)
    map_threads(move, places)


def map_threads(function: Callable[[T], None], items: Sequence[T]) -> None:
    """Call a function of torch's for each of some items, on as many threads as torch computes with, each by itself.

    Two threads of one cast wait for each other while pages are found for what they write; those of two casts do not.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(min(before, MOST_THREADS)) as pool:
            list(pool.map(function, items))
    finally:
        torch.set_num_threads(before)


def _move(module: nn.Module, device: torch.device, dtype: torch.dtype, shared: set[int]) -> None:
    """The tensors of this very module, not of those below it; `shared` are the addresses that others still read."""
    for name, parameter in module.named_parameters(recurse=False):
        moved = parameter.detach().to(device, dtype if parameter.is_floating_point() else None)
        if parameter.data_ptr() not in {moved.data_ptr(), *shared}:
            release_pages(parameter.detach())
        # Whether it needs gradients decides how torch multiplies by it, even where it keeps none.
        setattr(module, name, nn.Parameter(moved, parameter.requires_grad))
    for name, buffer in module.named_buffers(recurse=False):
        setattr(module, name, buffer.to(device, dtype if buffer.is_floating_point() else None))


def release_pages(tensor: torch.Tensor) -> None:
    """Give back the whole pages that a tensor's window covers; read again, they come from the file again.

    A tensor that is no window onto a file must not be read any more.
    """
    page = mmap.PAGESIZE
    start = -(-tensor.data_ptr() // page) * page
    length = (tensor.data_ptr() + tensor.nbytes) // page * page - start
    if length > 0 and hasattr(mmap, "MADV_DONTNEED"):
        ctypes.CDLL(None, use_errno=True).madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), mmap.MADV_DONTNEED)
