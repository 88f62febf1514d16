"""The frozen dataclasses that cross the process boundary.

A `Job` goes to the worker; `Started`, a `Progress` for each step and one of `Done` and `Failed` come back. All times
are seconds; a deadline is a reading of `time.monotonic()`, which Linux counts alike in every process.
"""

from dataclasses import dataclass, field
from typing import Literal

from app.pixels import Pixels
from app.request import steps_run, unet_rows
from app.settings import WorkerSettings


@dataclass(frozen=True, slots=True)
class Job:
    """What one picture needs from the engine.

    The width and height of `pixels` are multiples of 8, and the same for all jobs of one engine.
    `strength` is in (0, 1], and `int(num_inference_steps * strength)` is at least 1.
    A `guidance_scale` above 1 doubles the UNet's work: classifier-free guidance runs a second row of the batch.
    """

    id: str
    pixels: Pixels
    prompt: str = field(repr=False)
    negative_prompt: str | None = field(repr=False)
    num_inference_steps: int
    strength: float
    guidance_scale: float
    seed: int
    deadline: float
    alone: bool = False
    """Shares no UNet call: it was on board when something went wrong, and shows so whether it is at fault."""
    previews: frozenset[int] = frozenset()
    """Numbers of the steps after which a preview is wanted; the last step has the picture itself."""
    starved: bool = False
    """There was too little memory for it once, though it was the only one on board."""

    @property
    def steps_run(self) -> int:
        """UNet evaluations of a first-order scheduler, as diffusers counts them (`get_timesteps`)."""
        return steps_run(self.num_inference_steps, self.strength)

    @property
    def unet_rows(self) -> int:
        """Rows of UNet batches that it costs."""
        return unet_rows(self.num_inference_steps, self.strength, self.guidance_scale)


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds of one job in each stage on the worker. `denoise` includes the ticks' other jobs."""

    encode_prompt: float = 0.0
    encode_image: float = 0.0
    denoise: float = 0.0
    vae: float = 0.0


Lookup = Literal["prompt", "image"]
"""What may have been encoded before."""


@dataclass(frozen=True, slots=True)
class Result:
    """A finished job. `tokens_cut` counts the prompt's tokens beyond the 77 that CLIP reads.

    `lookups` has one pair for each prompt and for the picture: what it is, and whether it had been encoded before.
    """

    pixels: Pixels
    steps_run: int
    start_timestep: float
    tokens_cut: int = 0
    redecoded: bool = False
    lookups: tuple[tuple[Lookup, bool], ...] = ()
    timings: Timings = Timings()
    queued: float = 0.0


@dataclass(frozen=True, slots=True)
class Start:
    """To the worker, first of all: `loader` is the `module:function` that makes the diffusion on `device`."""

    loader: str
    device: str
    settings: WorkerSettings


@dataclass(frozen=True, slots=True)
class Cancel:
    """To the worker: nobody waits for this job any more."""

    job_id: str


@dataclass(frozen=True, slots=True)
class Canary:
    """To the worker, when nothing else is to do: show that you still compute. Answered by `Alive`."""


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What the worker loaded, in words for the log, `/health/ready` and `/metrics`.

    `reason` says why this model, and `scheduler` is the name of its class in diffusers.
    """

    model: str
    revision: str
    vae: str
    device: str
    dtype: str
    reason: str
    scheduler: str


@dataclass(frozen=True, slots=True)
class Ready:
    """From the worker: weights are on the device and a real pass succeeded.

    `pass_seconds` is what one step takes at the real size, encoding and decoding included: measured, or a guess.
    `capacity` is how many jobs are on board at once. `canary_seconds` is what answering a `Canary` takes.
    """

    info: ModelInfo
    pass_seconds: float
    capacity: int
    canary_seconds: float


@dataclass(frozen=True, slots=True)
class Settling:
    """From the worker: a sign of life while it prepares what could wait until it was ready, and jobs wait for it."""


@dataclass(frozen=True, slots=True)
class Alive:
    """From the worker: it has answered a `Canary`."""


@dataclass(frozen=True, slots=True)
class Shrunk:
    """From the worker: the device has no room for more than `capacity` jobs on board at once."""

    capacity: int


@dataclass(frozen=True, slots=True)
class Sick:
    """From the worker, last words: `device`, its device failed for good; `canary`, it no longer makes pictures."""

    cause: Literal["device", "canary"]


@dataclass(frozen=True, slots=True)
class Started:
    """From the worker: the job is about to be encoded; it is on board from now on."""

    job_id: str


@dataclass(frozen=True, slots=True)
class Progress:
    """From the worker: `step` of `steps` UNet calls are done for this job.

    A `preview` comes by itself, after the step that it shows and maybe after the next one: a small picture, one pixel
    for each of the latents, 64x64 for 512x512.
    """

    job_id: str
    step: int
    steps: int
    preview: Pixels | None = None


@dataclass(frozen=True, slots=True)
class Ticked:
    """From the worker: one UNet call, which `jobs` jobs shared, took so many `seconds` of the host's time."""

    jobs: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Done:
    """From the worker: the job's picture.

    `peak_memory` is the largest resident size of the worker process so far, `device_memory` what is `allocated`,
    `reserved` and `free` on its GPU, all in bytes.
    """

    job_id: str
    result: Result
    peak_memory: int
    device_memory: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Failed:
    """From the worker: the job alone failed; its traceback is in the worker's log."""

    job_id: str
    reason: Literal["error", "memory", "non_finite", "expired"]


@dataclass(frozen=True, slots=True)
class Broken:
    """From the worker, last words: it could not load, for a reason that trying again will not change."""

    message: str


ToWorker = Job | Cancel | Canary
FromWorker = Ready | Settling | Alive | Shrunk | Sick | Started | Ticked | Progress | Done | Failed | Broken
Fault = Literal["job", "memory", "device"]
"""What an exception of the model says: this job cannot be done, there was too little memory, the device is lost."""
