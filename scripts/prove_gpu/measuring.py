"""What the measuring processes share: medians, memory, the device's own time, and lines of JSON."""

import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from app.worker.worker import peak_memory
from scripts.prove_gpu.facts import synchronize

LEAST_ROUNDS, MOST_ROUNDS = 3, 30
ENOUGH_SECONDS, MOST_SECONDS = 4.0, 20.0
"""No round starts after the first, unless there were fewer than `LEAST_ROUNDS`; none at all after the second."""


def emit(**values: Any) -> None:
    """Print one line of JSON for the parent process."""
    print(json.dumps(values), flush=True)


def seconds(call: Callable[[], object]) -> float:
    """Median seconds of a call that ends when its result is on the host. It is called once before."""
    call()
    found: list[float] = []
    begun = time.perf_counter()
    while len(found) < MOST_ROUNDS:
        elapsed = time.perf_counter() - begun
        if found and elapsed > (ENOUGH_SECONDS if len(found) >= LEAST_ROUNDS else MOST_SECONDS):
            break
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return statistics.median(found)


def forget_peak() -> None:
    """Begin to measure `peak_bytes` anew; a process on a CPU cannot."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_bytes() -> int:
    """The most memory that torch has reserved on the GPU, or that the process had on the CPU."""
    return torch.cuda.max_memory_reserved() if torch.cuda.is_available() else peak_memory()


def device_seconds(call: Callable[[], object]) -> float | None:
    """Seconds in which the GPU computes or copies during a call; None if there is no GPU, or no trace of it."""
    if not torch.cuda.is_available():
        return None
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        call()
        synchronize()
    spans = sorted(
        (event.time_range.start, event.time_range.end)
        for event in profile.events() or ()
        if event.device_type == torch.profiler.DeviceType.CUDA and not event.is_user_annotation
    )
    return union(spans) / 1e6 if spans else None


def union(spans: list[tuple[float, float]]) -> float:
    """The length of the union of spans, sorted by their start."""
    total, reached = 0.0, float("-inf")
    for start, end in spans:
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total
