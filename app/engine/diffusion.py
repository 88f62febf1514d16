"""The tensors: a prompt and a picture to a `State`, one UNet call for many `State`s, `State`s to pixels.

The loop is our own, so that jobs at different steps share a UNet call; its numbers are those of
`diffusers.StableDiffusionXLImg2ImgPipeline.__call__`, whose order of operations and random draws it keeps: from the
job's own CPU generator first the VAE's posterior sample, then the initial noise, then one draw per ancestral step.
"""

import copy
import inspect
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from diffusers import StableDiffusionXLImg2ImgPipeline
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.utils.torch_utils import randn_tensor

from app.engine import checkpoint
from app.engine.encoders import Encoders, Prompt
from app.engine.jobs import Job, Lookup, ModelInfo, Pixels, Result, Timings
from app.settings import Settings


@dataclass(eq=False)
class State:
    """One job between two UNet calls. A row of the UNet's batch is one of its `embeds`.

    Attributes:
        latents: `[1, c, height / f, width / f]`, in the UNet's dtype, on the device; c is 4 and f 8 for SDXL's VAE.
        embeds: `[rows, 77, d]`; `rows` is 2 with guidance (negative prompt first), else 1.
        pooled: `[rows, p]`.
        time_ids: `[rows, 6]`, SDXL's micro-conditioning.
        timesteps: `[steps_run]`, on the CPU as the schedulers keep their sigmas, so that no step waits for the device.
        lookups: of each prompt and of the picture, in the words of `Result`.
        index: how many of the timesteps are done.
    """

    job: Job
    scheduler: Any
    step_arguments: dict[str, Any]
    latents: torch.Tensor
    embeds: torch.Tensor
    pooled: torch.Tensor
    time_ids: torch.Tensor
    timesteps: torch.Tensor
    tokens_cut: int
    marks: list[Any]
    lookups: tuple[tuple[Lookup, bool], ...]
    index: int = 0
    redecoded: bool = field(default=False)

    @property
    def steps_run(self) -> int:
        return len(self.timesteps)

    @property
    def done(self) -> bool:
        return self.index == len(self.timesteps)


class SdxlDiffusion:
    """Image-to-image on the parts of a loaded SDXL pipeline. Not thread-safe: one thread owns it and its device.

    Args:
        pipe: the pipeline whose parts are used; all of them on `device`.
        device: where the tensors live.
        info: what was loaded, for people.
        cache_bytes: how much of what the encoders make of prompts and pictures is kept on the device.
    """

    def __init__(
        self, pipe: StableDiffusionXLImg2ImgPipeline, device: torch.device, info: ModelInfo, cache_bytes: int = 0
    ) -> None:
        self.pipe = pipe
        self.device = device
        self.info = info
        self.dtype: torch.dtype = pipe.unet.dtype
        self.encoders = Encoders(pipe, device, cache_bytes)
        step = set(inspect.signature(pipe.scheduler.step).parameters)
        self._accepts_generator, self._accepts_eta = "generator" in step, "eta" in step

    @torch.inference_mode()
    def admit(self, job: Job) -> State:
        """Encode prompt and picture and draw the noise: the state before the job's first UNet call.

        Diffusers' `__call__`, steps 3 to 8.
        """
        marks = [self._mark()]
        embeds, pooled, tokens_cut, found = self._encode_prompts(job)
        marks.append(self._mark())
        scheduler = copy.deepcopy(self.pipe.scheduler)
        scheduler.set_timesteps(job.num_inference_steps)
        begin = (job.num_inference_steps - job.steps_run) * scheduler.order
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(begin)
        timesteps = scheduler.timesteps[begin:]
        generator = torch.Generator("cpu").manual_seed(job.seed)
        moments, known = self.encoders.image(job.pixels)
        clean = self._clean(moments, generator)
        noise = randn_tensor(clean.shape, generator=generator, device=self.device, dtype=self.dtype)
        latents = scheduler.add_noise(clean, noise, timesteps[:1])
        size = [job.pixels.height, job.pixels.width]
        time_ids = torch.tensor([[*size, 0, 0, *size]] * len(embeds), dtype=embeds.dtype).to(self.device)
        marks.append(self._mark())
        return State(
            job=job,
            scheduler=scheduler,
            step_arguments=self._step_arguments(generator),
            latents=latents,
            embeds=embeds,
            pooled=pooled,
            time_ids=time_ids,
            timesteps=timesteps,
            tokens_cut=tokens_cut,
            marks=marks,
            lookups=(*(("prompt", one) for one in found), ("image", known)),
        )

    @torch.inference_mode()
    def tick(self, states: Sequence[State]) -> None:
        """One UNet call for all of `states`, whatever step each is at; each moves on by one step.

        All latents have one shape. Nothing here reads a tensor back from the device. If it raises, the states are
        spent: admit their jobs anew.
        """
        moments = [state.timesteps[state.index] for state in states]
        rows = [len(state.embeds) for state in states]
        sample = torch.cat(
            [
                state.scheduler.scale_model_input(torch.cat([state.latents] * n), moment)
                for state, moment, n in zip(states, moments, rows, strict=True)
            ]
        )
        predictions = self.pipe.unet(
            sample,
            torch.stack([moment for moment, n in zip(moments, rows, strict=True) for _ in range(n)]).to(self.device),
            encoder_hidden_states=torch.cat([state.embeds for state in states]),
            added_cond_kwargs={
                "text_embeds": torch.cat([state.pooled for state in states]),
                "time_ids": torch.cat([state.time_ids for state in states]),
            },
            return_dict=False,
        )[0].split(rows)
        for state, moment, prediction in zip(states, moments, predictions, strict=True):
            noise = _guided(prediction, state.job.guidance_scale)
            state.latents = state.scheduler.step(
                noise, moment, state.latents, **state.step_arguments, return_dict=False
            )[0]
            state.index += 1

    @torch.inference_mode()
    def finish(self, states: Sequence[State]) -> list[Result | None]:
        """Decode states that are done; None stands for one that holds NaN or infinity even in float32.

        One picture is decoded at a time: it bounds the memory, and a VAE pass fills the device by itself.
        """
        starts = [self._mark()]
        decoded = []
        for state in states:
            decoded.append(self.decode(state.latents))
            starts.append(self._mark())
        results: list[Result | None] = []
        for state, (rgb, finite), (start, end) in zip(states, decoded, pairwise(starts), strict=True):
            if not finite.item() and self.pipe.vae.dtype != torch.float32:
                state.redecoded = True
                rgb, finite = self._decode_in_float32(state.latents)
            if not finite.item():
                self.encoders.forget()
            results.append(self._result(state, rgb.cpu(), start, end) if finite.item() else None)
        return results

    def decode(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents `[1, c, h, w]` to `uint8[h * f, w * f, 3]` and to a 0-dim bool: whether all of it was finite."""
        vae = self.pipe.vae
        latents = latents.to(vae.dtype)
        mean, std = self._latent_statistics(latents.dtype)
        image = vae.decode(latents * std / vae.config.scaling_factor + mean, return_dict=False)[0]
        rgb = ((image * 0.5 + 0.5).clamp(0, 1)[0].permute(1, 2, 0).float() * 255).round().to(torch.uint8)
        return rgb, torch.isfinite(image).all()

    def _decode_in_float32(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        dtype = self.pipe.vae.dtype
        self.pipe.vae.to(torch.float32)
        try:
            return self.decode(latents)
        finally:
            self.pipe.vae.to(dtype)

    def _result(self, state: State, rgb: torch.Tensor, start: Any, end: Any) -> Result:
        before, prompt, image = state.marks
        pixels = state.job.pixels
        return Result(
            pixels=Pixels(pixels.width, pixels.height, rgb.contiguous().numpy().tobytes()),
            steps_run=state.steps_run,
            start_timestep=float(state.timesteps[0]),
            tokens_cut=state.tokens_cut,
            redecoded=state.redecoded,
            lookups=state.lookups,
            timings=Timings(
                encode_prompt=self._between(before, prompt),
                encode_image=self._between(prompt, image),
                denoise=self._between(image, start),
                vae=self._between(start, end),
            ),
        )

    def _encode_prompts(self, job: Job) -> tuple[torch.Tensor, torch.Tensor, int, list[bool]]:
        """Embeddings `[rows, 77, d]`, pooled `[rows, p]`, the prompt's tokens beyond the 77th, and which were known."""
        prompt, known = self.encoders.prompt(job.prompt)
        if job.guidance_scale <= 1:
            return prompt.hidden, prompt.pooled, prompt.tokens_cut, [known]
        found = [known]
        if job.negative_prompt is None and self.pipe.config.force_zeros_for_empty_prompt:
            negative = Prompt(torch.zeros_like(prompt.hidden), torch.zeros_like(prompt.pooled), 0)
        else:
            negative, known = self.encoders.prompt(job.negative_prompt or "")
            found.append(known)
        hidden, pooled = torch.cat([negative.hidden, prompt.hidden]), torch.cat([negative.pooled, prompt.pooled])
        return hidden, pooled, prompt.tokens_cut, found

    def _clean(self, moments: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Latents `[1, c, h / f, w / f]` in the UNet's dtype, sampled from a picture's moments."""
        vae = self.pipe.vae
        # A tiny autoencoder is deterministic: it has latents instead of a distribution, and draws nothing.
        tiny = moments.shape[1] == vae.config.latent_channels
        sample = moments if tiny else DiagonalGaussianDistribution(moments).sample(generator)
        mean, std = self._latent_statistics(self.dtype)
        latents: torch.Tensor = (sample.to(self.dtype) - mean) * vae.config.scaling_factor / std
        return latents

    def _latent_statistics(self, dtype: torch.dtype) -> tuple[Any, Any]:
        """Mean and standard deviation by channel, `[1, c, 1, 1]`, where the VAE's config has them; else 0 and 1."""
        config = self.pipe.vae.config
        values = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
        if None in values:
            return 0.0, 1.0
        mean, std = (torch.tensor(value).view(1, -1, 1, 1).to(self.device, dtype) for value in values)
        return mean, std

    def _step_arguments(self, generator: torch.Generator) -> dict[str, Any]:
        arguments: dict[str, Any] = {}
        if self._accepts_generator:
            arguments["generator"] = generator
        if self._accepts_eta:
            arguments["eta"] = 0.0
        return arguments

    def _mark(self) -> Any:
        """A point in the device's time: the host's clock says nothing of work that CUDA has only been handed."""
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # pragma: no cover
        event.record()  # pragma: no cover
        return event  # pragma: no cover

    def _between(self, start: Any, end: Any) -> float:
        if self.device.type != "cuda":
            return float(end - start)
        return float(start.elapsed_time(end)) / 1000  # pragma: no cover


def _guided(prediction: torch.Tensor, guidance_scale: float) -> torch.Tensor:
    """Classifier-free guidance (Ho and Salimans, arXiv 2207.12598) over the rows `[negative, positive]`."""
    if len(prediction) == 1:
        return prediction
    negative, positive = prediction.chunk(2)
    return negative + guidance_scale * (positive - negative)


def load(settings: Settings, device: str) -> SdxlDiffusion:
    """Load the checkpoint that the settings name onto a device.

    Raises:
        CheckpointError: it cannot be found, fetched or used.
    """
    pipe, info = checkpoint.load_pipeline(settings, device)
    return SdxlDiffusion(pipe, torch.device(info.device), info, settings.cache_bytes)
