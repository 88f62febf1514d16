"""The device and dtype that a model runs on."""

import torch

from app.errors import CheckpointError
from app.model import gpus

_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


def resolve_device(device: str) -> str:
    """A device name as `cpu` or `cuda:N`. `auto` is the first CUDA device, or the CPU if there is no GPU.

    With a torch that is built without CUDA, `auto` is the CPU even on a machine with a GPU.

    Raises:
        CheckpointError: torch cannot use the device, or `auto` finds a GPU that torch cannot use.
    """
    if device == "cpu":
        return device
    named = "the NVIDIA GPU of this machine" if device == "auto" else device
    if not torch.cuda.is_available():
        if device == "auto" and not (torch.version.cuda and gpus.shows_gpu()):
            return "cpu"
        raise CheckpointError(f"torch cannot use {named}: {gpus.cuda_problem()}")
    index, count = 0 if device == "auto" else torch.device(device).index or 0, torch.cuda.device_count()
    if index >= count:
        raise CheckpointError(
            f"torch finds no {device} among {count} CUDA devices. Check `nvidia-smi` and the container runtime, or set "
            "IMG2IMG_DEVICES to devices that exist."
        )
    if problem := gpus.gpu_problem(index):
        raise CheckpointError(f"torch cannot use {named}: {problem}")
    return f"cuda:{index}"


def resolve_dtype(name: str, device: str) -> torch.dtype | None:
    """A dtype by its setting. `auto` is float16 on CUDA, and None on the CPU: `app.model.cpu_probe` chooses there."""
    if name == "auto":
        return torch.float16 if device.startswith("cuda") else None
    return _DTYPES[name]
