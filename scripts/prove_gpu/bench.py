"""Every way of running the model: time of an image, images a second, how busy the device is, memory, and the start."""

import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from scripts.prove_gpu.children import OutOfTime, lines
from scripts.prove_gpu.record import Part, Row
from scripts.prove_gpu.stages import Context, StageFailed, Weights
from scripts.prove_gpu.ways import EXPERIMENTS, JOBS, MAX, STARTS, WAYS, WAYS_TABLE, Way, settings

LEAST_SECONDS = 20.0
"""A way is not begun with less time."""

FINISHED = "finished"
"""The file that says that the folder has all compiled code of a way."""


def run(context: Context, part: Part) -> None:
    """The ways that a deployment chooses from, except the slowest to start."""
    _run(context, part, WAYS)


def run_max(context: Context, part: Part) -> None:
    """`IMG2IMG_COMPILE=max`, whose first start takes minutes."""
    _run(context, part, (MAX,))


def run_experiments(context: Context, part: Part) -> None:
    """Changes that no setting makes, and settings together."""
    _run(context, part, EXPERIMENTS)


def _run(context: Context, part: Part, ways: Sequence[Way]) -> None:
    weights, failed = context.weights(), []
    for way in ways:
        if way.vae == "tiny" and not weights.tiny_vae:
            part.note(f"{way.name} is not measured: there is no tiny VAE on this disk.")
            continue
        if context.left() < LEAST_SECONDS:
            raise OutOfTime(f"{way.name} was not begun")
        try:
            _measure(context, part, weights, way)
        except StageFailed as error:
            failed.append(way.name)
            part.note(f"{way.name} failed: {error}")
    if failed:
        raise StageFailed(f"{', '.join(failed)} cannot be run")


def _measure(context: Context, part: Part, weights: Weights, way: Way) -> None:
    """One way, and a second start where the first one leaves compiled code behind."""
    cache, kept = _cache(context, part, way), context.images / f"{way.file}.npy"
    kept.unlink(missing_ok=True)
    arguments = ["--jobs", *map(str, JOBS), "--images", str(kept)]
    if way.experiment:
        arguments += ["--experiment", way.experiment]
    environment = {**settings(weights, way), "IMG2IMG_COMPILE_CACHE": str(cache)}
    start, rows = time.perf_counter(), dict[int, Row]()
    log = context.out / f"{way.file}.log"
    log.unlink(missing_ok=True)
    try:
        for found in lines("scripts.prove_gpu.way", arguments, log, context.left(), environment):
            if "ready" in found:
                elapsed = time.perf_counter() - start
                started = part.row(STARTS, way=way.name, **{"CUDA graphs": found["graphs"], "s to ready": elapsed})
            elif "seconds" in found:
                rows[found["jobs"]] = part.row(WAYS_TABLE, **_row(way, **found))
            elif found["device_seconds"] is not None:
                row = rows[found["jobs"]]
                row["device busy"] = found["device_seconds"] / (row["ms until all are done"] / 1000)
                part.save()
    except StageFailed as error:
        if not kept.exists():
            raise
        part.note(f"{way.name}: the device's own time is not known, because the profiler failed ({error}).")
    if way.compiles:
        (cache / FINISHED).touch()
        start = time.perf_counter()
        for _ in lines("scripts.prove_gpu.way", (), log, context.left(), environment):
            started["s to ready from the kept cache"] = time.perf_counter() - start
            part.save()


def _cache(context: Context, part: Part, way: Way) -> Path:
    """The folder for compiled code: empty, unless the last run had no time to compile all."""
    cache = context.work / "compiled" / way.file
    if (cache / FINISHED).exists():
        shutil.rmtree(cache)
    elif cache.exists():
        part.note(f"{way.name}: its start goes on from what an earlier run has compiled without coming to an end.")
    return cache


def _row(way: Way, jobs: int, seconds: float, peak: int) -> Row:
    return {
        "way": way.name,
        "jobs": jobs,
        "ms until all are done": 1000 * seconds,
        "s an image": seconds / jobs,
        "images/s": jobs / seconds,
        "memory, GB": peak / 1e9,
        "device busy": None,
    }
