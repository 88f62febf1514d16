"""`img2img serve` as a whole on two pretended GPUs, with four clients."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest

from tests.pretended_cuda.device import Devices
from tests.support.http import free_port, post
from tests.support.servers import is_ready

pytestmark = pytest.mark.timeout(400)

CLIENTS = 4
IMAGES = 3
"""Of each client."""


@dataclass
class Service:
    url: str
    devices: Devices
    log: Path


@pytest.fixture(scope="module")
def service(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    if "PRETENDED_CUDA" not in os.environ:
        pytest.skip("scripts/test --pretended-gpu runs this")
    folder, port = tmp_path_factory.mktemp("served"), str(free_port())
    settings = {"IMG2IMG_MODEL": str(tiny_checkpoint), "IMG2IMG_DEVICES": "cuda:0,cuda:1", "IMG2IMG_MAX_BATCH": "4"}
    environment = {**os.environ, **settings, "PRETENDED_CUDA_CONTROL": str(folder / "control")}
    command = [sys.executable, "-m", "app", "serve", "--host", "127.0.0.1", "--port", port]
    url, log = f"http://127.0.0.1:{port}", folder / "log"
    with log.open("wb") as stream, subprocess.Popen(command, stderr=stream, env=environment) as process:
        try:
            while not (is_ready(url) and log.read_text().count(" is ready") == 2):
                assert process.poll() is None, log.read_text()
                time.sleep(0.1)
            yield Service(url, Devices.of(folder / "control"), log)
        finally:
            process.terminate()
            process.wait(60)
    assert process.returncode == 0, log.read_text()


def test_four_clients_get_their_images_from_graphs_alone(service: Service, png: bytes) -> None:
    before = [service.devices.counters(index) for index in range(2)]

    def client(number: int) -> list[httpx2.Response]:
        fields = [
            {"num_inference_steps": str(1 + number), "seed": str(10 * number + image), "prompt": f"a {number} {image}"}
            for image in range(IMAGES)
        ]
        return [post(service.url, png, strength="1.0", **each) for each in fields]

    with ThreadPoolExecutor(CLIENTS) as clients:
        answers = list(clients.map(client, range(CLIENTS)))
    for number, responses in enumerate(answers):
        assert [response.status_code for response in responses] == [200] * IMAGES
        assert [response.headers["x-steps-run"] for response in responses] == [str(1 + number)] * IMAGES
        assert [response.headers["x-seed"] for response in responses] == [
            str(10 * number + image) for image in range(IMAGES)
        ]
    counted = list(zip(before, (service.devices.counters(index) for index in range(2)), strict=True))
    for then, now in counted:
        assert now.captures == then.captures > 0
        assert now.convolutions == then.convolutions
        assert now.graph_launches > then.graph_launches
        assert (now.stream_syncs, now.device_syncs) == (then.stream_syncs, then.device_syncs)
        assert (now.pageable_h2d, now.pageable_d2h) == (then.pageable_h2d, then.pageable_d2h)
    # An image's copies to the host are the image, whether it is finite, and the receipt.
    downloads = sum(now.copies_d2h - then.copies_d2h for then, now in counted)
    assert downloads == 3 * CLIENTS * IMAGES


def test_metrics_and_readiness_name_both_gpus(service: Service) -> None:
    ready = httpx2.get(f"{service.url}/health/ready").json()
    metrics = httpx2.get(f"{service.url}/metrics").text
    assert ready["status"] == "ready"
    for index in range(2):
        assert f'img2img_worker_ready{{device="cuda:{index}"}} 1.0' in metrics
    assert "Traceback" not in service.log.read_text()
