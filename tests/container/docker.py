"""The image that scripts/test-container built, run and looked at from outside through Docker's own command line."""

import json
import os
import shlex
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx2
import pytest

from tests.support.paths import ROOT

T = TypeVar("T")


IMAGE = os.environ.get("IMAGE", "")
WORKER = "app.worker.worker"
# As the compose file runs it, but for the network.
HARDENED = ("--read-only", "--tmpfs=/tmp", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--init")

needs_image = pytest.mark.skipif(not IMAGE, reason="no image was built: run scripts/test-container")


def run(command: list[str], **variables: str) -> str:
    environment = {**os.environ, **variables}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout.strip()


def docker(*arguments: str) -> str:
    return run([os.environ["DOCKER"], *arguments])


def eventually(look: Callable[[], T], seconds: float = 90) -> T:
    """Returns the first true answer."""
    deadline = time.monotonic() + seconds
    while not (seen := look()):
        assert time.monotonic() < deadline, f"{look} did not come true in {seconds} s"
        time.sleep(0.1)
    return seen


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Container:
    id: str
    url: str

    def facts(self) -> dict[str, Any]:
        (facts,) = json.loads(docker("inspect", self.id))
        assert isinstance(facts, dict)
        return facts

    def execute(self, *command: str) -> str:
        return docker("exec", self.id, *command)

    def shell(self, script: str) -> str:
        return self.execute("sh", "-c", script)

    def processes(self) -> list[tuple[str, str]]:
        """User id and command of every process, as the host sees them."""
        _, *lines = docker("top", self.id, "-eo", "pid,uid,args").splitlines()
        return [(uid, command) for _, uid, command in (line.split(maxsplit=2) for line in lines)]

    def worker(self) -> str:
        """The worker's process id inside the container; empty while there is none."""
        # The brackets keep the pattern from finding itself among the processes.
        pattern = f"{WORKER[:-1]}[{WORKER[-1]}]"
        return self.shell(f"cd /proc; grep -alE {pattern} [0-9]*/cmdline 2>/dev/null | cut -d/ -f1 || true")

    def logs(self) -> str:
        return run(["sh", "-c", f'"$DOCKER" logs {self.id} 2>&1'])

    def is_healthy(self) -> bool:
        state = self.facts()["State"]
        assert state["Status"] in ("running", "restarting"), self.logs()
        return bool(state["Health"]["Status"] == "healthy")

    def is_ready(self) -> bool:
        try:
            return httpx2.get(f"{self.url}/health/ready").is_success
        except httpx2.TransportError:
            return False

    def edit(self, picture: bytes, route: str = "/img2img", **fields: str) -> httpx2.Response:
        form = {"prompt": "dog wizard", "seed": "1", **fields}
        return httpx2.post(f"{self.url}{route}", files={"image": picture}, data=form, timeout=120)


@contextmanager
def compose_up(*profiles: str, **variables: str) -> Iterator[Container]:
    """The service of the compose file's `cpu` profile, healthy, in a project of its own; other profiles with it."""
    port = free_port()
    variables = {"IMAGE": IMAGE, "HOST_PORT": str(port), **variables}
    compose = [*shlex.split(os.environ["COMPOSE"]), "--project-name", f"img2img-test-{port}"]
    for profile in ("cpu", *profiles):
        compose += ["--profile", profile]
    try:
        run([*compose, "up", "--detach", "--no-build"], **variables)
        container = Container(run([*compose, "ps", "-q", "img2img-cpu"], **variables), f"http://127.0.0.1:{port}")
        eventually(container.is_healthy)
        yield container
    finally:
        run([*compose, "down", "--volumes", "--timeout", "5"], **variables)


@contextmanager
def start(*options: str, command: tuple[str, ...] = (), network: str = "", **variables: str) -> Iterator[Container]:
    """A container of the image; `network` is `host`, `none`, or empty for a published port."""
    port = free_port()
    variables = {"PORT": str(port)} | variables
    networking = [f"--network={network}"] if network else [f"--publish=127.0.0.1:{port}:{variables['PORT']}"]
    environment = [f"--env={name}={value}" for name, value in variables.items()]
    container = Container(
        docker("run", "--detach", *networking, *environment, *options, IMAGE, *command), f"http://127.0.0.1:{port}"
    )
    try:
        yield container
    finally:
        docker("rm", "--force", "--volumes", container.id)


@contextmanager
def volume() -> Iterator[str]:
    name = docker("volume", "create")
    try:
        yield name
    finally:
        docker("volume", "rm", "--force", name)


def image_facts(image: str) -> Mapping[str, Any]:
    (facts,) = json.loads(docker("image", "inspect", image))
    assert isinstance(facts, dict)
    return facts
