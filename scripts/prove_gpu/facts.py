"""The card, the versions, and what the card is capable of: matrix products, and copies in each direction."""

import importlib.metadata
import platform
import subprocess
import time
from collections.abc import Callable, Iterator

import torch

from scripts.benchmarks.report import machine
from scripts.prove_gpu import device, wheels
from scripts.prove_gpu.record import Part
from scripts.prove_gpu.stages import Context

GIB = 2**30
ROUNDS = 10


def run(context: Context, part: Part) -> None:
    """Write the facts, the rates, and which packages differ from the pinned ones."""
    facts = machine()
    for name in ("processor", "cores", "memory"):
        part.row("Facts", fact=name, value=facts[name])
    for name, value in _versions():
        part.row("Facts", fact=name, value=value)
    if torch.cuda.is_available():
        for name, value in _card():
            part.row("Facts", fact=name, value=value)
    for name, rate in _rates(context):
        part.row("Rates", what=name, found=rate)
    if others := list(_not_as_pinned()):
        part.note(f"Packages that are not as the lock files have them: {', '.join(others)}.")


def _versions() -> Iterator[tuple[str, str]]:
    yield "Python", platform.python_version()
    yield "torch", torch.__version__
    for name in ("triton", "diffusers", "transformers"):
        try:
            yield name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield name, "is not installed"


def _card() -> Iterator[tuple[str, str]]:
    card = torch.cuda.get_device_properties(0)
    yield "GPU", card.name
    yield "compute capability", f"{card.major}.{card.minor}; torch is built for {' '.join(torch.cuda.get_arch_list())}"
    yield "GPU memory", f"{card.total_memory / GIB:.1f} GiB"
    yield "multiprocessors", str(card.multi_processor_count)
    yield "CUDA of torch", str(torch.version.cuda)
    yield "cuDNN", str(torch.backends.cudnn.version())  # type: ignore[no-untyped-call]
    yield "driver", _driver()


def _driver() -> str:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown: nvidia-smi does not say"


def _rates(context: Context) -> Iterator[tuple[str, str]]:
    """Rates on the device, which take a second; a tiny size measures the same on a CPU."""
    where, large = device.name(), context.size == "full"
    dtype = torch.float16 if where == "cuda" else torch.float32
    side = 8192 if large else 1024
    left, right = (torch.randn(side, side, device=where, dtype=dtype) for _ in range(2))
    product = 2 * side**3 / _seconds(lambda: torch.mm(left, right))
    yield f"{str(dtype).removeprefix('torch.')} product of matrices of {side} x {side}", f"{product / 1e12:.3g} TFLOP/s"
    source = torch.empty(GIB if large else GIB // 16, dtype=torch.uint8, device=where)
    target = torch.empty_like(source)
    # A copy reads each byte and writes it.
    copied = 2 * source.nbytes / _seconds(lambda: target.copy_(source))
    yield "copy on the device, read and written", f"{copied / 1e9:.3g} GB/s"
    if where == "cuda":
        host = torch.empty(source.nbytes, dtype=torch.uint8, pin_memory=True)
        up = host.nbytes / _seconds(lambda: source.copy_(host, non_blocking=True))
        down = host.nbytes / _seconds(lambda: host.copy_(source, non_blocking=True))
        yield "upload from pinned memory", f"{up / 1e9:.3g} GB/s"
        yield "download to pinned memory", f"{down / 1e9:.3g} GB/s"


def _seconds(call: Callable[[], object]) -> float:
    """Seconds of a call on the device, the mean of some in a row."""
    for _ in range(3):
        call()
    synchronize()
    start = time.perf_counter()
    for _ in range(ROUNDS):
        call()
    synchronize()
    return (time.perf_counter() - start) / ROUNDS


def synchronize() -> None:
    """Wait until the device has nothing to do."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _not_as_pinned() -> Iterator[str]:
    for line in wheels.requirements():
        name, _, pinned = line.partition(";")[0].strip().partition("==")
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield f"{name} is missing"
            continue
        if found != pinned:
            yield f"{name} {found} instead of {pinned}"
