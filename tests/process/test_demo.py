"""The demo, from end to end, with the real embedded model."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.images import opened
from tests.support.paths import ROOT


@contextmanager
def demo(folder: Path, *arguments: str) -> "Iterator[subprocess.Popen[str]]":
    """`scripts/demo.py`, called from a folder that is not the checkout."""
    command = [sys.executable, str(ROOT / "scripts/demo.py"), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "IMG2IMG_DEVICES": "cpu"}
    with subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_ctrl_c,
    ) as process:
        yield process


def heed_ctrl_c() -> None:
    """As in a terminal: a shell that starts the tests in the background makes them and their children deaf to it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_the_demo_makes_a_picture_and_says_how_long_each_stage_took(tmp_path: Path) -> None:
    options = ["--output", "new/out.png", "--seed", "9", "--steps", "2", "--strength", "1", "--model", "embedded"]
    with demo(tmp_path, *options) as process:
        said, failed = process.communicate(timeout=300)
    assert process.returncode == 0, failed
    assert opened((tmp_path / "new/out.png").read_bytes()).size == (512, 512)
    assert "Saved new/out.png\nSeed 9, 2 steps, by embedded on cpu in float32.\n" in said
    assert said.count("The embedded model is small") == 1
    for stage in ("start-up", "queue", "decode", "encode_prompt", "encode_image", "denoise", "vae", "png", "request"):
        assert re.search(rf"{stage}.* \d+\.\d\d\d ", said), stage
    assert re.search(r"Peak memory of the worker: [\d,]+ MB", said)


def test_a_service_that_does_not_start_is_told_with_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMG2IMG_MAX_BATCH", "0")
    with demo(tmp_path, "--output", "out.png") as process:
        _, failed = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "The service ended with exit code 2:\nimg2img: IMG2IMG_MAX_BATCH cannot be '0'" in failed


def test_a_picture_that_is_not_there_starts_no_service(tmp_path: Path) -> None:
    with demo(tmp_path, "--image", "missing.png") as process:
        said, failed = process.communicate(timeout=300)
    assert (process.returncode, said) == (1, "")
    assert "missing.png" in failed


def test_ctrl_c_stops_the_service_too(tmp_path: Path) -> None:
    with demo(tmp_path, "--output", "out.png") as process:
        assert process.stdout is not None
        url = process.stdout.readline().split()[4]
        port = url.rpartition(":")[2]
        process.send_signal(signal.SIGINT)
        _, failed = process.communicate(timeout=300)
    assert (process.returncode, failed) == (130, "scripts/demo: stopped.\n")
    assert not serving(port)


def serving(port: str) -> bool:
    """Whether a process is there that serves on the port."""
    commands = [path.read_bytes().split(b"\0") for path in Path("/proc").glob("[0-9]*/cmdline")]
    return any(b"serve" in command and port.encode() in command for command in commands)


def test_the_script_sets_up_and_keeps_arguments_and_directory_as_they_are(tmp_path: Path) -> None:
    checkout = tmp_path / "a checkout"
    (checkout / "scripts").mkdir(parents=True)
    (checkout / ".venv/bin").mkdir(parents=True)
    shutil.copy(ROOT / "scripts/demo", checkout / "scripts")
    for name, script in (("scripts/setup", 'echo set up "$@"'), (".venv/bin/python", 'pwd; printf "%s|" "$@"')):
        (checkout / name).write_text(f"#!/bin/sh\n{script}\n")
        (checkout / name).chmod(0o755)
    command = [str(checkout / "scripts/demo"), "--prompt", "two words"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == f"set up --runtime\n{tmp_path}\n{checkout}/scripts/demo.py|--prompt|two words|"
