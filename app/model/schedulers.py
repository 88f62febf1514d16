"""What happens to one job's latents between two UNet calls: scaling before it, the scheduler's update after it."""

import copy
import inspect
from typing import Any, Protocol

import torch
from diffusers import EulerAncestralDiscreteScheduler
from diffusers.utils.torch_utils import randn_tensor

from app.model.transfer import upload


class Stepper(Protocol):
    """One job's way through its timesteps.

    Attributes:
        timesteps: `[steps_run]`, on the CPU as the schedulers keep their sigmas, so that no step waits for the device.
        promised: what the last prediction took the latents to be without noise, or the nearest to it that is known.
    """

    timesteps: torch.Tensor
    promised: torch.Tensor

    def noised(self, clean: torch.Tensor) -> torch.Tensor:
        """The latents to start from."""

    def scaled(self, latents: torch.Tensor, index: int) -> torch.Tensor:
        """The UNet's input at a step."""

    def stepped(self, latents: torch.Tensor, prediction: torch.Tensor, index: int) -> torch.Tensor:
        """The latents after it, in the prediction's dtype."""


def stepper(scheduler: Any, steps: int, steps_run: int, clean: torch.Tensor, generator: torch.Generator) -> Stepper:
    """The last `steps_run` of `steps` timesteps of a scheduler.

    Args:
        scheduler: the pipeline's; it is copied.
        steps: as `set_timesteps` takes them.
        steps_run: how many of them are run.
        clean: latents `[1, c, h, w]`, for their shape, dtype and device.
        generator: on the CPU; the noise is drawn from it in diffusers' order: at first, then at each ancestral step.
    """
    scheduler = copy.deepcopy(scheduler)
    scheduler.set_timesteps(steps)
    begin = (steps - steps_run) * scheduler.order
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(begin)
    if type(scheduler) is EulerAncestralDiscreteScheduler and scheduler.config.prediction_type == "epsilon":
        return Ancestral(scheduler, begin, clean, generator)
    return Scheduled(scheduler, begin, clean, generator)


class Scheduled:
    """Any scheduler of diffusers, by its own methods."""

    def __init__(self, scheduler: Any, begin: int, clean: torch.Tensor, generator: torch.Generator) -> None:
        self.timesteps: torch.Tensor = scheduler.timesteps[begin:]
        self._scheduler = scheduler
        self._noise = randn_tensor(clean.shape, generator=generator, device=clean.device, dtype=clean.dtype)
        accepted = set(inspect.signature(scheduler.step).parameters)
        wanted = {"generator": generator, "eta": 0.0}
        self._arguments = {name: value for name, value in wanted.items() if name in accepted}

    def noised(self, clean: torch.Tensor) -> torch.Tensor:
        latents: torch.Tensor = self._scheduler.add_noise(clean, self._noise, self.timesteps[:1])
        return latents

    def scaled(self, latents: torch.Tensor, index: int) -> torch.Tensor:
        sample: torch.Tensor = self._scheduler.scale_model_input(latents, self.timesteps[index])
        return sample

    def stepped(self, latents: torch.Tensor, prediction: torch.Tensor, index: int) -> torch.Tensor:
        moment = self.timesteps[index]
        output = self._scheduler.step(prediction, moment, latents, **self._arguments)
        after: torch.Tensor = output.prev_sample
        self.promised = getattr(output, "pred_original_sample", after)
        return after


class Ancestral:
    """Euler's method with ancestral sampling (Karras et al., arXiv 2206.00364; k-diffusion), as SDXL-Turbo is run.

    Diffusers' numbers to the last bit. Its own step draws the noise on the CPU and waits for the device to take it; all
    of it is drawn here, and on its way, before the first step.
    """

    def __init__(self, scheduler: Any, begin: int, clean: torch.Tensor, generator: torch.Generator) -> None:
        self.timesteps: torch.Tensor = scheduler.timesteps[begin:]
        self._sigmas: torch.Tensor = scheduler.sigmas[begin:]
        draws = [torch.randn(clean.shape, generator=generator, dtype=clean.dtype) for _ in range(len(self._sigmas))]
        self._noise = upload(torch.stack(draws), clean.device)

    def noised(self, clean: torch.Tensor) -> torch.Tensor:
        return clean + self._noise[0] * self._sigmas[0].to(clean.dtype)

    def scaled(self, latents: torch.Tensor, index: int) -> torch.Tensor:
        result: torch.Tensor = latents / ((self._sigmas[index] ** 2 + 1) ** 0.5)
        return result

    def stepped(self, latents: torch.Tensor, prediction: torch.Tensor, index: int) -> torch.Tensor:
        sigma, sigma_to = self._sigmas[index], self._sigmas[index + 1]
        sigma_up = (sigma_to**2 * (sigma**2 - sigma_to**2) / sigma**2) ** 0.5
        sigma_down = (sigma_to**2 - sigma_up**2) ** 0.5
        sample = latents.float()
        original = self.promised = sample - sigma * prediction
        derivative = (sample - original) / sigma
        after = sample + derivative * (sigma_down - sigma) + self._noise[index + 1] * sigma_up
        return after.to(prediction.dtype)
