"""The served whole under 1, 4 and 16 clients, beside one diffusers pipeline behind a lock."""

import asyncio
import io
import statistics
import time
from dataclasses import replace
from pathlib import Path

import httpx2

from scripts.benchmarks.load import Request, closed
from scripts.benchmarks.servers import OURS, REFERENCE, Kind, running
from scripts.benchmarks.single import computing, form
from scripts.prove_gpu import device, images
from scripts.prove_gpu.children import OutOfTime
from scripts.prove_gpu.record import Part
from scripts.prove_gpu.stages import Context
from scripts.prove_gpu.ways import SERVED

CLIENTS = (1, 4, 16)
REQUESTS = {"full": {1: 30, 4: 80, 16: 192}, "tiny": {1: 6, 4: 12, 16: 16}}
"""By the number of clients."""

WARM = 6
SIDE = 1024
"""Of an upload, in pixels."""


def run(context: Context, part: Part) -> None:
    """Measure our service and the reference, one after the other."""
    weights = context.weights()
    ours = replace(OURS, environment={"IMG2IMG_VAE": weights.vae, "IMG2IMG_DEVICES": device.name()})
    others = replace(REFERENCE, environment={"VAE": weights.vae, "DEVICE": device.name()})
    for kind in (ours, others):
        with running(kind, Path(weights.model)) as url:
            for clients in CLIENTS:
                if context.left() <= 0:
                    raise OutOfTime(f"{kind.name} with {clients} clients was not begun")
                _measure(context, part, kind, url, clients)
            if kind is ours:
                (context.out / "metrics.txt").write_text(httpx2.get(f"{url}/metrics", trust_env=False).text)


def _measure(context: Context, part: Part, kind: Kind, url: str, clients: int) -> None:
    count = REQUESTS[context.size][clients]
    if clients == 1:
        answers = _in_turn(url, count)
        latencies = [seconds for seconds, _ in answers]
        elapsed, beside = sum(latencies), statistics.median(others for _, others in answers)
    else:
        todo = [_request(1000 * clients + number) for number in range(count)]
        load = asyncio.run(closed(url, todo, clients))
        latencies, elapsed, beside = load.latencies, load.elapsed, None
    cuts = statistics.quantiles(latencies, n=100, method="inclusive")
    part.row(
        SERVED,
        server=kind.name,
        clients=clients,
        **{
            "images/s": count / elapsed,
            **{f"p{percent}, ms": 1000 * cuts[percent - 1] for percent in (50, 95, 99)},
            "beside the model, ms": None if beside is None else 1000 * beside,
        },
    )


def _request(number: int) -> Request:
    """A default request with an image and a prompt of its own, so that no cache helps."""
    return Request(_jpeg(number), {"prompt": f"wizard {number}", "seed": str(number)})


def _in_turn(url: str, count: int) -> list[tuple[float, float]]:
    """For each request of one client: its seconds, and those of them that the model does not take."""
    found = []
    with httpx2.Client(base_url=url, trust_env=False, timeout=600) as client:
        for number in range(WARM + count):
            request = form(client, _jpeg(number), number, prompt=f"wizard {number}")
            start = time.perf_counter()
            answer = client.send(request).raise_for_status()
            seconds = time.perf_counter() - start
            found.append((seconds, seconds - computing(answer)))
    return found[WARM:]


def _jpeg(number: int) -> bytes:
    buffer = io.BytesIO()
    images.photo(number).resize((SIDE, SIDE)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
