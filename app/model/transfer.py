"""Between the host and a device: tensors there and back, and points in the device's time, without waiting for it."""

import time
from typing import Any

import torch


def select(device: torch.device) -> None:
    """Make it torch's current device, before this process calls CUDA for anything else.

    Whatever is told no device otherwise belongs to the first GPU, which also gets a context of this process.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)


def upload(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Onto the device without waiting for what that is doing."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)  # pragma: no cover
    return tensor.to(device)


def download(tensor: torch.Tensor) -> torch.Tensor:
    """To the host, whenever the device comes to it: a `mark` made after this says whether it has."""
    if tensor.device.type != "cuda":
        return tensor
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)  # pragma: no cover
    return host.copy_(tensor, non_blocking=True)  # pragma: no cover


def mark(device: torch.device) -> Any:
    """A point in the device's time: the host's clock says nothing of work that CUDA has only been handed."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    # Without a stream it is that of torch's current device, whose work says nothing of this one's.
    event.record(torch.cuda.current_stream(device))
    return event


def passed(point: Any) -> bool:
    """Whether the device has come to a mark."""
    return isinstance(point, float) or bool(point.query())


def wait(point: Any) -> None:
    """Until the device has come to a mark."""
    if not isinstance(point, float):
        point.synchronize()  # pragma: no cover


def seconds_between(start: Any, end: Any) -> float:
    """From one mark to another, both passed."""
    if isinstance(start, float):
        return float(end - start)
    return float(start.elapsed_time(end)) / 1000  # pragma: no cover
