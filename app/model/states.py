"""What a job is between two calls of the model, and what is on its way from the device."""

from dataclasses import dataclass, field
from typing import Any

import torch

from app.engine.messages import Job, Lookup
from app.model.schedulers import Stepper
from app.model.transfer import Download, passed, seconds_between, wait


@dataclass(eq=False)
class State:
    """One job between two UNet calls. It takes one row of the UNet's batch for each row of `embeds`.

    Attributes:
        latents: `[1, c, height / f, width / f]`, in the UNet's dtype, on the device; c is 4 and f 8 for SDXL's VAE.
        embeds: `[rows, 77, d]`; `rows` is 2 with guidance (negative prompt first), else 1.
        pooled: `[rows, p]`.
        time_ids: `[rows, 6]`, SDXL's micro-conditioning: original size, crop position and target size, in pixels.
        tokens_cut: the number of the prompt's tokens beyond the 77th.
        marks: before encoding the prompt, before encoding the image, and after.
        lookups: as in `Result`.
        index: the number of finished timesteps.
        redecoded: whether the VAE overflowed and decoded again in float32.
    """

    job: Job
    stepper: Stepper
    latents: torch.Tensor
    embeds: torch.Tensor
    pooled: torch.Tensor
    time_ids: torch.Tensor
    tokens_cut: int
    marks: list[Any]
    lookups: tuple[tuple[Lookup, bool], ...]
    index: int = 0
    redecoded: bool = field(default=False)

    @property
    def steps_run(self) -> int:
        return len(self.stepper.timesteps)

    @property
    def done(self) -> bool:
        return self.index == self.steps_run


@dataclass(eq=False)
class Tick:
    """A UNet call in the device's queue: the marks around it."""

    start: Any
    end: Any

    @property
    def ready(self) -> bool:
        """Whether the device has finished the call, so that `seconds` does not wait."""
        return passed(self.end)

    def seconds(self) -> float:
        """The time that the device took; waits until the call is finished."""
        wait(self.end)
        return seconds_between(self.start, self.end)


@dataclass(eq=False)
class Decoding:
    """An image that is being decoded or downloaded from the device.

    Attributes:
        download: `uint8[height, width, 3]`, and `bool[2]`: whether the image, and the latents, are all finite.
        start: the mark before decoding.
        end: the mark after it.
    """

    state: State
    download: Download
    start: Any
    end: Any

    @property
    def ready(self) -> bool:
        """Whether the download is finished, so that `collect` does not wait."""
        return self.download.ready
