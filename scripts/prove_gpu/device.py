"""The device that is proved: the first GPU, or the CPU where the stages are only tried."""

from typing import Any, Literal

import torch

from scripts.benchmarks.report import machine
from scripts.prove_gpu.stages import StageFailed


def name() -> str:
    """`cuda` or `cpu`, as torch and `IMG2IMG_DEVICES` call it."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def describe(size: Literal["full", "tiny"]) -> dict[str, Any]:
    """The device's `name`, and whether it is a `gpu`.

    Raises:
        StageFailed: there is no GPU for a full-size model.
    """
    if torch.cuda.is_available():
        return {"name": torch.cuda.get_device_name(), "gpu": True}
    if size == "full":
        raise StageFailed(
            f"torch {torch.__version__} finds no GPU that it can use; --size tiny tries the stages on a CPU"
        )
    facts = machine()
    return {"name": f"{facts['processor']}, {facts['cores']} cores", "gpu": False}
