"""The loader of a worker's model: from settings to an `SdxlDiffusion` on its device."""

import torch

from app.model import devices, pipeline
from app.model.batch_limit import capacity
from app.model.compiled import compile_parts, compiled_batch_sizes
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
    max_jobs = capacity(settings.max_batch, info.device, large=is_large(pipe.unet))
    sizes: tuple[int, ...] = ()
    if settings.compile != "off":
        compile_parts(pipe, settings.compile, settings.compile_cache)
        sizes = compiled_batch_sizes(max_jobs)
    pack_one_of_each(pipe.unet, pipe.vae)
    return SdxlDiffusion(pipe, torch.device(info.device), info, settings.cache_bytes, sizes, max_jobs)
