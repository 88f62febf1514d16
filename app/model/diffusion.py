"""Image-to-image in three parts: a job to a `State`, one UNet call for many states, states to pixels.

This replaces the loop of `diffusers.StableDiffusionXLImg2ImgPipeline.__call__`, so that jobs at different steps share a
UNet call. Results are the same, because operations and random draws keep their order. Each job has a CPU generator. It
draws the sample of the VAE's posterior, then the initial noise, then the noise of each ancestral step.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from diffusers import StableDiffusionXLImg2ImgPipeline
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

from app import malloc
from app.engine.messages import Job, Lookup, ModelInfo, Result, Timings
from app.model.compiled import Batched
from app.model.encoders import Encoders, Prompt
from app.model.packed import Packed, unpacked
from app.model.previews import Preview, Previews
from app.model.schedulers import Stepper, create_stepper
from app.model.torch_errors import fault
from app.model.transfer import download, mark, passed, seconds_between, upload, wait
from app.model.weights import MAX_THREADS, map_threads
from app.pixels import Pixels

logger = logging.getLogger(__name__)


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
class Decoding:
    """An image that is being decoded or downloaded from the device.

    Attributes:
        rgb: `uint8[height, width, 3]`, on the host once `ready`.
        finite: 0-dim bool, on the host once `ready`: whether the decoded image holds no NaN and no infinity.
        marks: before decoding, after it, and after the download.
    """

    state: State
    rgb: torch.Tensor
    finite: torch.Tensor
    marks: tuple[Any, Any, Any]

    @property
    def ready(self) -> bool:
        """Whether the download is finished, so that `collect` does not wait."""
        return passed(self.marks[2])


class SdxlDiffusion:
    """Image-to-image on the parts of a loaded SDXL pipeline. Not thread-safe: one thread owns it and its device.

    Args:
        pipe: the pipeline whose parts are used; all of them are on `device`.
        device: the device of all tensors.
        info: what was loaded, for logs and metrics.
        cache_bytes: the size of the encoders' caches, on the device.
        compiled: the batch sizes of a compiled UNet; empty if it is not compiled.
        max_jobs: the number of jobs on board at once.
    """

    def __init__(
        self,
        pipe: StableDiffusionXLImg2ImgPipeline,
        device: torch.device,
        info: ModelInfo,
        cache_bytes: int = 0,
        compiled: Sequence[int] = (),
        max_jobs: int = 1,
    ) -> None:
        self.pipe = pipe
        self.device = device
        self.info = info
        self.dtype: torch.dtype = pipe.unet.dtype
        self.encoders = Encoders(pipe, device, cache_bytes)
        self.compiled = compiled
        self.max_jobs = max_jobs
        self._previews = Previews(self._encode_chart)
        self._unpacked = unpacked(pipe.unet, pipe.vae)
        self._predict = Batched(self._unet, compiled) if compiled else self._unet

    def pack_next_layers(self) -> bool:
        """Pack up to `MAX_THREADS` layers (`app.model.packed`), which makes later calls faster.

        Returns:
            False if all layers were packed before.
        """
        layers = list(islice(self._unpacked, MAX_THREADS))
        try:
            with malloc.loading():
                map_threads(Packed.pack, layers)
        except RuntimeError:
            logger.exception("packing failed: some layers keep their stored weights, which is slower")
        return bool(layers)

    fault = staticmethod(fault)

    def release_memory(self) -> None:
        """Free cached memory, after a call ran out of memory."""
        self.encoders.clear_cache()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()  # pragma: no cover

    def memory(self) -> dict[str, int]:
        """A GPU's memory in bytes: `allocated` by tensors, `reserved` by torch's allocator, `free`. Empty for a CPU."""
        if self.device.type != "cuda":
            return {}
        return {  # pragma: no cover
            "allocated": torch.cuda.memory_allocated(self.device),
            "reserved": torch.cuda.memory_reserved(self.device),
            "free": torch.cuda.mem_get_info(self.device)[0],
        }

    @torch.inference_mode()
    def admit(self, job: Job) -> State:
        """Encode the prompt and the image and draw the noise: the state before the job's first UNet call.

        These are steps 3 to 8 of diffusers' `__call__`.
        """
        marks = [mark(self.device)]
        embeds, pooled, tokens_cut, prompts_cached = self._encode_prompts(job)
        marks.append(mark(self.device))
        generator = torch.Generator("cpu").manual_seed(job.seed)
        moments, image_cached = self.encoders.image(job.pixels)
        latents = self._sample_latents(moments, generator)
        stepper = create_stepper(self.pipe.scheduler, job.num_inference_steps, job.steps_run, latents, generator)
        size = [job.pixels.height, job.pixels.width]
        time_ids = upload(torch.tensor([[*size, 0, 0, *size]] * len(embeds), dtype=embeds.dtype), self.device)
        marks.append(mark(self.device))
        return State(
            job=job,
            stepper=stepper,
            latents=stepper.add_noise(latents),
            embeds=embeds,
            pooled=pooled,
            time_ids=time_ids,
            tokens_cut=tokens_cut,
            marks=marks,
            lookups=(*(("prompt", cached) for cached in prompts_cached), ("image", image_cached)),
        )

    @torch.inference_mode()
    def tick(self, states: Sequence[State]) -> None:
        """Advance all states by one step with one UNet call. The states may be at different steps.

        All latents have the same shape. No tensor is read back from the device. If this raises, the states cannot be
        used any more: admit their jobs again.
        """
        rows = [len(state.embeds) for state in states]
        sample = torch.cat(
            [
                state.stepper.scale_model_input(torch.cat([state.latents] * n), state.index)
                for state, n in zip(states, rows, strict=True)
            ]
        )
        timesteps = [state.stepper.timesteps[state.index] for state in states]
        timestep = torch.stack([value for value, n in zip(timesteps, rows, strict=True) for _ in range(n)])
        predictions = self._predict(
            sample,
            upload(timestep, self.device),
            torch.cat([state.embeds for state in states]),
            torch.cat([state.pooled for state in states]),
            torch.cat([state.time_ids for state in states]),
        )
        for state, prediction in zip(states, torch.split(predictions, rows), strict=True):
            model_output = _guided(prediction, state.job.guidance_scale)
            state.latents = state.stepper.step(model_output, state.index, state.latents)
            state.index += 1

    @torch.inference_mode()
    def preview(self, state: State) -> Preview:
        """A small image of the last step's `pred_original_sample`."""
        return self._previews.of(state.stepper.pred_original_sample, state.job.pixels.width, state.job.pixels.height)

    def _encode_chart(self, pixels: Pixels) -> torch.Tensor:
        """Latents of a preview's colour chart, sampled with a fixed seed."""
        return self._sample_latents(self.encoders.image(pixels)[0], torch.Generator("cpu").manual_seed(0))

    def _unet(
        self,
        sample: torch.Tensor,
        timesteps: torch.Tensor,
        embeds: torch.Tensor,
        pooled: torch.Tensor,
        time_ids: torch.Tensor,
    ) -> torch.Tensor:
        added = {"text_embeds": pooled, "time_ids": time_ids}
        prediction: torch.Tensor = self.pipe.unet(
            sample, timesteps, encoder_hidden_states=embeds, added_cond_kwargs=added, return_dict=False
        )[0]
        return prediction

    @torch.inference_mode()
    def finish(self, states: Sequence[State]) -> list[Decoding]:
        """Start to decode finished states and to download their images; `collect` returns them.

        Each image has a VAE pass of its own: one pass fills the device, and more at once would take more memory.
        """
        return [self._start_decode(state) for state in states]

    def _start_decode(self, state: State) -> Decoding:
        start = mark(self.device)
        rgb, finite = self.decode(state.latents)
        end = mark(self.device)
        rgb, finite = download(rgb), download(finite)
        return Decoding(state, rgb, finite, (start, end, mark(self.device)))

    @torch.inference_mode()
    def collect(self, decoding: Decoding) -> Result | None:
        """Wait for a decoding and return its result; None if the image holds NaN or infinity even in float32."""
        start, end, arrived = decoding.marks
        wait(arrived)
        state, rgb, finite = decoding.state, decoding.rgb, decoding.finite
        if not finite.item() and self.pipe.vae.dtype != torch.float32:
            state.redecoded = True
            rgb, finite = self._decode_in_float32(state.latents)
        if not finite.item():
            self.encoders.clear_cache()
            return None
        return self._result(state, rgb.cpu(), start, end)

    def decode(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents `[1, c, h, w]` to `uint8[h * f, w * f, 3]`, and a 0-dim bool: whether all values are finite."""
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
            start_timestep=float(state.stepper.timesteps[0]),
            tokens_cut=state.tokens_cut,
            redecoded=state.redecoded,
            lookups=state.lookups,
            timings=Timings(
                encode_prompt=seconds_between(before, prompt),
                encode_image=seconds_between(prompt, image),
                denoise=seconds_between(image, start),
                vae=seconds_between(start, end),
            ),
        )

    def _encode_prompts(self, job: Job) -> tuple[torch.Tensor, torch.Tensor, int, list[bool]]:
        """Embeddings `[rows, 77, d]`, pooled `[rows, p]`, the number of cut tokens, and which prompts were cached."""
        prompt, prompt_cached = self.encoders.prompt(job.prompt)
        if job.guidance_scale <= 1:
            return prompt.hidden, prompt.pooled, prompt.tokens_cut, [prompt_cached]
        cached = [prompt_cached]
        if job.negative_prompt is None and self.pipe.config.force_zeros_for_empty_prompt:
            negative = Prompt(torch.zeros_like(prompt.hidden), torch.zeros_like(prompt.pooled), 0)
        else:
            negative, negative_cached = self.encoders.prompt(job.negative_prompt or "")
            cached.append(negative_cached)
        hidden, pooled = torch.cat([negative.hidden, prompt.hidden]), torch.cat([negative.pooled, prompt.pooled])
        return hidden, pooled, prompt.tokens_cut, cached

    def _sample_latents(self, moments: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Latents `[1, c, h / f, w / f]` in the UNet's dtype and scale, sampled from an image's moments."""
        vae = self.pipe.vae
        # A tiny VAE is deterministic: it encodes to latents instead of a distribution, and draws nothing.
        tiny = moments.shape[1] == vae.config.latent_channels
        sample = moments if tiny else DiagonalGaussianDistribution(moments).sample(generator)
        mean, std = self._latent_statistics(self.dtype)
        latents: torch.Tensor = (sample.to(self.dtype) - mean) * vae.config.scaling_factor / std
        return latents

    def _latent_statistics(self, dtype: torch.dtype) -> tuple[Any, Any]:
        """Mean and standard deviation by channel, `[1, c, 1, 1]`, from the VAE's config; 0 and 1 if it has none."""
        config = self.pipe.vae.config
        values = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
        if None in values:
            return 0.0, 1.0
        mean, std = (torch.tensor(value).view(1, -1, 1, 1).to(self.device, dtype) for value in values)
        return mean, std


def _guided(prediction: torch.Tensor, guidance_scale: float) -> torch.Tensor:
    """Classifier-free guidance (Ho and Salimans, arXiv 2207.12598) of the rows `[negative, positive]`, to one row.

    A prediction of one row is returned as it is.
    """
    if len(prediction) == 1:
        return prediction
    negative, positive = prediction.chunk(2)
    return negative + guidance_scale * (positive - negative)
