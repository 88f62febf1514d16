"""The frozen dataclasses that cross the process boundary between engine and worker.

The engine sends a `Job`. The worker answers with `Started`, a `Progress` for each step, and either `Done` or `Failed`.
All times are seconds. A deadline is a reading of `time.monotonic()`, which is the same in every process on Linux.
"""

from dataclasses import asdict, dataclass, field
from typing import Literal

from app.pixels import Pixels
from app.request import steps_run, unet_rows
from app.settings import WorkerSettings


@dataclass(frozen=True, slots=True)
class Job:
    """One image to make.

    The width and height of `pixels` are multiples of 8, and equal for all jobs of one engine.
    `strength` is in (0, 1], and `int(num_inference_steps * strength)` is at least 1.
    A `guidance_scale` above 1 doubles the UNet's work: classifier-free guidance adds a second row to the batch.
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
    isolated: bool = False
    """Shares no UNet call. Set after a failed call, to find out whether this job is the cause."""
    previews: frozenset[int] = frozenset()
    """Step numbers, from 1, after which a preview is sent. The last step sends none: the image follows."""
    oom_retried: bool = False
    """It ran out of memory once while it was the only job on the device."""

    @property
    def steps_run(self) -> int:
        """UNet evaluations of a first-order scheduler (diffusers' `get_timesteps`)."""
        return steps_run(self.num_inference_steps, self.strength)

    @property
    def unet_rows(self) -> int:
        """Rows of UNet batches, over all steps."""
        return unet_rows(self.num_inference_steps, self.strength, self.guidance_scale)


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds of one job in each stage on the worker. `denoise` includes time spent on other jobs' ticks."""

    encode_prompt: float = 0.0
    encode_image: float = 0.0
    denoise: float = 0.0
    vae: float = 0.0


Lookup = Literal["prompt", "image"]
"""What is looked up in the encoders' caches."""


@dataclass(frozen=True, slots=True)
class Result:
    """A finished job. `tokens_cut` counts the prompt's tokens beyond the 77 that CLIP reads.

    `lookups` has one pair for each prompt and one for the image: its kind, and whether the cache had it.
    `redecoded` is true if the VAE overflowed and decoded again in float32.
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
    """To the worker, first message: `loader` is the `module:function` that loads the model on `device`."""

    loader: str
    device: str
    settings: WorkerSettings


@dataclass(frozen=True, slots=True)
class Cancel:
    """To the worker: the job's result is no longer needed."""

    job_id: str


@dataclass(frozen=True, slots=True)
class Canary:
    """To the worker, while it is idle: make a test image. Answered by `CanaryPassed` or `WorkerFailing`."""


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """The loaded model.

    `reason` says why this model was chosen. `scheduler` is its diffusers class name. `model_setting` and `vae_setting`
    are values of `IMG2IMG_MODEL` and `IMG2IMG_VAE` that select exactly these files; empty if the settings do already.
    """

    model: str
    revision: str
    vae: str
    device: str
    dtype: str
    reason: str
    scheduler: str
    model_setting: str = ""
    vae_setting: str = ""

    def shown(self) -> dict[str, str]:
        """The fields that `/health/ready` and `/metrics` show."""
        facts = asdict(self)
        del facts["model_setting"], facts["vae_setting"]
        return facts


@dataclass(frozen=True, slots=True)
class Ready:
    """From the worker: the weights are on the device and a test pass succeeded.

    `pass_seconds` is the time of one step at the real size, encoding and decoding included: measured or estimated.
    `capacity` is the number of jobs on board at once. `canary_seconds` is the time that a `Canary` takes.
    `graphs` is the number of CUDA graphs that were recorded, 0 if the model runs without.
    """

    info: ModelInfo
    pass_seconds: float
    capacity: int
    canary_seconds: float
    graphs: int = 0


@dataclass(frozen=True, slots=True)
class Preparing:
    """From the worker: a sign of life while it packs weights after `Ready` and jobs wait."""


@dataclass(frozen=True, slots=True)
class CanaryPassed:
    """From the worker: the answer to a `Canary`."""


@dataclass(frozen=True, slots=True)
class BatchLimitLowered:
    """From the worker: after running out of memory it takes at most `capacity` jobs on board at once."""

    capacity: int


@dataclass(frozen=True, slots=True)
class WorkerFailing:
    """From the worker, last message before exit: `device`, the device is lost; `canary`, the canary failed."""

    cause: Literal["device", "canary"]


@dataclass(frozen=True, slots=True)
class Started:
    """From the worker: the job is on board and about to be encoded."""

    job_id: str


@dataclass(frozen=True, slots=True)
class Progress:
    """From the worker: `step` of `steps` UNet calls are done for this job.

    A `preview` is sent in a second message for the same step, possibly after the message for the next one. It has one
    pixel for each latent: 64x64 for a 512x512 image.
    """

    job_id: str
    step: int
    steps: int
    preview: Pixels | None = None


@dataclass(frozen=True, slots=True)
class Ticked:
    """From the worker: one UNet call, shared by `jobs` jobs, took `seconds` of the device's time."""

    jobs: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Done:
    """From the worker: the job's image.

    `peak_memory` is the peak resident size of the worker process so far. `device_memory` is what is `allocated`,
    `reserved` and `free` on its GPU. All in bytes.
    """

    job_id: str
    result: Result
    peak_memory: int
    device_memory: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Failed:
    """From the worker: this job failed and no other; its traceback is in the worker's log."""

    job_id: str
    reason: Literal["error", "memory", "non_finite", "expired"]


@dataclass(frozen=True, slots=True)
class LoadFailed:
    """From the worker, last message before exit: the model cannot be loaded, and a retry would fail in the same way."""

    message: str


ToWorker = Job | Cancel | Canary
FromWorker = (
    Ready
    | Preparing
    | CanaryPassed
    | BatchLimitLowered
    | WorkerFailing
    | Started
    | Ticked
    | Progress
    | Done
    | Failed
    | LoadFailed
)
Fault = Literal["job", "memory", "device"]
"""What an exception of the model means: this job failed, the device is out of memory, or the device is lost."""
