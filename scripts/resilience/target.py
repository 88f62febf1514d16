"""A real server in its own process, observed and disturbed from outside."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import httpx2
from PIL import Image

ROOT = Path(__file__).parents[2]
FAULTY = "scripts.resilience.model:load"

_SERVE = """
import sys
from app.cli.serve import serve
from app.settings import Settings
sys.exit(serve(Settings(), sys.argv[1]))
"""
_START_SECONDS = 300.0
"""A full-size model is read from the disk in that time."""


@dataclass(frozen=True)
class Target:
    """A running server. Sizes are in bytes."""

    url: str
    process: "subprocess.Popen[bytes]"
    log: Path

    def children(self, module: str) -> list[int]:
        """Process ids of the server's children that run a module of the app."""
        found = []
        for entry in Path("/proc").iterdir():
            with suppress(OSError, IndexError, ValueError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                if parent == self.process.pid and module.encode() in (entry / "cmdline").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
        return found

    def signal_worker(self, number: signal.Signals) -> bool:
        """Send a signal to the worker; returns False if there is no worker now."""
        for pid in self.children("app.worker.worker"):
            with suppress(ProcessLookupError):
                os.kill(pid, number)
                return True
        return False

    def memory(self) -> int:
        """Resident memory of the API process."""
        return _status(self.process.pid, "VmRSS") * 1024

    def all_memory(self) -> int:
        """Resident memory of the API process and all its children."""
        children = [*self.children("app.worker.worker"), *self.children("app.imaging.decoder_process")]
        return self.memory() + 1024 * sum(_status(pid, "VmRSS") for pid in children)

    def descriptors(self) -> int:
        """Open files of the API process."""
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def threads(self) -> int:
        """Threads of the API process."""
        return _status(self.process.pid, "Threads")

    def metric(self, name: str, key: str = "") -> float:
        """The value of a series of `/metrics`, by its name with labels; 0 if it does not exist."""
        headers = {"X-API-Key": key} if key else {}
        for line in httpx2.get(f"{self.url}/metrics", trust_env=False, headers=headers).text.splitlines():
            if line.startswith(f"{name} "):
                return float(line.rpartition(" ")[2])
        return 0.0

    def wait_until_ready(self) -> None:
        """Wait until the server is ready; raises TimeoutError with the end of the log."""
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            with suppress(httpx2.TransportError):
                if httpx2.get(f"{self.url}/health/ready", trust_env=False).is_success:
                    return
            time.sleep(0.05)
        raise TimeoutError(f"the server is not ready: {self.log.read_text()[-2000:]}")


def _status(pid: int, what: str) -> int:
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(f"{what}:"):
                return int(line.split()[1])
    return 0


@contextmanager
def serving(folder: Path, loader: str = FAULTY, knobs: Mapping[str, object] | None = None) -> Iterator[Target]:
    """Start a server, wait until it is ready, and stop it afterwards.

    Args:
        folder: holds its log and, for the fake model, the fault file.
        loader: the `module:function` that loads the worker's model.
        knobs: settings by name, which replace those of the environment.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = {"devices": "cpu", "model": folder, "port": port, "log_level": "info", **(knobs or {})}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("IMG2IMG_")}
    environment |= {f"IMG2IMG_{name.upper()}": str(value) for name, value in settings.items()}
    log = folder / "log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", _SERVE, loader],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    target = Target(f"http://127.0.0.1:{port}", process, log)
    try:
        target.wait_until_ready()
        yield target
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(20)
        process.kill()
        process.wait()


def noise_png(seed: int = 0, side: int = 64) -> bytes:
    """A small PNG of noise."""
    buffer = BytesIO()
    Image.frombytes("RGB", (side, side), random.Random(seed).randbytes(side * side * 3)).save(buffer, "PNG")
    return buffer.getvalue()
