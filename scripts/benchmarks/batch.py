"""What a shared UNet call brings: pictures a second and memory against the number of jobs on board.

    python -m scripts.benchmarks.batch MODEL JOBS

measures one number of jobs in a process of its own, since the largest memory is a process's, and prints JSON.
"""

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from app.engine import memory
from app.engine.diffusion import SdxlDiffusion, load
from app.engine.jobs import Job, Pixels
from app.engine.process import environment
from app.engine.worker import peak_memory
from app.settings import Settings
from scripts.benchmarks.report import ROOT, Outcome

SIZES = (1, 2, 4, 8)
ROUNDS = 5
MOST_SECONDS = 60.0
"""After so long, no further round begins."""


def case(model: Path) -> Outcome:
    """The device that `auto` means here."""
    rows = []
    for jobs in SIZES:
        command = [sys.executable, "-m", "scripts.benchmarks.batch", str(model), str(jobs)]
        done = subprocess.run(
            command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True
        )
        said = json.loads(done.stdout.splitlines()[-1])
        rows.append((jobs, said["pictures"], said["seconds"], said["tick"] / jobs, said["peak"] / 2**20))
    return Outcome(
        "batch",
        "Jobs on board at once, 4 steps, strength 0.9: new prompts and pictures",
        ("jobs", "pictures/s", "s until all are done", "s of a UNet call, for each", "peak memory, MiB"),
        rows,
    )


def measure(model: Path, jobs: int) -> dict[str, float]:
    """Medians of some rounds: pictures a second, seconds of a round and of a UNet call, and the peak memory in bytes."""
    with memory.loading():
        diffusion = load(Settings(model=str(model), cache_bytes=0), "auto")
    rounds: list[tuple[float, float]] = []
    start = time.perf_counter()
    _round(diffusion, jobs)
    while len(rounds) < ROUNDS and (not rounds or time.perf_counter() - start < MOST_SECONDS):
        rounds.append(_round(diffusion, jobs))
    whole, tick = (statistics.median(values) for values in zip(*rounds, strict=True))
    cuda = diffusion.device.type == "cuda"
    peak = torch.cuda.max_memory_allocated() if cuda else peak_memory()
    return {"pictures": jobs / whole, "seconds": whole, "tick": tick, "peak": peak}


def _round(diffusion: SdxlDiffusion, jobs: int) -> tuple[float, float]:
    """Seconds from the first job's admission to the last one's picture, and of each UNet call."""
    start = time.perf_counter()
    states = [diffusion.admit(_job(index)) for index in range(jobs)]
    before = time.perf_counter()
    while not states[0].done:
        diffusion.tick(states)
    if diffusion.device.type == "cuda":
        torch.cuda.synchronize()
    tick = (time.perf_counter() - before) / states[0].steps_run
    diffusion.finish(states)
    return time.perf_counter() - start, tick


def _job(index: int) -> Job:
    pixels = Pixels(512, 512, bytes([index]) * (512 * 512 * 3))
    return Job(str(index), pixels, f"wizard {index}", None, 4, 0.9, 0.0, index, float("inf"))


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]), int(sys.argv[2]))))
