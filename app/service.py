"""The way of one picture, in order: admit, decode, run, encode. The only thing that routes call."""

import asyncio
import os
import secrets
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Literal, TypeVar

from app import __version__, images
from app.engine.engine import Engine
from app.engine.jobs import Job, Progress
from app.metrics import Metrics
from app.request import Img2ImgRequest, OutputFormat
from app.sandbox import Sandbox
from app.settings import Settings

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Call:
    """A request besides what it asks for.

    Attributes:
        request_id: names it in the log.
        caller: who has to share with other callers.
        timeout: seconds that the caller will wait; None leaves it to the service.
    """

    request_id: str
    caller: str = ""
    timeout: float | None = None


@dataclass(frozen=True, slots=True)
class Picture:
    """An answer. `seconds` holds the time of each stage, by its name in `Server-Timing`, in the order of the way."""

    data: bytes = field(repr=False)
    output_format: OutputFormat
    seed: int
    steps_run: int
    start_timestep: float
    tokens_cut: int
    seconds: dict[str, float]

    @property
    def filename(self) -> str:
        """A name for the file that tells one seed from another."""
        return f"img2img-{self.seed}.{self.output_format.value}"


class Service:
    """Ties the engine to picture formats: they are read by processes and written by threads of its own.

    Args:
        settings: limits of the pictures.
        engine: started and stopped by whoever made it.
        metrics: where stage times go.
    """

    def __init__(self, settings: Settings, engine: Engine, metrics: Metrics) -> None:
        self.settings = settings
        self.engine = engine
        self.metrics = metrics
        # As many as there are cores: decoding a large picture holds up to 200 MB, and more at once is no faster.
        count = os.cpu_count() or 1
        self._writers = ThreadPoolExecutor(count, "writers")
        self._helpers = ThreadPoolExecutor(count, "helpers")
        self._sandbox = Sandbox(settings.max_image_pixels, count, metrics.decoder_deaths.inc)

    def close(self) -> None:
        """Let the threads and the decoders go."""
        for threads in (self._writers, self._helpers):
            threads.shutdown(wait=False, cancel_futures=True)
        self._sandbox.close()

    async def edit(
        self,
        upload: bytes,
        request: Img2ImgRequest,
        call: Call,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> Picture:
        """Make one picture of an uploaded one.

        Args:
            upload: a PNG, JPEG or WebP file.
            request: what to make of it; `output_format` None means PNG.
            call: whose request it is, and how long there is for it.
            on_progress: called on the event loop after each UNet call of this picture.

        Raises:
            ServiceError: any of the tree in `app.errors`.
        """
        output_format = request.output_format or OutputFormat.PNG
        seed = secrets.randbelow(2**32) if request.seed is None else request.seed
        with self.engine.admit(request.unet_rows, call.caller, call.timeout) as deadline:
            start = time.perf_counter()
            pixels = await self._sandbox.decode(upload, request.fit, deadline, call.caller)
            decoded = time.perf_counter()
            job = Job(
                # The engine needs a name that no other job has; the caller chose the request's.
                id=f"{call.request_id}.{secrets.token_hex(4)}",
                pixels=pixels,
                prompt=request.prompt,
                negative_prompt=request.negative_prompt or None,
                num_inference_steps=request.num_inference_steps,
                strength=request.strength,
                guidance_scale=request.guidance_scale,
                seed=seed,
                deadline=deadline,
            )
            result = await self.engine.run(job, on_progress, call.caller)
        finished = time.perf_counter()
        text = self._infotext(request, seed) if self.settings.embed_parameters else None
        data = await _on_thread(self._writers, images.encode, result.pixels, output_format, text, self._helpers)
        seconds = {
            "queue": result.queued,
            "decode": decoded - start,
            "encode_prompt": result.timings.encode_prompt,
            "encode_image": result.timings.encode_image,
            "denoise": result.timings.denoise,
            "vae": result.timings.vae,
            output_format.value: time.perf_counter() - finished,
        }
        for stage, value in seconds.items():
            self.metrics.stage_seconds.labels(stage).observe(value)
        return Picture(
            data=data,
            output_format=output_format,
            seed=seed,
            steps_run=result.steps_run,
            start_timestep=result.start_timestep,
            tokens_cut=result.tokens_cut,
            seconds=seconds,
        )

    async def drain(self) -> None:
        """Refuse new requests, let those that run finish, and return; the settings say how long either may take."""
        await asyncio.gather(
            self.engine.drain(self.settings.drain_seconds), asyncio.sleep(self.settings.drain_delay_seconds)
        )

    @property
    def status(self) -> Literal["ready", "starting", "draining"]:
        """`ready` if a picture can be asked for now."""
        if self.engine.draining:
            return "draining"
        return "ready" if self.engine.ready else "starting"

    @property
    def model(self) -> dict[str, str] | None:
        """What the workers loaded, and where; None until one has."""
        return asdict(self.engine.info) if self.engine.info else None

    def _infotext(self, request: Img2ImgRequest, seed: int) -> str:
        model = self.engine.info.model.rpartition("/")[2] if self.engine.info else "unknown"
        return images.infotext(request, seed, model, __version__)


async def _on_thread(threads: ThreadPoolExecutor, function: Callable[..., T], *arguments: object) -> T:
    return await asyncio.get_running_loop().run_in_executor(threads, function, *arguments)
