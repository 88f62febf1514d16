import io
import os
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx2
import pytest
import uvicorn
from PIL import Image

from app.main import create_app
from app.settings import Settings
from scripts.make_checkpoint import write_checkpoint

FAKE = "tests.fakes:load"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# The hub client reads its address when it is imported, so the hub of the tests has one before anything else happens.
# No test can reach another: whatever is not served there is refused at once.
HUB_PORT = _free_port()
os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{HUB_PORT}"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the developer's shell sets must not change what the tests see."""
    for name in os.environ:
        if name.startswith("IMG2IMG_") or name == "PORT":
            monkeypatch.delenv(name)


@contextmanager
def run_server(loader: str = FAKE, wait: bool = True, **knobs: Any) -> Iterator[str]:
    """A real server of the whole app on a free loopback port; yields its base URL."""
    app = create_app(Settings(**{"devices": "cpu", **knobs}), loader, on_failure=lambda failure: None)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, lifespan="on", timeout_graceful_shutdown=5))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.01)
        url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        while wait and httpx2.get(f"{url}/health/ready").status_code != 200:
            time.sleep(0.02)
        yield url
    finally:
        server.should_exit = True
        thread.join(30)


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """The URL of a real server with the fake model, shared by all tests that leave it as they found it."""
    with run_server() as url:
        yield url


@pytest.fixture
def start_server() -> Callable[..., AbstractContextManager[str]]:
    """`with start_server(queue_size=1) as url:`, for tests that need settings of their own."""
    return run_server


@pytest.fixture(scope="session")
def png() -> bytes:
    """A 512x512 picture with something in it, as a PNG file."""
    gradient = Image.linear_gradient("L").resize((512, 512))
    image = Image.merge("RGB", (gradient, gradient.rotate(90), gradient.rotate(180)))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random SDXL checkpoint of a few MB, in the hub's format."""
    folder = tmp_path_factory.mktemp("checkpoint")
    write_checkpoint(folder, "tiny", seed=0)
    return folder


NPM_CI = (
    *("npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts", "--engine-strict", "--prefer-offline"),
    # Where nothing can be fetched, the tests are not to wait for minutes until npm has seen it.
    *("--fetch-retries=1", "--fetch-retry-mintimeout=1000", "--fetch-retry-maxtimeout=2000"),
)
OWN_MISTAKES = {"EUSAGE", "EINTEGRITY", "EJSONPARSE"}
"""npm's codes for a lock that does not belong to its package.json, or that means another package than there is."""


@pytest.fixture(scope="session")
def node_folder() -> Iterator[Path]:
    """A copy of tests/node with the packages that its lock names. Skips what asks for it where they cannot be had."""
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("node and npm are not installed")
    with TemporaryDirectory() as temporary:
        folder = Path(temporary, "node")
        shutil.copytree(Path(__file__).parent / "node", folder, ignore=shutil.ignore_patterns("node_modules"))
        try:
            done = subprocess.run(NPM_CI, cwd=folder, capture_output=True, text=True, timeout=120)
        except subprocess.TimeoutExpired:
            pytest.skip("npm had not fetched the package openai after two minutes")
        if done.returncode:
            found = re.search(r"^npm \S+ code (\S+)$", done.stderr, re.MULTILINE)
            code = found[1] if found else f"exit code {done.returncode}"
            if code in OWN_MISTAKES:
                pytest.fail(done.stderr)
            old = "node is older than the package openai needs"
            pytest.skip(old if code == "EBADENGINE" else f"npm cannot fetch the package openai here: {code}")
        yield folder


OLD_DRIVER = "The NVIDIA driver on your system is too old (found version 12040). Please update your GPU driver."


@pytest.fixture
def old_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's CUDA build on a host with a GPU whose driver is too old: NVML counts it, and CUDA cannot begin."""
    import torch

    def begin(*_: object) -> None:
        raise RuntimeError(f"{OLD_DRIVER}\nCompile with `TORCH_USE_CUDA_DSA`.")

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("app.model.devices.DRIVER_FILE", tmp_path / "no-nvidiactl")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for name in ("init", "get_device_properties", "mem_get_info"):
        monkeypatch.setattr(torch.cuda, name, begin)
