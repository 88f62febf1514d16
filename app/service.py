"""The way of one picture, in order: admit, decode, run, encode. The only thing that routes call."""

import asyncio
import os
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from typing import Literal, TypeVar

from app import __version__
from app.edits import EditedImage, EncodedPreview, Queued, RequestInfo, StepDone, Upload
from app.engine.engine import Engine
from app.engine.messages import Job, Progress
from app.engine.ticket import OnProgress
from app.errors import InvalidParameter, ModelNotFound, Unavailable
from app.imaging.c2pa import Signer
from app.imaging.decoder_pool import DecoderPool
from app.imaging.encode import Marks, encode_image, encode_preview
from app.infotext import infotext, sampler_name
from app.observability import tracing
from app.observability.logs import facts
from app.observability.metrics import Metrics
from app.pixels import IMAGE_SIZE, OutputFormat, Pixels
from app.request import Img2ImgRequest, random_seed
from app.settings import Settings

T = TypeVar("T")


class Service:
    """Ties the engine to picture formats: they are read by processes and written by threads of its own.

    Args:
        settings: limits of the pictures.
        engine: started and stopped by whoever made it.
        metrics: where stage times go.
        signer: signs each picture, if there is one.

    Attributes:
        started: when, in seconds of Unix time.
    """

    def __init__(self, settings: Settings, engine: Engine, metrics: Metrics, signer: Signer | None = None) -> None:
        self.settings = settings
        self.engine = engine
        self.metrics = metrics
        self._signer = signer
        metrics.ready.set_function(lambda: self.status == "ready")
        if signer:
            metrics.certificate_expiry.set_function(lambda: signer.expires)
        self.started = int(time.time())
        # As many as there are cores: decoding a large picture holds up to 200 MB, and more at once is no faster.
        count = os.cpu_count() or 1
        self._writers = ThreadPoolExecutor(count, "writers")
        self._helpers = ThreadPoolExecutor(count, "helpers")
        self._decoders = DecoderPool(settings.max_image_pixels, count, metrics.decoder_deaths.inc)

    async def start(self) -> None:
        """Start the decoder processes."""
        await self._decoders.start()

    def close(self) -> None:
        """End the threads and the decoder processes."""
        for threads in (self._writers, self._helpers):
            threads.shutdown(wait=False, cancel_futures=True)
        self._decoders.close()

    async def edit(
        self,
        upload: Upload,
        request: Img2ImgRequest,
        call: RequestInfo,
        on_progress: OnProgress | None = None,
        previews: frozenset[int] = frozenset(),
    ) -> EditedImage:
        """Make one picture of an uploaded one.

        Args:
            upload: a PNG, JPEG or WebP file; it is let go once it is decoded.
            request: what to make of it; `output_format` None means PNG.
            call: whose request it is, and how long there is for it.
            on_progress: called on the event loop with each new position in the queue, after each UNet call of this
                image, and with each preview.
            previews: the numbers of the UNet calls after which there is to be one.

        Raises:
            ServiceError: any of the tree in `app.errors`.
        """
        output_format = request.output_format or OutputFormat.PNG
        if request.quality and output_format is OutputFormat.PNG:
            raise InvalidParameter("A PNG has no quality: leave it out, or ask for webp or jpeg.", param="quality")
        if self._signer:
            self._signer.check()
        seed = random_seed() if request.seed is None else request.seed
        seconds: dict[str, float] = {}
        with tracing.span("picture") as span:
            span.set_attributes({"img2img.seed": seed, "img2img.steps_run": request.steps_run})
            with self.engine.admit(request.unet_rows, call.caller, call.timeout) as deadline:
                with tracing.stage("decode", seconds):
                    pixels = await self._decoders.decode(upload.take(), request.fit, deadline, call.caller)
                job = _job(call.job_id, pixels, request, seed, deadline, previews)
                with tracing.span("engine"):
                    result = await self.engine.run(job, on_progress, call.caller)
                    seconds |= (inside := {"queue": result.queued, **asdict(result.timings)})
                    tracing.lay_out(time.time(), inside)
            size = result.pixels.width, result.pixels.height
            text = infotext(request, seed, size, self.model_name, self.sampler, __version__)
            write = partial(encode_image, helper=self._helpers, quality=request.quality)
            with tracing.stage(output_format.value, seconds):
                data = await _on_thread(self._writers, write, result.pixels, output_format, self._marks(text))
            if self._signer:
                with tracing.stage("sign", seconds):
                    data = await _on_thread(self._writers, self._signer.sign, data, output_format)
        self._note(seed, seconds)
        return EditedImage(
            data=data,
            output_format=output_format,
            width=result.pixels.width,
            height=result.pixels.height,
            seed=seed,
            steps_run=result.steps_run,
            start_timestep=result.start_timestep,
            tokens_cut=result.tokens_cut,
            seconds=seconds,
            infotext=text,
        )

    async def watch(
        self,
        upload: Upload,
        request: Img2ImgRequest,
        call: RequestInfo,
        previews: frozenset[int] = frozenset(),
        preview_format: OutputFormat = OutputFormat.JPEG,
    ) -> AsyncGenerator[Queued | StepDone | EditedImage, None]:
        """As `edit`, but says how it goes; the picture comes last. Closing it cancels the work.

        A request that is refused raises before anything has come.
        """
        progress: asyncio.Queue[Queued | Progress | None] = asyncio.Queue()
        task = asyncio.create_task(self.edit(upload, request, call, progress.put_nowait, previews))
        task.add_done_callback(lambda _: progress.put_nowait(None))
        done: set[tuple[int, bool]] = set()
        try:
            while (one := await progress.get()) is not None:
                if isinstance(one, Queued):
                    yield one
                    continue
                # A job that runs again repeats its steps: each is shown once.
                if (key := (one.step, one.preview is not None)) in done:
                    continue
                done.add(key)
                shown = await self._encode_preview(one.preview, preview_format) if one.preview else None
                yield StepDone(one.step, one.steps, shown)
            yield task.result()
        finally:
            task.cancel()
            await asyncio.wait({task})

    async def _encode_preview(self, preview: Pixels, output_format: OutputFormat) -> EncodedPreview:
        marks = self._marks("")
        data = await _on_thread(self._writers, encode_preview, preview, output_format, marks, IMAGE_SIZE)
        return EncodedPreview(data, IMAGE_SIZE, IMAGE_SIZE)

    def _note(self, seed: int, seconds: dict[str, float]) -> None:
        """Put the times of a picture's stages into the metrics, and into the log line of its request."""
        for stage, value in seconds.items():
            self.metrics.stage_seconds.labels(stage).observe(value)
        if (told := facts.get()) is not None:
            stages = {stage: round(value * 1000, 1) for stage, value in seconds.items()}
            told.setdefault("pictures", []).append({"seed": seed, "stage_milliseconds": stages})

    def _marks(self, text: str) -> Marks:
        return Marks(text if self.settings.embed_parameters else None, generated=self.settings.mark_pictures)

    async def infotext_of(self, file: bytes, call: RequestInfo) -> str:
        """What a picture file says of how it was made; an empty text if it says nothing.

        Raises:
            ServiceError: it cannot be read.
        """
        return await self._decoders.parameters(file, call.caller)

    def render_metrics(self) -> bytes:
        """All series in Prometheus' text format."""
        return self.metrics.render()

    async def drain(self) -> None:
        """Refuse new requests, let those that run finish, and return; the settings say how long either may take."""
        await asyncio.gather(
            self.engine.drain(self.settings.drain_seconds), asyncio.sleep(self.settings.drain_delay_seconds)
        )

    @property
    def status(self) -> Literal["ready", "starting", "draining", "unsigned"]:
        """`ready` if a picture can be asked for now; `unsigned` if it could be made, but not signed as it has to be."""
        if self.engine.draining:
            return "draining"
        if not self.engine.ready:
            return "starting"
        return "ready" if self._signer is None or self._signer.able else "unsigned"

    @property
    def model(self) -> dict[str, str] | None:
        """What the workers loaded, and where; None until one has."""
        return asdict(self.engine.info) if self.engine.info else None

    @property
    def model_name(self) -> str:
        """The model's, without where it comes from.

        Raises:
            Unavailable: no worker has loaded one yet, and only it can tell which that is.
        """
        if self._whole_name == "auto":
            raise Unavailable("The model is being loaded. Try again in a moment.", retry_after=5)
        return self._whole_name.rstrip("/").rpartition("/")[2]

    @property
    def sampler(self) -> str:
        """The model's scheduler as the web UI calls it; SDXL-Turbo's until one is loaded."""
        return sampler_name(self.engine.info.scheduler if self.engine.info else "EulerAncestralDiscreteScheduler")

    @property
    def _whole_name(self) -> str:
        return self.engine.info.model if self.engine.info else self.settings.model

    def check_count(self, count: int, param: str) -> None:
        """Refuse more images in one request than may ever wait together.

        Raises:
            InvalidParameter: it is more than `IMG2IMG_QUEUE_SIZE`: no later try would pass.
        """
        most = self.settings.queue_size
        if count > most:
            raise InvalidParameter(
                f"{param}: {count} pictures at once are more than may wait here: {most}.", param=param
            )

    def check_model(self, name: str | None) -> None:
        """Raises `ModelNotFound` for a name that is neither the model's nor one of the settings'."""
        aliases = {alias.strip() for alias in self.settings.model_aliases.split(",")} - {""}
        if name is None or name in aliases or (name and "*" in aliases):
            return
        if name not in (self.model_name, self._whole_name):
            raise ModelNotFound(
                f"There is no model '{name[:64]}' here. Leave it out, send '{self.model_name}', or have the service "
                "take other names by IMG2IMG_MODEL_ALIASES.",
                param="model",
            )


def _job(
    name: str, pixels: Pixels, request: Img2ImgRequest, seed: int, deadline: float, previews: frozenset[int]
) -> Job:
    return Job(
        id=name,
        pixels=pixels,
        prompt=request.prompt,
        negative_prompt=request.negative_prompt or None,
        num_inference_steps=request.num_inference_steps,
        strength=request.strength,
        guidance_scale=request.guidance_scale,
        seed=seed,
        deadline=deadline,
        previews=previews,
    )


async def _on_thread(threads: ThreadPoolExecutor, function: Callable[..., T], *arguments: object) -> T:
    return await asyncio.get_running_loop().run_in_executor(threads, function, *arguments)
