"""Image-to-image in three parts: a job to a `State`, one UNet call for many states, states to pixels.

This replaces the loop of `diffusers.StableDiffusionXLImg2ImgPipeline.__call__`, so that jobs at different steps share a
UNet call. Results are the same, because operations and random draws keep their order. Each job has a CPU generator. It
draws the sample of the VAE's posterior, then the initial noise, then the noise of each ancestral step.
"""

import contextlib
import logging
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

import torch
from diffusers import StableDiffusionXLImg2ImgPipeline

from app import malloc
from app.engine.messages import Job, ModelInfo, Result, Timings
from app.model.batch_limit import CANDIDATES, choose
from app.model.batches import compiled_sizes, graph_sizes, in_calls
from app.model.compiled import end_compile_workers
from app.model.encoders import Encoders, Prompt
from app.model.graphs import Graphs
from app.model.packed import Packed, unpacked
from app.model.prepare import Compilations, grey_job, measure, record
from app.model.previews import Preview, Previews
from app.model.schedulers import create_stepper
from app.model.states import Decoding, State, Tick
from app.model.torch_errors import fault
from app.model.transfer import Download, mark, seconds_between, upload
from app.model.vae import Vae
from app.model.weights import MAX_THREADS, map_threads
from app.pixels import IMAGE_SIZE, Pixels

logger = logging.getLogger(__name__)


class SdxlDiffusion:
    """Image-to-image on the parts of a loaded SDXL pipeline. Not thread-safe: one thread owns it and its device.

    Args:
        pipe: the pipeline whose parts are used; all of them are on `device`.
        device: the device of all tensors.
        info: what was loaded, for logs and metrics.
        cache_bytes: the size of the encoders' caches, on the device.
        compiled: whether the UNet and the VAE compile at their first call with each shape.
        max_jobs: the number of jobs on board at once; None to have `prepare` measure which number is best.
        use_graphs: whether `prepare` records CUDA graphs.
    """

    def __init__(
        self,
        pipe: StableDiffusionXLImg2ImgPipeline,
        device: torch.device,
        info: ModelInfo,
        cache_bytes: int = 0,
        *,
        compiled: bool = False,
        max_jobs: int | None = 1,
        use_graphs: bool = False,
    ) -> None:
        self.pipe = pipe
        self.device = device
        self.info = info
        self.compiled = compiled
        self.max_jobs = max_jobs or CANDIDATES[-1]
        self._measures = max_jobs is None
        self._use_graphs = use_graphs and device.type == "cuda"
        self._graphs = Graphs()
        self.vae = Vae(pipe.vae, device, pipe.unet.dtype, self._graphs)
        self.encoders = Encoders(pipe, device, cache_bytes, self.vae, self._graphs)
        self._unet_part = self._graphs.part(self._unet)
        self._previews = Previews(self._encode_chart)
        self._unpacked = unpacked(pipe.unet, pipe.vae)
        self._sizes: Sequence[int] = ()
        """The numbers of rows of a UNet call; empty if any number will do."""

    @property
    def graphs(self) -> int:
        """The number of recorded CUDA graphs; 0 if the parts run without."""
        return self._graphs.count

    @torch.inference_mode()
    def prepare(self) -> None:
        """Do before readiness what no request may wait for: compile, record CUDA graphs, choose the batch limit.

        Raises:
            RuntimeError: a part cannot run or be compiled.
        """
        if self.compiled:
            self._sizes = compiled_sizes(self.max_jobs)
        if self._use_graphs:
            self._record_graphs()  # pragma: no cover
        elif self.compiled:
            self._run_parts(self._sizes, compiling=True)
        if self.compiled:
            end_compile_workers()
        if self._measures:
            seconds = measure(self._predict_rows(), CANDIDATES, self.device)
            self.max_jobs = choose(seconds)
            times = ", ".join(f"{rows} in {1000 * taken:.3g} ms" for rows, taken in seconds.items())
            logger.info("batch limit %d: a UNet call takes rows %s", self.max_jobs, times)

    def _record_graphs(self) -> None:  # pragma: no cover
        sizes = self._sizes or graph_sizes(self.max_jobs)
        # Those of more rows first: the others then fit into their memory.
        record(self._graphs, lambda: self._run_parts(sizes[::-1], compiling=self.compiled))
        if self.graphs:
            self._sizes = sizes
            # Once more, to see that the replayed graphs work.
            self._run_parts(sizes)

    def _run_parts(self, sizes: Sequence[int], *, compiling: bool = False) -> None:
        """Run each part once at the real size, and the UNet for each number of rows."""
        log = Compilations(len(sizes) + 2).of if compiling else lambda _: contextlib.nullcontext()
        with log("the VAE's encoder"):
            predict = self._predict_rows()
        for rows in sizes:
            with log(f"the UNet for {rows} rows"):
                predict(rows)
        with log("the VAE's decoder"):
            self.vae.decode(self.admit(grey_job("decode")).latents)
        self._previews.fit(IMAGE_SIZE, IMAGE_SIZE)

    def _predict_rows(self) -> Callable[[int], torch.Tensor]:
        """A UNet call at the real size, for a number of rows."""
        state = self.admit(grey_job("predict"))
        return lambda rows: self._predict(*self._unet_inputs([state] * rows))

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
        latents = self.vae.sample(moments, generator)
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
    def tick(self, states: Sequence[State]) -> Tick:
        """Advance all states by one step with one UNet call. The states may be at different steps.

        All latents have the same shape. No tensor is read back from the device. If this raises, the states cannot be
        used any more: admit their jobs again.
        """
        start = mark(self.device)
        rows = [len(state.embeds) for state in states]
        predictions = self._predict(*self._unet_inputs(states))
        for state, prediction in zip(states, torch.split(predictions, rows), strict=True):
            model_output = _guided(prediction, state.job.guidance_scale)
            state.latents = state.stepper.step(model_output, state.index, state.latents)
            state.index += 1
        return Tick(start, mark(self.device))

    def _unet_inputs(self, states: Sequence[State]) -> tuple[torch.Tensor, ...]:
        """The arguments of `_unet` for the next step of each state, with the rows of all states."""
        rows = [len(state.embeds) for state in states]
        sample = torch.cat(
            [
                state.stepper.scale_model_input(torch.cat([state.latents] * n), state.index)
                for state, n in zip(states, rows, strict=True)
            ]
        )
        timesteps = [state.stepper.timesteps[state.index] for state in states]
        timestep = torch.stack([value for value, n in zip(timesteps, rows, strict=True) for _ in range(n)])
        return (
            sample,
            upload(timestep, self.device),
            torch.cat([state.embeds for state in states]),
            torch.cat([state.pooled for state in states]),
            torch.cat([state.time_ids for state in states]),
        )

    @torch.inference_mode()
    def preview(self, state: State) -> Preview:
        """A small image of the last step's `pred_original_sample`."""
        return self._previews.of(state.stepper.pred_original_sample, state.job.pixels.width, state.job.pixels.height)

    def _encode_chart(self, pixels: Pixels) -> torch.Tensor:
        """Latents of a preview's colour chart, sampled with a fixed seed."""
        return self.vae.sample(self.encoders.image(pixels)[0], torch.Generator("cpu").manual_seed(0))

    def _predict(self, *inputs: torch.Tensor) -> torch.Tensor:
        """The UNet's prediction for inputs of any number of rows."""
        if not self._sizes:
            return self._unet_part(*inputs)[0]
        return in_calls(self._unet_part, inputs, self._sizes)

    def _unet(
        self,
        sample: torch.Tensor,
        timesteps: torch.Tensor,
        embeds: torch.Tensor,
        pooled: torch.Tensor,
        time_ids: torch.Tensor,
    ) -> tuple[torch.Tensor]:
        """The prediction `[rows, c, h, w]` for as many rows of each argument."""
        added = {"text_embeds": pooled, "time_ids": time_ids}
        prediction: tuple[torch.Tensor] = self.pipe.unet(
            sample, timesteps, encoder_hidden_states=embeds, added_cond_kwargs=added, return_dict=False
        )
        return prediction

    @torch.inference_mode()
    def finish(self, states: Sequence[State]) -> list[Decoding]:
        """Start to decode finished states and to download their images; `collect` returns them.

        Each image has a VAE pass of its own: one pass fills the device, and more at once would take more memory.
        """
        return [self._start_decode(state) for state in states]

    def _start_decode(self, state: State) -> Decoding:
        start = mark(self.device)
        decoded = self.vae.decode(state.latents)
        end = mark(self.device)
        return Decoding(state, Download(self.device, decoded), start, end)

    @torch.inference_mode()
    def collect(self, decoding: Decoding) -> Result | None:
        """Wait for a decoding and return its result; None if the image holds NaN or infinity even in float32.

        Raises:
            TransferError: the image has not arrived when it should have.
        """
        state = decoding.state
        rgb, finite = decoding.download.result()
        image_finite, latents_finite = finite.tolist()
        if latents_finite and not image_finite and self.pipe.vae.dtype == torch.float16:
            # The VAE overflows in float16 alone: bfloat16 has float32's range.
            state.redecoded = True
            rgb, finite = (tensor.cpu() for tensor in self.vae.decode_in_float32(state.latents))
            image_finite = bool(finite[0])
        if not image_finite:
            self.encoders.clear_cache()
            return None
        return self._result(state, rgb, decoding.start, decoding.end)

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


def _guided(prediction: torch.Tensor, guidance_scale: float) -> torch.Tensor:
    """Classifier-free guidance (Ho and Salimans, arXiv 2207.12598) of the rows `[negative, positive]`, to one row.

    A prediction of one row is returned as it is.
    """
    if len(prediction) == 1:
        return prediction
    negative, positive = prediction.chunk(2)
    return negative + guidance_scale * (positive - negative)
