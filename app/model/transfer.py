"""Copies between host and device, and marks in the device's stream, without waiting for the device."""

import time
from typing import Any

import torch


def select(device: torch.device) -> None:
    """Make `device` torch's current device. Call it before all other CUDA calls of the process.

    Otherwise calls without a device argument go to the first GPU, where they also create a CUDA context.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)


def upload(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a tensor to the device, without waiting for the device."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)  # pragma: no cover
    return tensor.to(device)


def download(tensor: torch.Tensor) -> torch.Tensor:
    """Start to copy a tensor to the host. Its values are valid once the device has passed a `mark` made after this."""
    if tensor.device.type != "cuda":
        return tensor
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)  # pragma: no cover
    return host.copy_(tensor, non_blocking=True)  # pragma: no cover


def mark(device: torch.device) -> Any:
    """A point in the device's stream of work. On CUDA the host's clock does not show when queued work is done."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    # Without an argument, `record` takes the stream of torch's current device, which may be another one.
    event.record(torch.cuda.current_stream(device))
    return event


def passed(point: Any) -> bool:
    """Whether the device has passed a mark."""
    return isinstance(point, float) or bool(point.query())


def wait(point: Any) -> None:
    """Wait until the device has passed a mark."""
    if not isinstance(point, float):
        point.synchronize()  # pragma: no cover


def seconds_between(start: Any, end: Any) -> float:
    """Seconds between two marks, both of which have been passed."""
    if isinstance(start, float):
        return float(end - start)
    return float(start.elapsed_time(end)) / 1000  # pragma: no cover
