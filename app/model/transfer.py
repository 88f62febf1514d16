"""Copies between host and device, and marks in the device's stream, without waiting for the device."""

import itertools
import time
from collections.abc import Sequence
from typing import Any

import torch


class TransferError(RuntimeError):
    """A copy from the device was read before it was finished: its bytes may be those of another job."""


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


class Download:
    """Tensors on their way to the host, and the proof that they have arrived.

    The host's memory is that of earlier downloads, so a copy that is read too early shows the image of another job.
    Behind the copies, the device copies a number back that no earlier download had: a device runs the copies of a
    stream in order, so once the number has arrived, everything before it has.

    Args:
        device: the device of the tensors.
        tensors: the tensors to copy.
    """

    _numbers = itertools.count(1)

    def __init__(self, device: torch.device, tensors: Sequence[torch.Tensor]) -> None:
        self._number = next(self._numbers)
        receipt = upload(torch.tensor(self._number), device)
        self._tensors = [_to_host(tensor) for tensor in tensors]
        self._receipt = _to_host(receipt)
        self.end = mark(device)
        """The mark behind the copies."""

    @property
    def ready(self) -> bool:
        """Whether the copies are finished, so that `result` does not wait."""
        return passed(self.end)

    def result(self) -> list[torch.Tensor]:
        """The tensors on the host; waits for them.

        Raises:
            TransferError: the copies have not arrived, although the device has passed the mark behind them.
        """
        wait(self.end)
        if self._receipt.item() != self._number:
            raise TransferError("the device has passed the end of a download that has not arrived")
        return self._tensors


def _to_host(tensor: torch.Tensor) -> torch.Tensor:
    """Start to copy a tensor to the host. A tensor that is there is returned as it is."""
    if tensor.device.type != "cuda":
        return tensor
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)  # pragma: no cover
    # The memory may hold the number of this very download, which was uploaded from the same pool.
    return host.zero_().copy_(tensor, non_blocking=True)  # pragma: no cover


def mark(device: torch.device) -> Any:
    """A point in the device's stream of work. On CUDA the host's clock does not show when queued work is done."""
    if device.type != "cuda":
        return time.perf_counter()
    # `blocking` puts the thread to sleep in `wait`, instead of keeping a core busy.
    event = torch.cuda.Event(enable_timing=True, blocking=True)  # type: ignore[no-untyped-call]
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
