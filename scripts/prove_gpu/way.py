"""One way of running the model, measured in a process of its own. `IMG2IMG_...` has its settings.

    python -m scripts.prove_gpu.way [--jobs N...] [--images FILE] [--experiment NAME]

Prints a line of JSON once it is ready, one for each number of jobs, and then the device's own time for each.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers.models.attention_processor import AttnProcessor

from app import malloc
from app.model.diffusion import SdxlDiffusion
from app.model.load import load
from app.settings import Settings
from app.worker.warmup import warm_up
from scripts.prove_gpu import images, measuring


def _cudnn_benchmark(diffusion: SdxlDiffusion) -> None:
    torch.backends.cudnn.benchmark = True


def _contiguous_unet(diffusion: SdxlDiffusion) -> None:
    diffusion.pipe.unet.to(memory_format=torch.contiguous_format)


def _contiguous_vae(diffusion: SdxlDiffusion) -> None:
    diffusion.pipe.vae.to(memory_format=torch.contiguous_format)


def _math_attention(diffusion: SdxlDiffusion) -> None:
    diffusion.pipe.vae.set_attn_processor(AttnProcessor())


EXPERIMENTS: dict[str, Callable[[SdxlDiffusion], None]] = {
    "cudnn.benchmark": _cudnn_benchmark,
    "contiguous UNet": _contiguous_unet,
    "contiguous VAE": _contiguous_vae,
    "math attention in the VAE": _math_attention,
}
"""Changes to a loaded model that no setting makes."""


def main() -> None:
    """Load the model, make it ready as a worker does, and measure it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", type=int, nargs="*", default=[])
    parser.add_argument("--images", type=Path)
    parser.add_argument("--experiment", choices=EXPERIMENTS)
    options = parser.parse_args()
    settings = Settings(cache_bytes=0)
    with malloc.loading():
        diffusion = load(settings, "auto")
    if options.experiment:
        EXPERIMENTS[options.experiment](diffusion)
    warm_up(diffusion, settings.compile)
    while diffusion.pack_next_layers():
        pass
    measuring.emit(ready=True, graphs=diffusion.graphs)
    for jobs in options.jobs:
        measuring.forget_peak()
        seconds = measuring.seconds(lambda: _together(diffusion, jobs))  # noqa: B023
        measuring.emit(jobs=jobs, seconds=seconds, peak=measuring.peak_bytes())
    if options.images:
        images.save(options.images, images.ours(diffusion))
    # Last: where the profiler fails, the process may end.
    for jobs in options.jobs:
        measuring.emit(jobs=jobs, device_seconds=measuring.device_seconds(lambda: _together(diffusion, jobs)))  # noqa: B023


def _together(diffusion: SdxlDiffusion, jobs: int) -> None:
    """From the admission of jobs to all of their images on the host, with 4 steps and strength 0.9 each."""
    states = [diffusion.admit(images.job(index, f"wizard {index}", 4, 0.9)) for index in range(jobs)]
    while not states[0].done:
        diffusion.tick(states)
    for decoding in diffusion.finish(states):
        diffusion.collect(decoding)


if __name__ == "__main__":
    main()
