"""How busy a GPU is kept: clients in closed loops, on a pretended A10G with SDXL-Turbo's configuration at full size.

    scripts/test --pretended-gpu --speed

The device's own time is pretended: floating-point operations at an assumed rate. The time of the host is real, and so
is all waiting between the two.
"""

import statistics
import sys
import time
from queue import SimpleQueue
from typing import Any

import torch

from app.engine.messages import Done, Job
from app.model.diffusion import SdxlDiffusion
from app.pixels import IMAGE_SIZE, Pixels
from app.worker.warmup import warm_up
from app.worker.worker import Worker
from tests.gpu.full_size import full_size
from tests.pretended_cuda.device import Devices

IMAGES = {1: 20, 2: 24, 4: 32, 8: 48}
"""By the number of clients."""

MAX_OF_DEVICE, MAX_OF_CORE, MIN_BUSY = 1.08, 0.15, 0.94
"""An image for one client, of the device's own time; the worker's thread, of a core; the device, under 4 clients."""


class Clients:
    """Clients that each send a new image and prompt as soon as they have an answer."""

    def __init__(self, diffusion: SdxlDiffusion, clients: int, total: int) -> None:
        self.inbox: SimpleQueue[Any] = SimpleQueue()
        self.worker = Worker(diffusion, diffusion.max_jobs, self.inbox, self._receive, lambda: None)
        self.clients, self.total = clients, total
        self.sent: list[float] = []
        self.seconds: list[float] = []

    def _send(self) -> None:
        number = len(self.sent)
        pixels = Pixels(IMAGE_SIZE, IMAGE_SIZE, bytes([number]) * (IMAGE_SIZE * IMAGE_SIZE * 3))
        prompt = f"{self.clients} clients, {number}"
        self.inbox.put(Job(str(number), pixels, prompt, None, 4, 0.9, 0.0, number, float("inf")))
        self.sent.append(time.perf_counter())

    def _receive(self, message: object) -> None:
        if isinstance(message, Done):
            self.seconds.append(time.perf_counter() - self.sent[int(message.job_id)])
            if len(self.sent) < self.total:
                self._send()

    def run(self) -> tuple[float, float, float]:
        """Seconds of the clock, of the device and of this thread until all images are there."""
        devices = Devices.here()
        busy, thread, start = devices.counters().busy_ns, time.thread_time(), time.perf_counter()
        for _ in range(self.clients):
            self._send()
        while len(self.seconds) < self.total:
            self.worker.run_once()
        elapsed = time.perf_counter() - start
        return elapsed, (devices.counters().busy_ns - busy) / 1e9, time.thread_time() - thread


def main() -> int:
    """Print a line for each number of clients; returns 1 if a goal is missed."""
    diffusion = full_size("cuda:0", max_jobs=None, use_graphs=True)
    warm_up(diffusion, "off")
    captures = Devices.here().counters().captures
    print(f"{diffusion.graphs} graphs, {torch.cuda.memory_reserved() / 1e9:.2f} GB, batch limit {diffusion.max_jobs}")
    missed = []
    for clients, total in IMAGES.items():
        load = Clients(diffusion, clients, total)
        elapsed, device, thread = load.run()
        alone = statistics.median(load.seconds) / (device / total)
        print(
            f"{clients} clients: {total / elapsed:.2f} images/s, p50 {1000 * statistics.median(load.seconds):.0f} ms, "
            f"{1000 * device / total:.0f} ms of the device an image, device busy {device / elapsed:.0%}, "
            f"the worker's thread {thread / elapsed:.0%} of a core" + (f", {alone:.3f} of device" * (clients == 1))
        )
        if clients == 1 and alone > MAX_OF_DEVICE:
            missed.append(f"one client's image takes {alone:.3f} of the device's time, at most {MAX_OF_DEVICE}")
        if clients == 4 and device / elapsed < MIN_BUSY:
            missed.append(f"the device is busy {device / elapsed:.0%} of the time, at least {MIN_BUSY:.0%}")
        if thread / elapsed > MAX_OF_CORE:
            missed.append(
                f"{clients} clients: the worker's thread uses {thread / elapsed:.0%}, at most {MAX_OF_CORE:.0%}"
            )
    if Devices.here().counters().captures > captures:
        missed.append("a request has captured a graph")
    print(*[f"missed: {each}" for each in missed] or ["all goals are met"], sep="\n")
    return bool(missed)


if __name__ == "__main__":
    sys.exit(main())
