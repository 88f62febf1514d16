"""A torch-free fake model with faults on demand; a worker loads it as `scripts.resilience.model:load`.

`IMG2IMG_MODEL` is a folder. If it has a file `fault`, the next UNet call or the next start removes the file and causes
the fault that it names.
"""

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from app.engine.messages import Fault, Job, ModelInfo, Result, Timings
from app.model.batch_limit import CANDIDATES
from app.pixels import Pixels
from app.settings import WorkerSettings
from app.worker.protocols import Diffusion

TICK_SECONDS = 0.004
"""Time of a UNet call, plus the same for each job in it: at most two hundred default images a second."""

FILE = "fault"
STARTS = ("dies at the start", "hangs at the start")
"""Faults at the next start."""

NO_START = "dies at every start"
"""A fault at every start: the file stays."""


@dataclass
class State:
    """A job between two UNet calls."""

    job: Job
    index: int = 0

    @property
    def steps_run(self) -> int:
        return self.job.steps_run

    @property
    def done(self) -> bool:
        return self.index == self.steps_run


@dataclass
class Tick:
    """A finished UNet call."""

    ready: bool = True

    def seconds(self) -> float:
        return TICK_SECONDS


@dataclass
class Decoding:
    """A decoded image."""

    state: State
    ready: bool = True


@dataclass
class FakePreview:
    """A preview of one pixel, whose value is the step's number."""

    index: int
    ready: bool = True

    def pixels(self) -> Pixels:
        return Pixels(1, 1, bytes([self.index] * 3))


class FaultyDiffusion:
    """Adds seed and steps to each byte of the image, so that an answer to another request is recognised."""

    def __init__(self, folder: Path, device: str, max_jobs: int) -> None:
        self.info = ModelInfo(
            "pretended", "", "checkpoint", device, "float32", "it is a test", "EulerAncestralDiscreteScheduler"
        )
        self.compiled = False
        self.graphs = 0
        self.max_jobs = max_jobs
        self.folder = folder
        self.room = 64

    def prepare(self) -> None:
        """No effect: it has nothing to compile, record or measure."""

    def pack_next_layers(self) -> bool:
        return False

    def admit(self, job: Job) -> State:
        if job.prompt == "poison":
            os._exit(9)
        return State(job)

    def tick(self, states: Sequence[State]) -> Tick:
        cause_fault(self.folder, self)
        if len(states) > self.room:
            raise MemoryError("fake: out of memory for this many jobs")
        time.sleep(TICK_SECONDS * (1 + len(states)))
        for state in states:
            state.index += 1
        return Tick()

    def preview(self, state: State) -> FakePreview:
        return FakePreview(state.index)

    def finish(self, states: Sequence[State]) -> list[Decoding]:
        return [Decoding(state) for state in states]

    def collect(self, decoding: Decoding) -> Result:
        job = decoding.state.job
        shift = (job.seed + 7 * job.steps_run) % 256
        data = job.pixels.data.translate(bytes((value + shift) % 256 for value in range(256)))
        pixels = Pixels(job.pixels.width, job.pixels.height, data)
        return Result(pixels, job.steps_run, 999.0, timings=Timings(0.001, 0.002, 0.003, 0.004))

    def fault(self, error: Exception) -> Fault:
        if isinstance(error, MemoryError):
            return "memory"
        return "device" if isinstance(error, OSError) else "job"

    def memory(self) -> dict[str, int]:
        return {}

    def release_memory(self) -> None:
        """No effect: it caches nothing."""


def cause_fault(folder: Path, model: FaultyDiffusion | None) -> None:
    """Cause the fault in the folder's file, if it is one for a start (`model` is None) or for a UNet call."""
    try:
        what = (folder / FILE).read_text()
        if (what in (*STARTS, NO_START)) != (model is None):
            return
        if what != NO_START:
            (folder / FILE).unlink()
    except FileNotFoundError:
        return
    match what:
        case "exit in a call" | "dies at the start" | "dies at every start":
            os._exit(7)
        case "hang in a call" | "hangs at the start":
            time.sleep(3600)
        case "exception":
            raise ValueError("fake: failed call")
        case "out of memory once":
            raise MemoryError("fake: out of memory")
        case "out of memory for more than two" if model:
            model.room = 2
        case "device lost":
            raise OSError("fake: device lost")
        case "garbage on the pipe":
            os.write(int(sys.argv[1]), b"\0\0\0\4junk")


def load(settings: WorkerSettings, device: str) -> Diffusion:
    """The loader of the worker."""
    folder = Path(settings.model)
    cause_fault(folder, None)
    max_jobs = CANDIDATES[-1] if settings.max_batch == "auto" else settings.max_batch
    return FaultyDiffusion(folder, device, max_jobs)
