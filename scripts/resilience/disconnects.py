"""Clients that disconnect, while they send a request or while it runs."""

import asyncio
import random
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from scripts.benchmarks.report import Goal, Outcome
from scripts.resilience.faults import load, requests
from scripts.resilience.target import Target, noise_png, serving

AT_ONCE = 40
LONGEST_SECONDS = 0.2
LONGEST_SETTLING_SECONDS = 30
_BOUNDARY = "boundary"


def raw_request(image: bytes, seed: int) -> bytes:
    """A complete HTTP request."""
    fields = {"prompt": "gone", "num_inference_steps": "8", "strength": "1", "seed": str(seed)}
    parts = [f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="{k}"\r\n\r\n{v}\r\n' for k, v in fields.items()]
    head = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
    body = "".join(parts).encode() + head.encode() + image + f"\r\n--{_BOUNDARY}--\r\n".encode()
    start = f"POST /img2img HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary={_BOUNDARY}\r\n"
    return f"{start}Content-Length: {len(body)}\r\n\r\n".encode() + body


async def _cut(target: Target, data: bytes, draw: random.Random) -> None:
    """Send a part of a request, or all of it and wait a moment; then close or abort the connection."""
    address = urlsplit(target.url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    complete = draw.random() < 0.5
    with suppress(ConnectionError):
        writer.write(data if complete else data[: draw.randrange(len(data))])
        await writer.drain()
        if complete:
            with suppress(TimeoutError):
                async with asyncio.timeout(draw.uniform(0, LONGEST_SECONDS)):
                    await reader.read(draw.randrange(1, 4096))
    if draw.random() < 0.5:
        writer.transport.abort()
    else:
        writer.close()


async def _cut_all(target: Target, count: int) -> None:
    draw = random.Random(0)
    image, left = noise_png(), list(range(count))

    async def one() -> None:
        while left:
            seed = left.pop()
            await _cut(target, raw_request(image, seed), draw)

    await asyncio.gather(*(one() for _ in range(AT_ONCE)))


def _jobs(target: Target) -> int:
    return int(target.metric("img2img_jobs_on_board") + target.metric("img2img_queue_depth"))


def _settled(target: Target) -> float:
    """Seconds until no job is left, at most `LONGEST_SETTLING_SECONDS`."""
    start = time.monotonic()
    while _jobs(target) and time.monotonic() - start < LONGEST_SETTLING_SECONDS:
        time.sleep(0.01)
    return time.monotonic() - start


def case(count: int) -> Outcome:
    """Cut off `count` requests, then send complete ones and compare their answers with those from before."""
    todo = requests(50)
    with tempfile.TemporaryDirectory() as name, serving(Path(name), knobs={"max_batch": 4}) as target:
        right = asyncio.run(load(target, todo)).answers
        asyncio.run(_cut_all(target, count // 10))
        _settled(target)
        descriptors, memory, threads = target.descriptors(), target.memory(), target.threads()
        asyncio.run(_cut_all(target, count))
        seconds, left = _settled(target), _jobs(target)
        again = asyncio.run(load(target, todo)).answers
        time.sleep(0.5)
        more = target.descriptors() - descriptors
        growth = (target.memory() - memory) / 2**20
        errors = target.metric('img2img_requests_total{code="500",route="/img2img"}')
        threads = target.threads() - threads
        text = target.log.read_text()
    return Outcome(
        "disconnects",
        f"{count} requests that are cut off at a random byte or moment",
        ("s until no job is left", "descriptors more", "threads more", "MiB more", "status 500"),
        [(seconds, more, threads, growth, errors)],
        [
            Goal("count", "later requests that are not as before", sum(again[n] != right[n] for n in right), at_most=0),
            Goal("time", "s until no job is left", seconds, at_most=1),
            Goal("count", "jobs that are left", left, at_most=0),
            Goal("count", "descriptors more", more, at_most=4),
            # A thread pool may start threads that were not needed before.
            Goal("count", "threads more", threads, at_most=2),
            Goal("memory", "MiB more", growth, at_most=32),
            Goal("count", "500 answers", errors, at_most=0),
            Goal("count", "tracebacks in the log", text.count("Traceback"), at_most=0),
        ],
    )
