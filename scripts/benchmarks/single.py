"""Latency of single requests, from the first byte sent to the last byte received: ours and the reference's."""

import io
import statistics
import time
from dataclasses import replace
from pathlib import Path

import httpx2
import numpy as np
from PIL import Image

from scripts.benchmarks.report import Goal, Outcome
from scripts.benchmarks.servers import OURS, REFERENCE, running

TURNS = 12
IN_A_ROW = 3
"""Requests of each turn after its first one, which follows a pause in which caches went cold."""
SIZE = (1024, 1024)
REST_SECONDS = 0.03
"""Pause until the previous server's cores are idle: libgomp's threads spin for a while after work."""
COMPUTING = ("encode_prompt", "encode_image", "denoise", "vae", "pipe")


def upload(shift: int = 0) -> bytes:
    """A JPEG file of one megapixel, different for each `shift`. Needs scikit-image."""
    from skimage import data

    buffer = io.BytesIO()
    Image.fromarray(np.roll(data.astronaut(), shift, axis=(0, 1))).resize(SIZE).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def form(client: httpx2.Client, image: bytes, seed: int, **fields: object) -> httpx2.Request:
    """The encoded request for one image, so that the client's encoding does not count as server time."""
    data = {"prompt": "a wizard", "seed": seed, **fields}
    request = client.build_request("POST", "/img2img", files={"image": ("start.jpg", image)}, data=data)
    return client.build_request("POST", "/img2img", content=request.read(), headers=request.headers)


def post(client: httpx2.Client, image: bytes, seed: int, **fields: object) -> httpx2.Response:
    """Send a request; raises if the answer is not an image."""
    return client.send(form(client, image, seed, **fields)).raise_for_status()


def computing(answer: httpx2.Response) -> float:
    """Seconds of the stages that compute the image, from `Server-Timing`: ours on the worker, or the reference's."""
    stages = dict(part.strip().split(";dur=") for part in answer.headers["server-timing"].split(","))
    return sum(float(stages.get(name, 0)) for name in COMPUTING) / 1000


def case(model: Path) -> Outcome:
    """Measure our service without and with its cache, and the reference, in alternating turns of a few requests."""
    image = upload()
    fresh = replace(OURS, environment={"IMG2IMG_CACHE_BYTES": "0"})
    names = ("ours", "ours, image and prompt cached", "reference")
    total: dict[str, list[float]] = {name: [] for name in names}
    beside: dict[str, list[float]] = {name: [] for name in names}
    rested: dict[str, list[float]] = {name: [] for name in names}
    with running(fresh, model) as plain, running(OURS, model) as cached, running(REFERENCE, model) as reference:
        clients = [httpx2.Client(base_url=url, trust_env=False, timeout=600) for url in (plain, cached, reference)]
        for turn in range(TURNS + 1):
            for name, client in zip(names, clients, strict=True):
                for number in range(IN_A_ROW + 1):
                    request = form(client, image, turn * IN_A_ROW + number)
                    time.sleep(REST_SECONDS)
                    start = time.perf_counter()
                    answer = client.send(request).raise_for_status()
                    seconds = time.perf_counter() - start
                    if not turn:
                        continue
                    if number:
                        total[name].append(seconds)
                        beside[name].append(seconds - computing(answer))
                    else:
                        rested[name].append(seconds - computing(answer))
        for client in clients:
            client.close()
    return _outcome(
        *({name: statistics.median(kept) for name, kept in each.items()} for each in (total, beside, rested))
    )


def _outcome(total: dict[str, float], beside: dict[str, float], rested: dict[str, float]) -> Outcome:
    """Medians in seconds: of a request, of its time outside the model, and of that for the first of each turn."""
    rows = [
        (name, 1000 * total[name], total[name] / total["reference"], 1000 * beside[name], 1000 * rested[name])
        for name in total
    ]
    return Outcome(
        "request",
        "One request: a JPEG of 1024 x 1024, 4 steps, strength 0.9",
        ("server", "ms", "of the reference", "beside the model, ms", "the same after a pause, ms"),
        rows,
        [
            Goal("time", "ours, of the reference", total["ours"] / total["reference"], at_most=0.8),
            Goal("time", "ours beside the model, ms", 1000 * beside["ours"], at_most=15),
            Goal(
                "time", "ours beside the model, of the reference's", beside["ours"] / beside["reference"], at_most=0.115
            ),
        ],
    )
