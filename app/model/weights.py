"""Moves weights from their mapped files to the device and dtype where they are used.

Tensors that are loaded in their stored dtype are views of memory-mapped files and take no memory yet. Here several
threads read, cast and move them one by one, and each releases the file's pages at once, so that memory never holds two
copies of all weights.
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


MAX_THREADS = 8
"""More threads gain nothing, and each holds a tensor of up to 60 MB while it casts it."""


def stored_dtype(file: Path) -> torch.dtype:
    """The dtype of the first weight in a safetensors file; all weights of a model have the same one."""
    with safe_open(file, "pt") as weights:
        name = next(iter(weights.keys()))
        return _STORED.get(weights.get_slice(name).get_dtype(), torch.float32)


def move_to_device(
    model: nn.Module, device: torch.device, dtype: torch.dtype, change: Callable[[nn.Module], nn.Module] | None = None
) -> None:
    """Move a model's floating-point tensors to a device and dtype, and its other tensors to the device.

    Args:
        model: the model as loaded, with its tensors on the CPU.
        device: the target device.
        dtype: the target dtype.
        change: called with each submodule after its own tensors are moved; returns the module to replace it.
    """
    # Parents and names, not the submodules: a reference would keep a replaced submodule's weights in memory.
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
    """Call a function of torch for each item, on up to `MAX_THREADS` threads with one torch thread each.

    While the kernel maps pages for a cast's output, the threads of the same cast wait for each other; separate casts do
    not.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(min(before, MAX_THREADS)) as pool:
            list(pool.map(function, items))
    finally:
        torch.set_num_threads(before)


def _move(module: nn.Module, device: torch.device, dtype: torch.dtype, shared: set[int]) -> None:
    """Move the tensors of this module, without its submodules. Pages at the `shared` addresses are not released."""
    for name, parameter in module.named_parameters(recurse=False):
        moved = parameter.detach().to(device, dtype if parameter.is_floating_point() else None)
        if parameter.data_ptr() not in {moved.data_ptr(), *shared}:
            release_pages(parameter.detach())
        # `requires_grad` decides which matrix product torch uses, even in inference mode.
        setattr(module, name, nn.Parameter(moved, parameter.requires_grad))
    for name, buffer in module.named_buffers(recurse=False):
        setattr(module, name, buffer.to(device, dtype if buffer.is_floating_point() else None))


def release_pages(tensor: torch.Tensor) -> None:
    """Release the memory pages that lie completely within a tensor (`madvise`, `MADV_DONTNEED`).

    Reading a view of a mapped file loads them again. A tensor in anonymous memory must not be read any more.
    """
    page = mmap.PAGESIZE
    start = -(-tensor.data_ptr() // page) * page
    length = (tensor.data_ptr() + tensor.nbytes) // page * page - start
    if length > 0 and hasattr(mmap, "MADV_DONTNEED"):
        ctypes.CDLL(None, use_errno=True).madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), mmap.MADV_DONTNEED)
