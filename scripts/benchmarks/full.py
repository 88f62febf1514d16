"""A full-size model on the CPU: time of an image, time to start and memory, compared with a bare pipeline.

Takes a random checkpoint from `scripts/make_checkpoint --size full`. Memory holds only one server at a time, so they
alternate. Each turn first reads the files into the page cache. On a virtual machine whose host reclaims free memory,
most of a start is waiting for memory, for all servers alike.
"""

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import httpx2
import torch
from diffusers import AutoencoderTiny
from safetensors import safe_open

from scripts.benchmarks.report import ROOT, Goal, Outcome
from scripts.benchmarks.servers import OURS, running
from scripts.benchmarks.single import post, upload
from scripts.make_checkpoint import tiny_vae_config

TURNS = 2
IMAGES = 3
"""Images of each turn. The first is requested at readiness; its time counts from the start of the process."""


def case(model: Path) -> Outcome:
    """Measure the bare pipeline, our service, and our service with a tiny VAE, alternating."""
    found: dict[str, list[dict[str, float]]] = {"bare": [], "ours": [], "ours, tiny VAE": []}
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        AutoencoderTiny.from_config(tiny_vae_config("full")).save_pretrained(folder)
        for _ in range(TURNS):
            found["bare"].append(_bare(model))
            found["ours"].append(_ours(model, "checkpoint"))
            found["ours, tiny VAE"].append(_ours(model, folder))
    medians = {
        name: {what: statistics.median(turn[what] for turn in turns) for what in turns[0]}
        for name, turns in found.items()
    }
    bare, ours, tiny = medians.values()
    weights = _weights(model)
    return Outcome(
        "full",
        f"{model.name}, {weights / 4e9:.2f} billion parameters in float32 on the CPU: 4 steps, strength 0.9",
        (
            "what",
            "s an image",
            "of bare",
            "s to ready",
            "of bare",
            "s to the first image",
            "of bare",
            "peak memory, of the weights",
        ),
        [
            (
                name,
                *(one["image"], one["image"] / bare["image"]),
                *(one["ready"], one["ready"] / bare["ready"]),
                *(one["first"], one["first"] / bare["first"]),
                one["peak"] / weights,
            )
            for name, one in medians.items()
        ],
        [
            Goal("time", "an image, of bare", ours["image"] / bare["image"], at_most=0.9),
            Goal("time", "the same with a tiny VAE", tiny["image"] / bare["image"], at_most=0.65),
            Goal("time", "to ready, of bare", ours["ready"] / bare["ready"], at_most=0.6),
            Goal("time", "to live, s", ours["live"], at_most=1.5),
            Goal("memory", "peak memory, of the weights", ours["peak"] / weights, at_most=1.1),
        ],
    )


def _bare(model: Path) -> dict[str, float]:
    _read(model)
    done = subprocess.run(
        [sys.executable, "-m", "scripts.benchmarks.peers.bare"],
        cwd=ROOT,
        env={**os.environ, "MODEL": str(model), "ROUNDS": str(IMAGES)},
        stdout=subprocess.PIPE,
        check=True,
    )
    result = json.loads(done.stdout.splitlines()[-1])
    first, *others = result["images"]
    ready = result["loaded"]
    return {"image": statistics.median(others), "ready": ready, "first": ready + first, "peak": result["peak"]}


def _ours(model: Path, vae: str) -> dict[str, float]:
    _read(model)
    start = time.perf_counter()
    with running(replace(OURS, ready="/health/live", environment={"IMG2IMG_VAE": vae}), model) as url:
        live = time.perf_counter() - start
        with httpx2.Client(base_url=url, trust_env=False, timeout=3600) as client:
            while client.get("/health/ready").is_error:
                time.sleep(0.05)
            ready = time.perf_counter() - start
            images = []
            for seed in range(IMAGES):
                before = time.perf_counter()
                # A new image and prompt for each request, so that no cache helps.
                post(client, upload(seed), seed, prompt=f"wizard {seed}")
                images.append(time.perf_counter() - before)
            metrics = client.get("/metrics").text
    peak = re.search(r"^img2img_worker_peak_memory_bytes\{.*\} (.*)$", metrics, re.MULTILINE)
    return {
        "image": statistics.median(images[1:]),
        "ready": ready,
        "first": ready + images[0],
        "peak": float(peak[1]) if peak else 0.0,
        "live": live,
    }


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
