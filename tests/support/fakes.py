"""A torch-free model for tests of everything around it; a worker loads it as `tests.support.fakes:load`.

The prompt sets its behaviour: words `name=value`, in any order.

    tick=S       every UNet call takes S seconds
    admit=fail   encoding raises
    fail_at=N    the UNet call after N steps raises
    finish=fail  decoding raises;  finish=nan  the image is not finite
    preview=fail  making a preview raises
    lag=N        each UNet call is finished only after `ready` was read N times
    way=N        the same for previews and the image
    lag=lost, way=lost  reading that loses the device;  lag=fail, way=fail  it raises
    collect=fail  fetching it raises
    exit_at=N    the process ends with code 7 in the UNet call after N steps
    once=PATH    the other words apply only while PATH does not exist; the first to apply creates it
    hang_at=N    that call never returns
    sick_at=N    that call loses the device
    oom_at=N     that call runs out of memory;  oom=admit, oom=finish, oom=collect  so does that call of the model
    oom_above=N  so does every UNet call with more than N jobs
"""

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from app.engine.messages import Fault, Job, ModelInfo, Result, Timings
from app.errors import CheckpointError
from app.pixels import Pixels
from app.settings import WorkerSettings
from app.worker.protocols import Diffusion

FAKE = "tests.support.fakes:load"


@dataclass
class FakeState:
    job: Job
    index: int = 0
    words: dict[str, str] = field(default_factory=dict)

    @property
    def steps_run(self) -> int:
        return self.job.steps_run

    @property
    def done(self) -> bool:
        return self.index == self.steps_run


@dataclass
class Arriving:
    """Ready after `ready` was read `way` times; with `way` "lost" the device is lost, with "fail" the read fails."""

    way: str = "0"
    reads: int = 0

    @property
    def ready(self) -> bool:
        if self.way == "lost":
            raise OSError("the device is lost, as requested")
        if self.way == "fail":
            raise ValueError("fails when it is read, as requested")
        self.reads += 1
        return self.reads > int(self.way)


@dataclass
class FakeTick(Arriving):
    """`waits` counts how often it was waited for before it was ready."""

    waits: int = 0

    def seconds(self) -> float:
        self.waits += self.reads <= int(self.way)
        self.way = "0"
        return 0.25


@dataclass
class FakeDecoding(Arriving):
    state: FakeState = field(kw_only=True)


@dataclass
class FakePreview(Arriving):
    """One pixel, whose value is the step's number."""

    index: int = 0

    def pixels(self) -> Pixels:
        return Pixels(1, 1, bytes([self.index] * 3))


class FakeDiffusion:
    """Adds seed and steps to each byte of the image; records the ids of each call."""

    def __init__(self, device: str) -> None:
        self.info = ModelInfo(
            "fake", "", "checkpoint", device, "float32", "it is a test", "EulerAncestralDiscreteScheduler"
        )
        self.compiled = False
        self.max_jobs = 4
        self.graphs = 0
        self.prepared = 0
        self.ticks: list[list[str]] = []
        self.queue: list[FakeTick] = []
        self.finished: list[list[str]] = []
        self.layers_left = 3
        self.freed = 0
        self.broken: Path | None = None

    def memory(self) -> dict[str, int]:
        return {"allocated": 3, "reserved": 5, "free": 7}

    def prepare(self) -> None:
        self.prepared += 1

    def pack_next_layers(self) -> bool:
        self.layers_left -= 1
        return self.layers_left >= 0

    def admit(self, job: Job) -> FakeState:
        state = FakeState(job, words=dict(word.split("=", 1) for word in job.prompt.split() if "=" in word))
        if state.words.get("admit") == "fail":
            raise ValueError("fails in admit, as requested")
        self._starve(state, "admit")
        if self.broken and self.broken.exists():
            raise ValueError("makes no images, as requested")
        return state

    def tick(self, states: Sequence[FakeState]) -> FakeTick:
        self.ticks.append([state.job.id for state in states])
        for state in states:
            if len(states) > int(state.words.get("oom_above", 99)):
                raise MemoryError("too little memory for so many, as requested")
            self._misbehave(state)
        time.sleep(max(float(state.words.get("tick", 0)) for state in states))
        for state in states:
            state.index += 1
        self.queue.append(FakeTick(max((state.words.get("lag", "0") for state in states), key=len)))
        return self.queue[-1]

    def preview(self, state: FakeState) -> "FakePreview":
        if state.words.get("preview") == "fail":
            raise ValueError("fails in preview, as requested")
        return FakePreview(state.words.get("way", "0"), index=state.index)

    def finish(self, states: Sequence[FakeState]) -> list[FakeDecoding]:
        self.finished.append([state.job.id for state in states])
        for state in states:
            if state.words.get("finish") == "fail":
                raise ValueError("fails in finish, as requested")
            self._starve(state, "finish")
        return [FakeDecoding(state.words.get("way", "0"), state=state) for state in states]

    def collect(self, decoding: FakeDecoding) -> Result | None:
        if decoding.state.words.get("collect") == "fail":
            raise ValueError("fails in collect, as requested")
        self._starve(decoding.state, "collect")
        return None if decoding.state.words.get("finish") == "nan" else self._result(decoding.state)

    def fault(self, error: Exception) -> Fault:
        if isinstance(error, MemoryError):
            return "memory"
        return "device" if isinstance(error, OSError) else "job"

    def release_memory(self) -> None:
        self.freed += 1

    @staticmethod
    def _again(words: dict[str, str]) -> bool:
        """Whether a behaviour that happens `once` has happened before."""
        if "once" not in words:
            return False
        there = Path(words["once"]).exists()
        Path(words["once"]).touch()
        return there

    def _starve(self, state: FakeState, where: str) -> None:
        if state.words.get("oom") == where and not self._again(state.words):
            raise MemoryError("too little memory, as requested")

    def _misbehave(self, state: FakeState) -> None:
        here = str(state.index)
        words = state.words
        if here not in (words.get(f"{what}_at") for what in ("exit", "hang", "fail", "sick", "oom")):
            return
        if self._again(words):
            return
        if words.get("oom_at") == here:
            raise MemoryError("too little memory, as requested")
        if words.get("sick_at") == here:
            raise OSError("the device is lost, as requested")
        if words.get("exit_at") == here:
            os._exit(7)
        if words.get("hang_at") == here:
            time.sleep(3600)  # pragma: no cover  the process is killed meanwhile, as in what follows
        raise ValueError("fails in tick, as requested")

    @staticmethod
    def _result(state: FakeState) -> Result:
        job = state.job
        shift = (job.seed + job.steps_run) % 256
        data = job.pixels.data.translate(bytes((value + shift) % 256 for value in range(256)))
        return Result(
            pixels=Pixels(job.pixels.width, job.pixels.height, data),
            steps_run=job.steps_run,
            start_timestep=999.0,
            tokens_cut=max(0, len(job.prompt.split()) - 75),
            lookups=(("prompt", True), ("image", False)),
            timings=Timings(0.001, 0.002, 0.003, 0.004),
        )


def load(settings: WorkerSettings, device: str) -> Diffusion:
    """A model whose loading follows `IMG2IMG_MODEL`: `broken` raises, `slow` takes a second, `dies` exits.

    With `until=PATH` the model fails once PATH exists. Any other value loads a working model.
    """
    if settings.model == "broken":
        raise CheckpointError("there is no such checkpoint")
    if settings.model == "dies":
        os._exit(9)
    if settings.model == "slow":
        time.sleep(1)
    diffusion = FakeDiffusion(device)
    if settings.model.startswith("until="):
        diffusion.broken = Path(settings.model.removeprefix("until="))
    if settings.max_batch != "auto":
        diffusion.max_jobs = settings.max_batch
    return diffusion


def lightning(settings: WorkerSettings, device: str) -> Diffusion:
    """A model with another scheduler."""
    diffusion = FakeDiffusion(device)
    diffusion.info = replace(diffusion.info, scheduler="EulerDiscreteScheduler")
    return diffusion


def removable(settings: WorkerSettings, device: str) -> Diffusion:
    """A model on a machine that has a GPU while the file `IMG2IMG_MODEL` exists."""
    present = Path(settings.model).exists()
    if device == "auto":
        device = "cuda:0" if present else "cpu"
    if device == "cuda:0" and not present:
        raise CheckpointError("there is no cuda:0")
    return FakeDiffusion(device)


def chosen(settings: WorkerSettings, device: str) -> Diffusion:
    """A model whose `auto` means something else for every process; `reason` shows the settings that it was given."""
    pid = os.getpid()
    auto = f"chosen by {pid}"
    diffusion = FakeDiffusion("cuda:1" if device == "auto" else device)
    diffusion.max_jobs = jobs_of(pid) if settings.max_batch == "auto" else settings.max_batch
    diffusion.info = ModelInfo(
        model="owner/name",
        revision="main",
        vae="owner/vae",
        device=diffusion.info.device,
        dtype=auto if settings.dtype == "auto" else settings.dtype,
        reason=f"{settings.model}, {settings.vae}",
        scheduler=auto,
        model_setting=f"owner/name@{auto}" if settings.model == "auto" else settings.model,
        vae_setting=f"owner/vae@{auto}" if settings.vae == "auto" else settings.vae,
    )
    return diffusion


def jobs_of(pid: int) -> int:
    """The batch limit that `chosen` measures in a process; the next process measures another one."""
    return 2 + pid % 30


def each(settings: WorkerSettings, device: str) -> Diffusion:
    """A model on a device of its own."""
    return FakeDiffusion(f"{device}:{os.getpid()}")


def hang(settings: WorkerSettings, device: str) -> FakeDiffusion:  # pragma: no cover
    """A model that never finishes loading."""
    time.sleep(3600)
    return FakeDiffusion(device)


def babble(settings: WorkerSettings, device: str) -> FakeDiffusion:  # pragma: no cover
    """A worker that writes garbage to its own pipe."""
    os.write(int(sys.argv[1]), b"\0\0\0\4junk")
    time.sleep(3600)
    return FakeDiffusion(device)
