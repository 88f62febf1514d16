"""The gain of a shared UNet call: images a second and memory against the number of jobs on board.

    python -m scripts.benchmarks.batch MODEL JOBS

measures one number of jobs and prints JSON. Each number has its own process, since peak memory is a process's.
"""

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from app import malloc
from app.engine.messages import Job
from app.engine.process import environment
from app.model.diffusion import SdxlDiffusion
from app.model.load import load
from app.pixels import Pixels
from app.settings import Settings
from app.worker.worker import peak_memory
from scripts.benchmarks.report import ROOT, Outcome

SIZES = (1, 2, 4, 8)
COLUMNS = ("images/s", "s until all are done", "s of a UNet call, for each", "peak memory, MiB")
TURNS = 3
ROUNDS = 5
MOST_SECONDS = 60.0
"""No round starts after this time."""


class Failed(Exception):
    """A measurement failed; the message is the last line of its error output."""


def case(model: Path) -> Outcome:
    """Measure each number of jobs on the default device, in its own process; the numbers alternate."""
    found: dict[int, list[tuple[float, ...]]] = {jobs: [] for jobs in SIZES}
    for _ in range(TURNS):
        for jobs in SIZES:
            found[jobs].append(run(model, jobs))
    return Outcome(
        "batch",
        "Jobs on board at once, 4 steps, strength 0.9: new prompts and images",
        ("jobs", *COLUMNS),
        [(jobs, *map(statistics.median, zip(*turns, strict=True))) for jobs, turns in found.items()],
    )


def run(model: Path, jobs: int) -> tuple[float, ...]:
    """The values of `COLUMNS`, measured in another process."""
    done = subprocess.run(
        [sys.executable, "-m", "scripts.benchmarks.batch", str(model), str(jobs)],
        cwd=ROOT,
        env={**environment(), "IMG2IMG_MAX_BATCH": str(jobs)},
        capture_output=True,
        check=False,
    )
    if done.returncode:
        raise Failed((done.stderr.decode(errors="replace").strip() or "no message").splitlines()[-1])
    result = json.loads(done.stdout.splitlines()[-1])
    return result["images"], result["seconds"], result["tick"] / jobs, result["peak"] / 2**20


def measure(model: Path, jobs: int) -> dict[str, float]:
    """Medians of several rounds: images a second, seconds of a round and of a UNet call, peak memory in bytes."""
    with malloc.loading():
        diffusion = load(Settings(model=str(model), cache_bytes=0), "auto")
    diffusion.prepare()
    while diffusion.pack_next_layers():
        pass
    rounds: list[tuple[float, float]] = []
    _round(diffusion, jobs)
    start = time.perf_counter()
    while len(rounds) < ROUNDS and (not rounds or time.perf_counter() - start < MOST_SECONDS):
        rounds.append(_round(diffusion, jobs))
    seconds, tick = (statistics.median(values) for values in zip(*rounds, strict=True))
    cuda = diffusion.device.type == "cuda"
    peak = torch.cuda.max_memory_allocated() if cuda else peak_memory()
    return {"images": jobs / seconds, "seconds": seconds, "tick": tick, "peak": peak}


def _round(diffusion: SdxlDiffusion, jobs: int) -> tuple[float, float]:
    """Seconds from the first job's admission to the last one's image, and of each UNet call."""
    start = time.perf_counter()
    states = [diffusion.admit(_job(index)) for index in range(jobs)]
    before = time.perf_counter()
    while not states[0].done:
        diffusion.tick(states)
    if diffusion.device.type == "cuda":
        torch.cuda.synchronize()
    tick = (time.perf_counter() - before) / states[0].steps_run
    for decoding in diffusion.finish(states):
        diffusion.collect(decoding)
    return time.perf_counter() - start, tick


def _job(index: int) -> Job:
    pixels = Pixels(512, 512, bytes([index]) * (512 * 512 * 3))
    return Job(str(index), pixels, f"wizard {index}", None, 4, 0.9, 0.0, index, float("inf"))


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]), int(sys.argv[2]))))
