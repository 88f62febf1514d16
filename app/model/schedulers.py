"""The scheduler's part of a denoising step: scaling the UNet's input, and updating the latents from its output.

The methods have diffusers' names. A step is given by its index, from 0 to `steps_run - 1`.
"""

import copy
import inspect
from typing import Any, Protocol

import torch
from diffusers import EulerAncestralDiscreteScheduler

from app.model.transfer import upload


class Stepper(Protocol):
    """One job's scheduler and its noise.

    Attributes:
        timesteps: `[steps_run]`, on the CPU, where diffusers keeps the sigmas too: no step waits for the device.
        pred_original_sample: `[1, c, h, w]`, the latents without noise as the last step predicted them. It is
            `prev_sample` where the scheduler does not return one.
    """

    timesteps: torch.Tensor
    pred_original_sample: torch.Tensor

    def add_noise(self, original_samples: torch.Tensor) -> torch.Tensor:
        """Latents `[1, c, h, w]` with the noise of the first timestep."""

    def scale_model_input(self, sample: torch.Tensor, index: int) -> torch.Tensor:
        """Latents `[n, c, h, w]` scaled to the UNet's input."""

    def step(self, model_output: torch.Tensor, index: int, sample: torch.Tensor) -> torch.Tensor:
        """The latents after a step (diffusers' `prev_sample`), in the dtype of `model_output`."""


def create_stepper(
    scheduler: Any, steps: int, steps_run: int, latents: torch.Tensor, generator: torch.Generator
) -> Stepper:
    """The last `steps_run` of `steps` timesteps of a scheduler.

    Args:
        scheduler: the pipeline's scheduler; it is copied.
        steps: the argument of `set_timesteps`.
        steps_run: the number of timesteps to run, counted from the end.
        latents: `[1, c, h, w]`; their shape, dtype and device are those of the noise.
        generator: on the CPU. The noise is drawn in diffusers' order: the initial noise, then one draw for each
            ancestral step.
    """
    scheduler = copy.deepcopy(scheduler)
    scheduler.set_timesteps(steps)
    begin = (steps - steps_run) * scheduler.order
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(begin)
    if type(scheduler) is EulerAncestralDiscreteScheduler and scheduler.config.prediction_type == "epsilon":
        return EulerAncestral(scheduler, begin, latents, generator)
    return DiffusersScheduler(scheduler, begin, latents, generator)


class DiffusersScheduler:
    """Any diffusers scheduler, called through its own methods."""

    def __init__(self, scheduler: Any, begin: int, latents: torch.Tensor, generator: torch.Generator) -> None:
        self.timesteps: torch.Tensor = scheduler.timesteps[begin:]
        self._scheduler = scheduler
        self._noise = upload(torch.randn(latents.shape, generator=generator, dtype=latents.dtype), latents.device)
        accepted = set(inspect.signature(scheduler.step).parameters)
        arguments = {"generator": generator, "eta": 0.0}
        self._arguments = {name: value for name, value in arguments.items() if name in accepted}

    def add_noise(self, original_samples: torch.Tensor) -> torch.Tensor:
        latents: torch.Tensor = self._scheduler.add_noise(original_samples, self._noise, self.timesteps[:1])
        return latents

    def scale_model_input(self, sample: torch.Tensor, index: int) -> torch.Tensor:
        scaled: torch.Tensor = self._scheduler.scale_model_input(sample, self.timesteps[index])
        return scaled

    def step(self, model_output: torch.Tensor, index: int, sample: torch.Tensor) -> torch.Tensor:
        output = self._scheduler.step(model_output, self.timesteps[index], sample, **self._arguments)
        prev_sample: torch.Tensor = output.prev_sample
        self.pred_original_sample = getattr(output, "pred_original_sample", prev_sample)
        return prev_sample


class EulerAncestral:
    """Euler's method with ancestral sampling (Karras et al., arXiv 2206.00364; k-diffusion), SDXL-Turbo's scheduler.

    Results are bit-equal to diffusers' `EulerAncestralDiscreteScheduler`. That class draws the noise of each step on
    the CPU and waits for its upload. This one draws and uploads all noise before the first step.
    """

    def __init__(self, scheduler: Any, begin: int, latents: torch.Tensor, generator: torch.Generator) -> None:
        self.timesteps: torch.Tensor = scheduler.timesteps[begin:]
        self._sigmas: torch.Tensor = scheduler.sigmas[begin:]
        draws = [torch.randn(latents.shape, generator=generator, dtype=latents.dtype) for _ in range(len(self._sigmas))]
        self._noise = upload(torch.stack(draws), latents.device)

    def add_noise(self, original_samples: torch.Tensor) -> torch.Tensor:
        return original_samples + self._noise[0] * self._sigmas[0].to(original_samples.dtype)

    def scale_model_input(self, sample: torch.Tensor, index: int) -> torch.Tensor:
        scaled: torch.Tensor = sample / ((self._sigmas[index] ** 2 + 1) ** 0.5)
        return scaled

    def step(self, model_output: torch.Tensor, index: int, sample: torch.Tensor) -> torch.Tensor:
        sigma, sigma_to = self._sigmas[index], self._sigmas[index + 1]
        sigma_up = (sigma_to**2 * (sigma**2 - sigma_to**2) / sigma**2) ** 0.5
        sigma_down = (sigma_to**2 - sigma_up**2) ** 0.5
        sample = sample.float()
        self.pred_original_sample = sample - sigma * model_output
        derivative = (sample - self.pred_original_sample) / sigma
        prev_sample = sample + derivative * (sigma_down - sigma) + self._noise[index + 1] * sigma_up
        return prev_sample.to(model_output.dtype)
