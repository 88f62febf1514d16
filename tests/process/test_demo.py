"""The demo with the embedded model."""

import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests.support.demo import demo
from tests.support.paths import ROOT


def test_demo_shows_the_log_of_a_service_that_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMG2IMG_MAX_BATCH", "0")
    with demo(tmp_path, "--output", "out.png") as process:
        _, failed = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "The service ended with exit code 2:\nimg2img: IMG2IMG_MAX_BATCH cannot be '0'" in failed


def test_demo_without_its_image_starts_no_service(tmp_path: Path) -> None:
    with demo(tmp_path, "--image", "missing.png") as process:
        output, failed = process.communicate(timeout=300)
    assert (process.returncode, output) == (1, "")
    assert "missing.png" in failed


def test_ctrl_c_stops_the_demo_and_its_service(tmp_path: Path) -> None:
    with demo(tmp_path, "--output", "out.png") as process:
        assert process.stdout is not None
        url = process.stdout.readline().split()[4]
        port = url.rpartition(":")[2]
        process.send_signal(signal.SIGINT)
        _, failed = process.communicate(timeout=300)
    assert (process.returncode, failed) == (130, "scripts/demo: stopped.\n")
    assert not serving(port)


def serving(port: str) -> bool:
    """Whether a process listens on the port."""
    commands = [path.read_bytes().split(b"\0") for path in Path("/proc").glob("[0-9]*/cmdline")]
    return any(b"serve" in command and port.encode() in command for command in commands)


def test_demo_script_keeps_its_arguments_and_directory(tmp_path: Path) -> None:
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
