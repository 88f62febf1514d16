"""A driver that is too old for torch's CUDA build, while NVML still counts its GPUs."""

import os
import subprocess
import sys

import pytest

from tests.pretended_cuda.device import OLD_DRIVER

SENTENCE = "The NVIDIA driver on your system is too old (found version 12040)"


def run_app(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PRETENDED_CUDA_DRIVER": str(OLD_DRIVER), **variables}
    return subprocess.run([sys.executable, "-m", "app", *arguments], capture_output=True, text=True, env=environment)


@pytest.mark.parametrize("devices", ["auto", "cuda", "cuda:1"])
def test_doctor_reports_an_old_driver_without_a_traceback(devices: str) -> None:
    done = run_app("doctor", IMG2IMG_DEVICES=devices)
    assert done.returncode == 1
    assert f"torch cannot use {'the NVIDIA GPU of this machine' if devices == 'auto' else devices}: " in done.stdout
    assert SENTENCE in done.stdout
    assert "driver 580 or later" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_doctor_accepts_an_old_driver_where_the_cpu_is_wanted() -> None:
    done = run_app("doctor", IMG2IMG_DEVICES="cpu")
    assert (done.returncode, SENTENCE in done.stdout) == (0, False)


@pytest.mark.parametrize("devices", ["auto", "cuda"])
def test_service_with_an_old_driver_ends_and_says_why(devices: str) -> None:
    done = run_app("serve", "--port", "0", IMG2IMG_DEVICES=devices)
    assert done.returncode == 1
    assert SENTENCE in done.stderr
    assert "is ready" not in done.stderr
    assert "embedded" not in done.stderr


def test_doctor_names_the_gpus_of_a_driver_that_is_new_enough() -> None:
    done = run_app("doctor", PRETENDED_CUDA_DRIVER="13000", IMG2IMG_MODEL="embedded")
    assert done.returncode == 0
    assert done.stdout.count("NVIDIA A10G") >= 2
