"""The demo script in a process of its own."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
