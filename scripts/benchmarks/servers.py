"""Our service and its peers as real servers on loopback, all with the same checkpoint."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import httpx2

from scripts.benchmarks.report import ROOT

PEERS = Path(__file__).parent / "peers"
ENVIRONMENTS = ROOT / "out" / "peers"
START_SECONDS = 300.0


class ServerFailed(Exception):
    """A server did not start; the message has the end of its log."""


@dataclass(frozen=True)
class Kind:
    """How to start a server.

    Attributes:
        name: its name in tables.
        command: the command line, with the placeholders `{port}` and `{python}`.
        requirements: the requirements file of its environment; None for our own environment.
        ready: the path that answers 200 once the server is ready.
        environment: additional environment variables.
    """

    name: str
    command: tuple[str, ...]
    requirements: str | None
    ready: str
    environment: dict[str, str] = field(default_factory=dict)


OURS = Kind("ours", ("{python}", "-m", "app", "serve", "--port", "{port}"), None, "/health/ready")
REFERENCE = Kind(
    "reference",
    (
        *("{python}", "-m", "uvicorn", "--factory", "scripts.benchmarks.peers.reference:create_app"),
        *("--port", "{port}", "--log-level", "warning"),
    ),
    None,
    "/health/ready",
)
LITSERVE = Kind("litserve", ("{python}", str(PEERS / "lit.py")), "litserve.txt", "/health")
BENTOML = Kind(
    "bentoml",
    (
        *("{python}", "-m", "bentoml", "serve", "bento:Img2Img", "--working-dir", str(PEERS)),
        *("--host", "127.0.0.1", "--port", "{port}"),
    ),
    "bentoml.txt",
    "/readyz",
)
RAY = Kind("ray", ("{python}", str(PEERS / "raysrv.py")), "ray.txt", "/health")
KINDS = {kind.name: kind for kind in (OURS, REFERENCE, LITSERVE, BENTOML, RAY)}


def ours_sharing(jobs: int) -> Kind:
    """Our service with a batch limit of `jobs`."""
    return replace(OURS, name=f"ours, at most {jobs} on board", environment={"IMG2IMG_MAX_BATCH": str(jobs)})


def python(kind: Kind) -> str:
    """The interpreter of a server's environment, which is created if it does not exist."""
    if kind.requirements is None:
        return sys.executable
    # Its own packages come first. torch and diffusers are ours: the comparison is about serving.
    return environment(kind.name, kind.requirements, "model.txt")


def environment(name: str, *requirements: str) -> str:
    """The interpreter of the environment of a peer, which is created from files in `PEERS` if it does not exist."""
    folder = ENVIRONMENTS / name
    done, interpreter = folder / "done", folder / "bin" / "python"
    if not done.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        pins = [part for file in requirements for part in ("-r", str(PEERS / file))]
        subprocess.run([interpreter, "-m", "pip", "install", "-qq", *pins], check=True)
        done.touch()
    return str(interpreter)


@contextmanager
def running(kind: Kind, model: Path) -> Iterator[str]:
    """Start a server and yield its base URL once it is ready; stop it afterwards."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [part.format(port=port, python=python(kind)) for part in kind.command]
    variables = {"MODEL": str(model), "IMG2IMG_MODEL": str(model), "PORT": port, "IMG2IMG_DEADLINE_SECONDS": "3600"}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, **variables, **kind.environment},
            start_new_session=True,
        )
        try:
            _wait(process, f"http://127.0.0.1:{port}{kind.ready}")
            yield f"http://127.0.0.1:{port}"
        except ServerFailed as error:
            log.seek(0)
            raise ServerFailed(f"{kind.name}: {error}\n{log.read().decode(errors='replace')[-3000:]}") from None
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(30)
            # Some servers leave processes behind, which would slow down the next measurement.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait(process: "subprocess.Popen[bytes]", url: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ServerFailed(f"it ended with exit code {process.returncode}")
        try:
            if httpx2.get(url, trust_env=False).status_code == httpx2.codes.OK:
                return
        except httpx2.TransportError:
            pass
        time.sleep(0.05)
    raise ServerFailed(f"it was not ready within {START_SECONDS:g} s")
