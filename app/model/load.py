"""The loader of a worker's model: from settings to an `SdxlDiffusion` on its device."""

from typing import Literal

import torch

from app.model import devices, pipeline
from app.model.compiled import compile_parts
from app.model.diffusion import SdxlDiffusion
from app.model.packed import is_large, pack_one_of_each
from app.model.transfer import select
from app.settings import WorkerSettings


def load(settings: WorkerSettings, device: str) -> SdxlDiffusion:
    """Load the checkpoint that the settings select onto a device (`auto`, `cpu`, `cuda`, `cuda:N`).

    Raises:
        CheckpointError: the device cannot be used, or the checkpoint cannot be found, downloaded, used or compiled.
    """
    device = devices.resolve_device(device)
    select(torch.device(device))
    pipe, info = pipeline.load_pipeline(settings, device)
    torch.backends.cuda.matmul.allow_fp16_accumulation = settings.fp16_accumulation
    compiled = settings.compile != "off"
    if compiled:
        compile_parts(pipe, settings.compile, settings.compile_cache)
    pack_one_of_each(pipe.unet, pipe.vae)
    return SdxlDiffusion(
        pipe,
        torch.device(info.device),
        info,
        settings.cache_bytes,
        compiled=compiled,
        max_jobs=_max_jobs(settings.max_batch, pipe.unet, info.device),
        use_graphs=settings.cuda_graphs,
    )


def _max_jobs(max_batch: int | Literal["auto"], unet: torch.nn.Module, device: str) -> int | None:
    """The number of jobs on board at once; None to measure it.

    One image of a large model keeps all cores of a CPU busy: two on board make no more images a second
    (`scripts/bench --case batch`), and measuring that at each start would take most of a minute.
    """
    if max_batch != "auto":
        return max_batch
    return 1 if device == "cpu" and is_large(unet) else None
