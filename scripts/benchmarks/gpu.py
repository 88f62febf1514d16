"""All ways of running the model on a CUDA device in one call, compared with the limit of an A10G."""

from pathlib import Path

import torch

from scripts.benchmarks import batch
from scripts.benchmarks.report import Outcome

WAYS = {
    "off": {},
    "off, the checkpoint's own VAE in float32": {"IMG2IMG_VAE": "checkpoint"},
    "off, tiny VAE": {"IMG2IMG_VAE": "tiny"},
    "off, float16 accumulation": {"IMG2IMG_FP16_ACCUMULATION": "1"},
    "default": {"IMG2IMG_COMPILE": "default"},
    "default, tiny VAE": {"IMG2IMG_COMPILE": "default", "IMG2IMG_VAE": "tiny"},
    "default, float16 accumulation": {"IMG2IMG_COMPILE": "default", "IMG2IMG_FP16_ACCUMULATION": "1"},
    "max": {"IMG2IMG_COMPILE": "max"},
    "max, float16 accumulation": {"IMG2IMG_COMPILE": "max", "IMG2IMG_FP16_ACCUMULATION": "1"},
}
JOBS = (1, 2, 4)
ROOFLINES = {"at most, its own VAE": 0.123, "at most, tiny VAE": 0.075}
"""Least seconds of an image on an A10G: 8.51 and 5.14 TFLOP at 70 TFLOP/s, or reading the weights at 600 GB/s."""


def case(model: Path) -> Outcome:
    """Measure each way. Needs a CUDA device. `model` is a value of `IMG2IMG_MODEL`, such as a hub id.

    All ways use channels-last memory order and transfers from and to pinned memory; those that compile also use fused
    projections. A way that fails has its error in its row.
    """
    rows: list[tuple[object, ...]] = [
        (way, jobs, *_measured(model, jobs, settings)) for way, settings in WAYS.items() for jobs in JOBS
    ]
    rows += [(f"A10G {name}", 1, 1 / seconds, seconds, "", "") for name, seconds in ROOFLINES.items()]
    name = torch.cuda.get_device_name()
    return Outcome("gpu", f"{model} on {name}, by IMG2IMG_COMPILE", ("way", "jobs", *batch.COLUMNS), rows)


def _measured(model: Path, jobs: int, settings: dict[str, str]) -> tuple[object, ...]:
    try:
        return batch.run(model, jobs, settings)
    except batch.Failed as error:
        return (str(error), "", "", "")
