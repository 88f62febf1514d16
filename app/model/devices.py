"""The device and dtype that a model runs on."""

import os
from pathlib import Path

import torch

from app.errors import CheckpointError

DRIVER_FILE = Path("/dev/nvidiactl")
"""Exists where NVIDIA's driver is loaded, and in a container that has been given GPUs."""


_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


def resolve_device(device: str) -> str:
    """A device name as `cpu` or `cuda:N`. `auto` is the first CUDA device, or the CPU if there is no GPU.

    With a torch that is built without CUDA, `auto` is the CPU even on a machine with a GPU.

    Raises:
        CheckpointError: torch cannot use the device, or `auto` finds a GPU that torch cannot use.
    """
    if device == "cpu":
        return device
    usable = torch.cuda.is_available()
    if device == "auto":
        if not usable and torch.version.cuda and _shows_gpu():
            raise CheckpointError(f"torch cannot use the NVIDIA GPU of this machine: {_why_unusable()}")
        return "cuda:0" if usable else "cpu"
    if not usable:
        raise CheckpointError(f"torch cannot use {device}: {_why_unusable()}")
    index, count = torch.device(device).index or 0, torch.cuda.device_count()
    if index >= count:
        raise CheckpointError(
            f"torch finds no {device} among {count} CUDA devices. Check `nvidia-smi` and the container runtime, or set "
            "IMG2IMG_DEVICES to devices that exist."
        )
    return f"cuda:{index}"


def _shows_gpu() -> bool:
    """Whether the driver shows a GPU to this process and `CUDA_VISIBLE_DEVICES` does not hide all of them."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return False
    # torch counts with NVML, which also lists GPUs that CUDA cannot use.
    return DRIVER_FILE.exists() or torch.cuda.device_count() > 0


def first_line(error: Exception) -> str:
    """The message of a CUDA error without torch's advice on debugging."""
    return str(error).partition("\n")[0]


def _why_unusable() -> str:
    """The message of torch, which names the version of a driver that is too old, and what to do."""
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
        reason = "it gives no reason."
    except (RuntimeError, AssertionError) as error:
        reason = first_line(error).rstrip(".") + "."
    if torch.version.cuda is None:
        return f"{reason} Install torch's CUDA build, or set IMG2IMG_DEVICES=cpu."
    return (
        f"{reason} torch is built for CUDA {torch.version.cuda}. Check `nvidia-smi` and the container runtime, upgrade "
        "the driver (CUDA 13 needs 580 or later), or set IMG2IMG_DEVICES=cpu."
    )


def resolve_dtype(name: str, device: str) -> torch.dtype:
    """A dtype by its setting. `auto` is float16 on CUDA and float32 elsewhere."""
    if name == "auto":
        return torch.float16 if device.startswith("cuda") else torch.float32
    return _DTYPES[name]
