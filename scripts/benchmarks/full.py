"""A full-size model on the CPU: time of an image, time to start and memory, compared with a bare pipeline.

Takes a random checkpoint from `scripts/make_checkpoint --size full`. Memory holds only one server at a time, so they
alternate. Each turn first reads the files into the page cache. On a virtual machine whose host reclaims free memory,
most of a start is waiting for memory, for all servers alike.
"""

import io
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import httpx2
import numpy as np
import torch
from diffusers import AutoencoderTiny
from PIL import Image
from safetensors import safe_open

from scripts.benchmarks.likeness import psnr
from scripts.benchmarks.report import ROOT, Goal, Outcome
from scripts.benchmarks.servers import ENVIRONMENTS, OURS, environment, running
from scripts.benchmarks.single import post, upload
from scripts.make_checkpoint import tiny_vae_config

TURNS = 2
IMAGES = 3
"""Images of each turn. The first is requested at readiness; its time counts from the start of the process."""


@dataclass(frozen=True)
class Turn:
    """One start and its images. Times are in seconds, the peak memory in bytes.

    Attributes:
        image: an image after the first one.
        ready: from the start of the process until it can make images.
        first: from the start of the process until the first image.
        peak: the process that runs the model.
        live: until the service answers; 0 for the pipeline.
        dtype: what the model runs in.
        pixels: the images, `uint8[512, 512, 3]` each; none of the pipeline.
    """

    image: float
    ready: float
    first: float
    peak: float
    live: float = 0.0
    dtype: str = "float32"
    pixels: tuple[np.ndarray, ...] = ()


PEERS: dict[str, Callable[[Path], Turn]] = {
    "openvino": lambda model: _loop(
        model, "ov", environment("openvino", "openvino.txt"), {"CONVERTED": str(_converted(model))}
    ),
}
"""Other ways to run the checkpoint."""


def case(model: Path, peers: Iterable[str] = ()) -> Outcome:
    """Measure the bare pipeline and our service in float32, as it comes, and with a tiny VAE, alternating.

    Args:
        model: the checkpoint.
        peers: names in `PEERS`, which are measured too.
    """
    turns: dict[str, list[Turn]] = {}
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        AutoencoderTiny.from_config(tiny_vae_config("full")).save_pretrained(folder)
        ways: dict[str, Callable[[], Turn]] = {
            "bare, float32": lambda: _loop(model, "bare", sys.executable),
            "ours, float32": lambda: _ours(model, IMG2IMG_DTYPE="float32"),
            "ours": lambda: _ours(model),
            "ours, tiny VAE": lambda: _ours(model, IMG2IMG_VAE=folder),
            **{peer: partial(PEERS[peer], model) for peer in peers},
        }
        for _ in range(TURNS):
            for name, way in ways.items():
                turns.setdefault(name, []).append(way())
    return _outcome(model, turns)


def _outcome(model: Path, turns: dict[str, list[Turn]]) -> Outcome:
    """The medians over the turns, as a table with goals."""
    bare, full, ours, tiny, *_ = medians = [_median(each) for each in turns.values()]
    weights = _weights(model)
    likeness = min(psnr(*pair) for pair in zip(ours.pixels, full.pixels, strict=True))
    return Outcome(
        "full",
        f"{model.name}, {weights / 4e9:.2f} billion parameters on the CPU: 4 steps, strength 0.9; ours is "
        f"{ours.dtype}, {likeness:.3g} dB PSNR from ours in float32",
        (
            *("what", "s an image", "of bare", "s to ready", "of bare", "s to the first image", "of bare"),
            *("peak memory, GB", "of bare", "of the weights in float32"),
        ),
        [
            (
                name,
                *(one.image, one.image / bare.image),
                *(one.ready, one.ready / bare.ready),
                *(one.first, one.first / bare.first),
                *(one.peak / 1e9, one.peak / bare.peak, one.peak / weights),
            )
            for name, one in zip(turns, medians, strict=True)
        ],
        [
            Goal("time", "an image in float32, of bare", full.image / bare.image, at_most=0.9),
            *(
                [
                    Goal("time", "an image, of bare", ours.image / bare.image, at_most=0.55),
                    Goal("time", "the same with a tiny VAE", tiny.image / bare.image, at_most=0.33),
                    Goal("memory", "peak memory, of bare", ours.peak / bare.peak, at_most=0.6),
                ]
                if ours.dtype == "bfloat16"
                else [Goal("time", "an image with a tiny VAE, of bare", tiny.image / bare.image, at_most=0.65)]
            ),
            Goal("time", "to ready, of bare", ours.ready / bare.ready, at_most=0.6),
            Goal("time", "to live, s", ours.live, at_most=1.5),
            Goal("memory", "peak memory in float32, of the weights", full.peak / weights, at_most=1.1),
        ],
    )


def _median(turns: list[Turn]) -> Turn:
    """The median of each number, with the images of the first turn: they are the same in all."""
    numbers = {
        name: statistics.median(getattr(turn, name) for turn in turns)
        for name in ("image", "ready", "first", "peak", "live")
    }
    return replace(turns[0], **numbers)


def _loop(model: Path, module: str, python: str, variables: dict[str, str] | None = None) -> Turn:
    """Run a module of `peers` that calls a pipeline in a loop, without a server."""
    _read(model)
    done = subprocess.run(
        [python, "-m", f"scripts.benchmarks.peers.{module}"],
        cwd=ROOT,
        env={**os.environ, "MODEL": str(model), "ROUNDS": str(IMAGES), **(variables or {})},
        stdout=subprocess.PIPE,
        check=True,
    )
    result = json.loads(done.stdout.splitlines()[-1])
    first, *others = result["images"]
    ready = result["loaded"]
    return Turn(image=statistics.median(others), ready=ready, first=ready + first, peak=result["peak"])


def _converted(model: Path) -> Path:
    """The checkpoint in OpenVINO's format, which is written if it does not exist. Takes 19 GB of memory."""
    folder = ENVIRONMENTS / "openvino" / model.name
    done = folder / "done"
    if not done.exists():
        variant = ["--variant", "fp16"] if any(model.rglob("*.fp16.safetensors")) else []
        tool = Path(environment("openvino", "openvino.txt")).with_name("optimum-cli")
        how = ["--library", "diffusers", "--task", "text-to-image", "--weight-format", "fp16", *variant]
        subprocess.run([tool, "export", "openvino", "--model", model, *how, folder], check=True)
        done.touch()
    return folder


def _ours(model: Path, **environment: str) -> Turn:
    _read(model)
    start = time.perf_counter()
    kind = replace(OURS, ready="/health/live", environment={"IMG2IMG_VAE": "checkpoint", **environment})
    with running(kind, model) as url:
        live = time.perf_counter() - start
        with httpx2.Client(base_url=url, trust_env=False, timeout=3600) as client:
            while (health := client.get("/health/ready")).is_error:
                time.sleep(0.05)
            ready = time.perf_counter() - start
            seconds, pixels = [], []
            for seed in range(IMAGES):
                before = time.perf_counter()
                # A new image and prompt for each request, so that no cache helps.
                answer = post(client, upload(seed), seed, prompt=f"wizard {seed}")
                seconds.append(time.perf_counter() - before)
                pixels.append(np.asarray(Image.open(io.BytesIO(answer.content)).convert("RGB")))
            metrics = client.get("/metrics").text
    peak = re.search(r"^img2img_worker_peak_memory_bytes\{.*\} (.*)$", metrics, re.MULTILINE)
    return Turn(
        image=statistics.median(seconds[1:]),
        ready=ready,
        first=ready + seconds[0],
        peak=float(peak[1]) if peak else 0.0,
        live=live,
        dtype=health.json()["model"]["dtype"],
        pixels=tuple(pixels),
    )


def _read(model: Path) -> None:
    for path in model.rglob("*.safetensors"):
        with path.open("rb", buffering=0) as file:
            while file.read(2**24):
                pass


def _weights(model: Path) -> int:
    """Size of all parameters in float32, in bytes."""
    total = 0
    for path in model.rglob("*.safetensors"):
        with safe_open(path, "pt") as weights:
            shapes = [weights.get_slice(name).get_shape() for name in weights.keys()]  # noqa: SIM118
        total += sum(4 * torch.Size(shape).numel() for shape in shapes)
    return total
