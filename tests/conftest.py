"""Markers by folder, and the fixtures that several folders share."""

import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pytest

from tests.support.drivers import OLD_DRIVER, OLD_VERSION
from tests.support.hub import HUB_PORT
from tests.support.paths import ROOT

if TYPE_CHECKING:
    from diffusers import StableDiffusionXLImg2ImgPipeline

    from tests.support.servers import StartServer

# The hub client reads this when it is imported. Each test process has a hub of its own, and reaches no other.
os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{HUB_PORT}"

# Torch reads this when it is imported. The cores are shared already, by test processes and by the services they start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

MARKERS = {kind: kind for kind in ("unit", "api", "process", "slow", "container", "gpu")}
MARKERS["pretended_cuda"] = "pretended_gpu"
"""Markers by folder."""


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With `-m unit`, do not import the tests of other kinds: some import torch."""
    wanted, kind = config.option.markexpr, MARKERS.get(collection_path.name)
    other = wanted in MARKERS.values() and collection_path.parent == ROOT / "tests" and kind is not None
    return True if other and kind != wanted else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test with the kind that its folder names, and give a slow one a quarter of an hour."""
    for item in items:
        folder = item.path.relative_to(ROOT / "tests").parts[0]
        item.add_marker(MARKERS.get(folder, "api"))
        if folder == "unit" and {"server", "start_server"} & set(getattr(item, "fixturenames", ())):
            raise pytest.UsageError(f"{item.nodeid} is in tests/unit and starts a server: move it to tests/api.")
        if folder == "slow":
            item.add_marker(pytest.mark.timeout(900))


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the developer's shell sets must not change what the tests see."""
    for name in os.environ:
        if name.startswith("IMG2IMG_") or name == "PORT":
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """What runs the coroutine tests, which have the marker `anyio`."""
    return "asyncio"


@pytest.fixture(autouse=True)
def unchanged_logging() -> Iterator[None]:
    """Undo what the service's own set-up of logging changes for the whole process."""
    root, hook = logging.getLogger(), sys.excepthook
    level, handlers = root.level, root.handlers[:]
    yield
    root.setLevel(level)
    for handler in set(root.handlers) - set(handlers):
        root.removeHandler(handler)
    logging.captureWarnings(False)
    sys.excepthook = hook


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """The URL of a real server with the fake model, shared by all tests that leave it as they found it."""
    from tests.support.servers import run_server

    with run_server() as url:
        yield url


@pytest.fixture
def start_server() -> "StartServer":
    """`with start_server(queue_size=1) as url:`, for tests that need settings of their own."""
    from tests.support.servers import run_server

    return run_server


@pytest.fixture(scope="session")
def png() -> bytes:
    """A 512x512 picture with something in it, as a PNG file."""
    from PIL import Image

    from tests.support.images import saved

    gradient = Image.linear_gradient("L").resize((512, 512))
    return saved(Image.merge("RGB", (gradient, gradient.rotate(90), gradient.rotate(180))), "PNG")


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random SDXL checkpoint of a few MB, in the hub's format."""
    from scripts.make_checkpoint import write_checkpoint

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
def oracle(tiny_checkpoint: Path) -> "StableDiffusionXLImg2ImgPipeline":
    """diffusers' own pipeline with that checkpoint."""
    import torch
    from diffusers import StableDiffusionXLImg2ImgPipeline

    pipe = StableDiffusionXLImg2ImgPipeline.from_pretrained(
        tiny_checkpoint, variant="fp16", dtype=torch.float32, use_safetensors=True, add_watermarker=False
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session")
def node_folder() -> Iterator[Path]:  # pragma: no cover  depends on Node and on npm's registry
    """A copy of tests/support/node with the packages that its lock names; skips where they cannot be fetched."""
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("node and npm are not installed")
    with TemporaryDirectory() as temporary:
        folder = Path(temporary, "node")
        shutil.copytree(ROOT / "tests/support/node", folder, ignore=shutil.ignore_patterns("node_modules"))
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


@pytest.fixture
def old_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's CUDA build on a host with a GPU whose driver is too old: NVML counts it, and CUDA cannot begin."""
    import torch

    def begin(*_: object) -> None:
        raise RuntimeError(f"{OLD_DRIVER}\nCompile with `TORCH_USE_CUDA_DSA`.")

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    version = tmp_path / "driver-version"
    version.write_text(f"NVRM version: NVIDIA UNIX x86_64 Kernel Module  {OLD_VERSION}  Sat Aug 19 01:15:15 UTC 2023\n")
    monkeypatch.setattr("app.model.gpus.VERSION_FILE", version)
    monkeypatch.setattr("app.model.gpus.CONTROL_FILE", tmp_path / "no-nvidiactl")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for name in ("init", "get_device_properties", "mem_get_info"):
        monkeypatch.setattr(torch.cuda, name, begin)
