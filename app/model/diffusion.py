"""The tensors: a prompt and a picture to a `State`, one UNet call for many `State`s, `State`s to pixels.

The loop is our own, so that jobs at different steps share a UNet call; its numbers are those of
`diffusers.StableDiffusionXLImg2ImgPipeline.__call__`, whose order of operations and random draws it keeps: from the
job's own CPU generator first the VAE's posterior sample, then the initial noise, then one draw per ancestral step.
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
from app.model.weights import MOST_THREADS, map_threads
from app.pixels import Pixels

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class State:
    """One job between two UNet calls. A row of the UNet's batch is one of its `embeds`.

    Attributes:
        latents: `[1, c, height / f, width / f]`, in the UNet's dtype, on the device; c is 4 and f 8 for SDXL's VAE.
        embeds: `[rows, 77, d]`; `rows` is 2 with guidance (negative prompt first), else 1.
        pooled: `[rows, p]`.
        time_ids: `[rows, 6]`, SDXL's micro-conditioning.
        lookups: of each prompt and of the picture, in the words of `Result`.
        index: how many of the timesteps are done.
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
    """A picture that is being decoded, or on its way from the device.

    Attributes:
        rgb: `uint8[height, width, 3]`, on the host once `ready`.
        finite: 0-dim bool, likewise: whether every value was.
        marks: before and after decoding, and on arrival.
    """

    state: State
    rgb: torch.Tensor
    finite: torch.Tensor
    marks: tuple[Any, Any, Any]

    @property
    def ready(self) -> bool:
        """Whether it has arrived, so that nobody has to wait for it."""
        return passed(self.marks[2])


class SdxlDiffusion:
    """Image-to-image on the parts of a loaded SDXL pipeline. Not thread-safe: one thread owns it and its device.

    Args:
        pipe: the pipeline whose parts are used; all of them on `device`.
        device: where the tensors live.
        info: what was loaded, for people.
        cache_bytes: how much of what the encoders make of prompts and pictures is kept on the device.
        compiled: the batch sizes that a compiled UNet is called with; none for one that takes any.
        max_jobs: how many jobs are to be on board at once.
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
        self._previews = Previews(self._encode_exactly)
        self._unpacked = unpacked(pipe.unet, pipe.vae)
        self._predict = Batched(self._unet, compiled) if compiled else self._unet

    def pack_next_layers(self) -> bool:
        """Do a little of what makes pictures faster but can wait until the model is ready; False if all is done."""
        layers = list(islice(self._unpacked, MOST_THREADS))
        try:
            with malloc.loading():
                map_threads(Packed.pack, layers)
        except RuntimeError:
            logger.exception("layers stay as they are stored, which is slower")
        return bool(layers)

    fault = staticmethod(fault)

    def release_memory(self) -> None:
        """Give back what memory can be had again: after a call that found too little."""
        self.encoders.clear_cache()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()  # pragma: no cover

    def memory(self) -> dict[str, int]:
        """Bytes of a GPU: `allocated` by tensors, `reserved` for those and others to come, `free`; of a CPU nothing."""
        if self.device.type != "cuda":
            return {}
        return {  # pragma: no cover
            "allocated": torch.cuda.memory_allocated(self.device),
            "reserved": torch.cuda.memory_reserved(self.device),
            "free": torch.cuda.mem_get_info(self.device)[0],
        }

    @torch.inference_mode()
    def admit(self, job: Job) -> State:
        """Encode prompt and picture and draw the noise: the state before the job's first UNet call.

        Diffusers' `__call__`, steps 3 to 8.
        """
        marks = [mark(self.device)]
        embeds, pooled, tokens_cut, found = self._encode_prompts(job)
        marks.append(mark(self.device))
        generator = torch.Generator("cpu").manual_seed(job.seed)
        moments, known = self.encoders.image(job.pixels)
        clean = self._sample_latents(moments, generator)
        steps = create_stepper(self.pipe.scheduler, job.num_inference_steps, job.steps_run, clean, generator)
        size = [job.pixels.height, job.pixels.width]
        time_ids = upload(torch.tensor([[*size, 0, 0, *size]] * len(embeds), dtype=embeds.dtype), self.device)
        marks.append(mark(self.device))
        return State(
            job=job,
            stepper=steps,
            latents=steps.add_noise(clean),
            embeds=embeds,
            pooled=pooled,
            time_ids=time_ids,
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
            noise = _guided(prediction, state.job.guidance_scale)
            state.latents = state.stepper.step(noise, state.index, state.latents)
            state.index += 1

    @torch.inference_mode()
    def preview(self, state: State) -> Preview:
        """A small image of the last `pred_original_sample`."""
        return self._previews.of(state.stepper.pred_original_sample, state.job.pixels.width, state.job.pixels.height)

    def _encode_exactly(self, pixels: Pixels) -> torch.Tensor:
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
        """Begin to decode states that are done, and to fetch their pictures; `collect` gives them.

        Each is decoded by itself: it bounds the memory, and a VAE pass fills the device.
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
        """The picture, waited for if it is not `ready`; None if it holds NaN or infinity even in float32."""
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

    def _sample_latents(self, moments: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
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


def _guided(prediction: torch.Tensor, guidance_scale: float) -> torch.Tensor:
    """Classifier-free guidance (Ho and Salimans, arXiv 2207.12598) over the rows `[negative, positive]`."""
    if len(prediction) == 1:
        return prediction
    negative, positive = prediction.chunk(2)
    return negative + guidance_scale * (positive - negative)
