"""Which NVIDIA GPUs torch can use, and if it cannot, why not and what to do."""

import os
import re
from collections.abc import Iterable
from pathlib import Path

import torch

CONTROL_FILE = Path("/dev/nvidiactl")
"""Exists where NVIDIA's driver is loaded, and in a container that has been given GPUs."""

VERSION_FILE = Path("/proc/driver/nvidia/version")
"""Names the version of the loaded driver. A container without GPUs sees it too."""

OLDEST_DRIVERS = {"12": 525, "13": 580}
"""The oldest driver for each major version of CUDA."""


def shows_gpu() -> bool:
    """Whether the driver shows a GPU to this process and `CUDA_VISIBLE_DEVICES` does not hide all of them."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return False
    # torch counts with NVML, which also lists GPUs that CUDA cannot use.
    return CONTROL_FILE.exists() or torch.cuda.device_count() > 0


def cuda_problem() -> str:
    """Sentences on why torch finds no usable GPU at all, in the words of torch first, and on what to do."""
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
        reason = "it gives no reason"
    except (RuntimeError, AssertionError) as error:
        reason = first_line(error)
    return _with_advice(reason)


def gpu_problem(index: int) -> str:
    """Sentences on why torch cannot use one GPU, and on what to do; empty if it can.

    Creates a CUDA context on that GPU and makes it torch's current device: otherwise the next CUDA call of this process
    would create another context, on the first GPU.
    """
    try:
        torch.cuda.set_device(index)
        torch.cuda.mem_get_info(index)
        capability = torch.cuda.get_device_capability(index)
    except RuntimeError as error:
        return _with_advice(first_line(error))
    built = torch.cuda.get_arch_list()
    if has_kernels(capability, built):
        return ""
    return (
        f"its compute capability is {capability[0]}.{capability[1]}, and torch {torch.__version__} has kernels for "
        f"{', '.join(built)} only. Install a build of torch that supports it, or set IMG2IMG_DEVICES to another device."
    )


def has_kernels(capability: tuple[int, int], built: Iterable[str]) -> bool:
    """Whether code that is built for these architectures (`sm_86`, `compute_90`) runs on a compute capability.

    Machine code (`sm`) runs on the same major version from its minor version on, and with the suffix `a` on nothing
    else. Intermediate code (`compute`) runs on whatever is newer.
    """
    for kind, major, minor, suffix in re.findall(r"\b(sm|compute)_(\d+)(\d)([af]?)\b", " ".join(built)):
        version = int(major), int(minor)
        if suffix == "a":
            fits = capability == version
        elif kind == "sm":
            fits = capability[0] == version[0] and capability >= version
        else:
            fits = capability >= version
        if fits:
            return True
    return False


def first_line(error: Exception) -> str:
    """The message of a CUDA error without torch's advice on debugging."""
    return str(error).partition("\n")[0]


def driver_version() -> str:
    """The version of the loaded NVIDIA driver, such as `580.95.05`; empty if it is not known."""
    try:
        line = VERSION_FILE.read_text().partition("\n")[0]
    except OSError:
        return ""
    found = re.search(r"\s(\d+(?:\.\d+)+)", line)
    return found[1] if found else ""


def _with_advice(reason: str) -> str:
    sentence = reason.rstrip(".") + "."
    build = torch.version.cuda
    if build is None:
        return f"{sentence} Install torch's CUDA build, or set IMG2IMG_DEVICES=cpu."
    driver, oldest = driver_version(), OLDEST_DRIVERS.get(build.partition(".")[0], 0)
    facts = f"torch is built for CUDA {build}, which needs driver {oldest} or later; " + (
        f"the driver is {driver}." if driver else "the driver's version is not known."
    )
    return f"{sentence} {facts} {_remedy(driver, oldest)}"


def _remedy(driver: str, oldest: int) -> str:
    if driver and int(driver.partition(".")[0]) < oldest:
        return "Upgrade the driver, install torch's build for an older CUDA, or set IMG2IMG_DEVICES=cpu."
    if CONTROL_FILE.exists() and not _can_open(CONTROL_FILE):
        return (
            f"This process may not open {CONTROL_FILE}: a container loses its GPUs when systemd on the host reloads "
            "its units. Start the container again."
        )
    return (
        "Check `nvidia-smi`, CUDA_VISIBLE_DEVICES and the container runtime; start the container again if the driver "
        "was upgraded under it; or set IMG2IMG_DEVICES=cpu."
    )


def _can_open(device: Path) -> bool:
    # Mode bits do not show what a container's device rules forbid.
    try:
        os.close(os.open(device, os.O_RDWR))
    except OSError:
        return False
    return True
