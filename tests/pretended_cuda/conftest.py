"""Devices that each test finds as if nothing had happened to them, and a model on one of them."""

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from app.model.diffusion import SdxlDiffusion
from app.model.load import load
from app.settings import Settings
from tests.pretended_cuda import device

Load = Callable[..., SdxlDiffusion]
RunPython = Callable[..., list[str]]


@pytest.fixture(autouse=True)
def devices() -> Iterator[device.Devices]:
    """The pretended devices of this process, with counters at zero. Skips where there are none."""
    if "PRETENDED_CUDA" not in os.environ:
        pytest.skip("scripts/test --pretended-gpu runs this")
    devices = device.Devices.here()
    limits = [devices.memory_limit(index) for index in range(2)]
    device.reset()
    yield devices
    devices.remove_all(0)
    devices.fail_captures(0)
    for index, limit in enumerate(limits):
        devices.lose(index, 0)
        devices.limit_memory(index, limit)
    torch.cuda.synchronize()
    torch.cuda.set_device(0)
    # A capture that fails leaves its stream as the current one.
    torch.cuda.set_stream(torch.cuda.default_stream())


@pytest.fixture
def load_tiny(tiny_checkpoint: Path) -> Load:
    """`load_tiny("cuda:1", compile="default")`: the tiny checkpoint on a device."""

    def load_on(name: str = "cuda:0", **settings: object) -> SdxlDiffusion:
        return load(Settings(**{"model": str(tiny_checkpoint), **settings}), name)  # type: ignore[arg-type]

    return load_on


@pytest.fixture
def run_python() -> RunPython:
    """`run_python(code, PRETENDED_CUDA_DRIVER="12040")`: the lines that a new process with the devices prints."""

    def run(code: str, **variables: str) -> list[str]:
        command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **variables})
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    return run
