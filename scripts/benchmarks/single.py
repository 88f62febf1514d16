"""One request at a time, from its first byte to the picture's last: ours beside the reference."""

import io
import statistics
import time
from dataclasses import replace
from pathlib import Path

import httpx2
import numpy as np
from PIL import Image
from skimage import data

from scripts.benchmarks.report import Goal, Outcome
from scripts.benchmarks.servers import OURS, REFERENCE, running

ROUNDS = 24
SIZE = (1024, 1024)
REST_SECONDS = 0.03
"""Until the server that answered last leaves the cores alone: libgomp's threads look out for more work at first."""


def upload(shift: int = 0) -> bytes:
    """A JPEG file of a megapixel, another one for each `shift`."""
    buffer = io.BytesIO()
    Image.fromarray(np.roll(data.astronaut(), shift, axis=(0, 1))).resize(SIZE).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def form(client: httpx2.Client, image: bytes, seed: int, **fields: object) -> httpx2.Request:
    """What asks for one picture, written out: that is the client's own work, and no server's."""
    data = {"prompt": "a wizard", "seed": seed, **fields}
    request = client.build_request("POST", "/img2img", files={"image": ("start.jpg", image)}, data=data)
    return client.build_request("POST", "/img2img", content=request.read(), headers=request.headers)


def post(client: httpx2.Client, image: bytes, seed: int, **fields: object) -> httpx2.Response:
    """One picture; raises for an answer that is none."""
    return client.send(form(client, image, seed, **fields)).raise_for_status()


def on_worker(answer: httpx2.Response) -> float:
    """Seconds of the stages on the worker, from `Server-Timing`."""
    stages = dict(part.strip().split(";dur=") for part in answer.headers["server-timing"].split(","))
    return sum(float(stages[name]) for name in ("encode_prompt", "encode_image", "denoise", "vae")) / 1000


def case(model: Path) -> Outcome:
    """Ours, ours with its cache, and the reference, in turns."""
    image = upload()
    times: dict[str, list[float]] = {"ours": [], "ours, picture and prompt known": [], "reference": []}
    overhead: list[float] = []
    fresh = replace(OURS, environment={"IMG2IMG_CACHE_BYTES": "0"})
    with running(fresh, model) as plain, running(OURS, model) as cached, running(REFERENCE, model) as reference:
        clients = [httpx2.Client(base_url=url, trust_env=False, timeout=600) for url in (plain, cached, reference)]
        for seed in range(ROUNDS + 1):
            for (name, kept), client in zip(times.items(), clients, strict=True):
                request = form(client, image, seed)
                time.sleep(REST_SECONDS)
                start = time.perf_counter()
                answer = client.send(request).raise_for_status()
                seconds = time.perf_counter() - start
                if seed:
                    kept.append(seconds)
                    if name == "ours":
                        overhead.append(seconds - on_worker(answer))
        for client in clients:
            client.close()
    medians = {name: statistics.median(kept) for name, kept in times.items()}
    beside = statistics.median(overhead)
    rows = [(name, 1000 * seconds, seconds / medians["reference"]) for name, seconds in medians.items()]
    rows.append(("ours, beside the worker's time", 1000 * beside, beside / medians["reference"]))
    return Outcome(
        "request",
        "One request: a JPEG of 1024 x 1024, 4 steps, strength 0.9",
        ("server", "ms", "of the reference"),
        rows,
        [
            Goal("ours, of the reference", medians["ours"] / medians["reference"], at_most=0.8),
            Goal("beside the worker's time, ms", 1000 * beside, at_most=15),
        ],
    )
