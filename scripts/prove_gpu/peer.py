"""diffusers' own pipeline, measured in a process of its own: `python -m scripts.prove_gpu.peer HOW IMAGES`.

`HOW` is `eager` or `max-autotune`; `MODEL`, `VAE` and `DEVICE` are as `scripts.benchmarks.peers.pipeline` takes them.
Prints a line of JSON once it has made its first image, one with the time of an image, and one with the device's own.
"""

import sys
from pathlib import Path
from typing import Any

import torch

from scripts.benchmarks.peers import pipeline
from scripts.prove_gpu import images, measuring


def main(how: str, kept: Path) -> None:
    """Load the pipeline, compile it if that is asked for, and measure it."""
    pipe = pipeline.load()
    if how == "max-autotune":
        _compile(pipe)
    asked = images.job(0, "wizard", 4, 0.9)

    def one() -> None:
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        images.call(pipe, asked)

    # A compiled part compiles in the first call, and records its CUDA graph in the second.
    for _ in range(3):
        one()
    measuring.emit(ready=True)
    measuring.forget_peak()
    measuring.emit(seconds=measuring.seconds(one), peak=measuring.peak_bytes())
    images.save(kept, images.by_diffusers(pipe))
    measuring.emit(device_seconds=measuring.device_seconds(one))


def _compile(pipe: Any) -> None:
    """As diffusers' guide to fast inference has it, and the VAE's encoder too."""
    for part in (pipe.unet, pipe.vae):
        part.to(memory_format=torch.channels_last)
    for part in (pipe.unet, pipe.vae.encoder, pipe.vae.decoder):
        part.compile(mode="max-autotune", fullgraph=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
