"""Edits an image: admit the request, decode, run, encode. Routes call this and nothing below it."""

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
from app.observability.logs import log_fields
from app.observability.metrics import Metrics
from app.pixels import IMAGE_SIZE, OutputFormat, Pixels
from app.request import Img2ImgRequest, random_seed
from app.settings import Settings

T = TypeVar("T")


class Service:
    """Connects the engine to image formats. Processes decode uploads, threads encode results.

    Args:
        settings: limits, and what is written into images.
        engine: the caller starts and stops it.
        metrics: counts stage times.
        signer: signs each image; None leaves them unsigned.

    Attributes:
        started: the time of the start, in seconds of Unix time.
    """

    def __init__(self, settings: Settings, engine: Engine, metrics: Metrics, signer: Signer | None = None) -> None:
        self._settings = settings
        self._engine = engine
        self._metrics = metrics
        self._signer = signer
        metrics.ready.set_function(lambda: self.status == "ready")
        if signer:
            metrics.certificate_expiry.set_function(lambda: signer.expires)
        self.started = int(time.time())
        # One for each core: more are no faster, and decoding a large image holds up to 200 MB.
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
        """Edit one image.

        Args:
            upload: a PNG, JPEG or WebP file; its bytes are released when it is decoded.
            request: the parameters; `output_format` None means PNG.
            call: the request's id, client and timeout.
            on_progress: called on the event loop with each new position in the queue, after each UNet call of this
                image, and with each preview.
            previews: the numbers of the UNet calls that are followed by a preview.

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
            with self._engine.admit(request.unet_rows, call.caller, call.timeout) as deadline:
                with tracing.stage("decode", seconds):
                    pixels = await self._decoders.decode(upload.take(), request.fit, deadline, call.caller)
                job = _job(call.job_id, pixels, request, seed, deadline, previews)
                with tracing.span("engine"):
                    result = await self._engine.run(job, on_progress, call.caller)
                    seconds |= (stages := {"queue": result.queued, **asdict(result.timings)})
                    tracing.record_finished_spans(time.time(), stages)
            size = result.pixels.width, result.pixels.height
            text = infotext(request, seed, size, self.model_name, self.sampler, __version__)
            write = partial(encode_image, helper=self._helpers, quality=request.quality)
            with tracing.stage(output_format.value, seconds):
                data = await _on_thread(self._writers, write, result.pixels, output_format, self._metadata(text))
            if self._signer:
                with tracing.stage("sign", seconds):
                    data = await _on_thread(self._writers, self._signer.sign, data, output_format)
        self._record_timings(seed, seconds)
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
        """As `edit`, with its progress. The image comes last. Closing the generator cancels the work.

        A request that is refused raises before the first item.
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
                # A job that is run again repeats its steps.
                if (key := (one.step, one.preview is not None)) in done:
                    continue
                done.add(key)
                preview = await self._encode_preview(one.preview, preview_format) if one.preview else None
                yield StepDone(one.step, one.steps, preview)
            yield task.result()
        finally:
            task.cancel()
            await asyncio.wait({task})

    async def _encode_preview(self, preview: Pixels, output_format: OutputFormat) -> EncodedPreview:
        metadata = self._metadata("")
        data = await _on_thread(self._writers, encode_preview, preview, output_format, metadata, IMAGE_SIZE)
        return EncodedPreview(data, IMAGE_SIZE, IMAGE_SIZE)

    def _record_timings(self, seed: int, seconds: dict[str, float]) -> None:
        """Add the stage times of an image to the metrics and to the log line of its request."""
        for stage, value in seconds.items():
            self._metrics.stage_seconds.labels(stage).observe(value)
        if (fields := log_fields.get()) is not None:
            stages = {stage: round(value * 1000, 1) for stage, value in seconds.items()}
            fields.setdefault("pictures", []).append({"seed": seed, "stage_milliseconds": stages})

    def _metadata(self, text: str) -> Marks:
        return Marks(text if self._settings.embed_parameters else None, generated=self._settings.mark_pictures)

    async def infotext_of(self, file: bytes, call: RequestInfo) -> str:
        """The generation parameters in an image file, as a text; empty if there are none.

        Raises:
            ServiceError: the file cannot be read.
        """
        return await self._decoders.parameters(file, call.caller)

    def render_metrics(self) -> bytes:
        """All series in Prometheus' text format."""
        return self._metrics.render()

    async def drain(self) -> None:
        """Refuse new requests, and return when the running ones are done; settings limit both times."""
        await asyncio.gather(
            self._engine.drain(self._settings.drain_seconds), asyncio.sleep(self._settings.drain_delay_seconds)
        )

    @property
    def status(self) -> Literal["ready", "starting", "draining", "unsigned"]:
        """`ready` if requests are taken; `unsigned` if images have to be signed and cannot be. Does no file work."""
        if self._engine.draining:
            return "draining"
        if not self._engine.ready:
            return "starting"
        return "ready" if self._signer is None or self._signer.able else "unsigned"

    @property
    def model(self) -> dict[str, str] | None:
        """What the workers loaded, and the device; None before that."""
        return self._engine.info.shown() if self._engine.info else None

    @property
    def model_name(self) -> str:
        """The last part of the model's id or path.

        Raises:
            Unavailable: the setting is `auto`, and no worker has loaded a model yet.
        """
        if self._model_id == "auto":
            raise Unavailable("The model is being loaded. Try again in a moment.", retry_after=5)
        return self._model_id.rstrip("/").rpartition("/")[2]

    @property
    def sampler(self) -> str:
        """The web UI's name for the model's scheduler; SDXL-Turbo's before a model is loaded."""
        return sampler_name(self._engine.info.scheduler if self._engine.info else "EulerAncestralDiscreteScheduler")

    @property
    def _model_id(self) -> str:
        return self._engine.info.model if self._engine.info else self._settings.model

    def check_count(self, count: int, param: str) -> None:
        """Check the number of images in one request against the size of the queue.

        Raises:
            InvalidParameter: it is more than `IMG2IMG_QUEUE_SIZE`, so that no later try would pass.
        """
        most = self._settings.queue_size
        if count > most:
            raise InvalidParameter(f"{param}: {count} images at once are more than may wait here: {most}.", param=param)

    def check_model(self, name: str | None, in_path: bool = False) -> None:
        """Check the model's name in a request.

        Args:
            name: None if the request has none.
            in_path: whether the name is a part of the path, which cannot be left out.

        Raises:
            ModelNotFound: it is neither the model's name nor one of `IMG2IMG_MODEL_ALIASES`.
        """
        aliases = {alias.strip() for alias in self._settings.model_aliases.split(",")} - {""}
        if name is None or name in aliases or (name and "*" in aliases):
            return
        if name not in (self.model_name, self._model_id):
            instead = f"Put '{self.model_name}' in the path" if in_path else f"Leave it out, send '{self.model_name}'"
            raise ModelNotFound(
                f"There is no model '{name[:64]}' here. {instead}, or have the service take other names by "
                "IMG2IMG_MODEL_ALIASES.",
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
