"""The compose profile `edge` as people start it. What its configuration does is in `tests/test_edge.py`.

Where the image that it names cannot be had, one like it is made of Debian's packages: nginx for an unprivileged user.
"""

import os
import re
import subprocess
from collections.abc import Iterator

import httpx2
import pytest

from tests.container.docker import IMAGE, Container, compose_up, docker, eventually, free_port, needs_image
from tests.support.paths import ROOT

pytestmark = needs_image

DEMO = (ROOT / "scripts/demo.png").read_bytes()
NGINX = "sdxl-turbo-img2img-edge:test"
RECIPE = f"""
FROM {IMAGE}
USER root
RUN apt-get -qq update && apt-get -qq install -y --no-install-recommends nginx-light
USER 101
ENTRYPOINT []
HEALTHCHECK NONE
CMD ["nginx", "-g", "daemon off;"]
"""


@pytest.fixture(scope="module")
def image() -> str:
    """The one that the compose file names, or its like."""
    (named,) = re.findall(r"\$\{EDGE_IMAGE:-(.+)\}", (ROOT / "docker-compose.yml").read_text())
    command = [os.environ["DOCKER"], "pull", "--quiet", named]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=120)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        command = [os.environ["DOCKER"], "build", "--network", "host", "--tag", NGINX, "-"]
        environment = {**os.environ, "DOCKER_BUILDKIT": "1"}
        done = subprocess.run(command, env=environment, input=RECIPE, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return NGINX
    return str(named)


@pytest.fixture(scope="module")
def service(image: str) -> Iterator[tuple[Container, str]]:
    """The service, and the URL of the proxy in front of it."""
    port = free_port()
    with compose_up("edge", EDGE_IMAGE=image, EDGE_PORT=str(port), FORWARDED_ALLOW_IPS="*") as container:
        yield container, f"http://127.0.0.1:{port}"


def edge_of(service: Container) -> str:
    """The proxy's container: it is on the same network."""
    (network,) = service.facts()["NetworkSettings"]["Networks"]
    return docker("ps", "--quiet", "--filter", f"network={network}", "--filter", "expose=8080")


def test_proxy_passes_an_image_on_unchanged(service: tuple[Container, str]) -> None:
    behind, url = service
    through = Container(behind.id, url).edit(DEMO)
    assert (through.status_code, through.content == behind.edit(DEMO).content) == (200, True)


def test_proxy_refuses_a_large_body_as_the_service_does(service: tuple[Container, str]) -> None:
    answer = Container(service[0].id, service[1]).edit(bytes(21 * 1024**2))
    assert (answer.status_code, answer.headers["content-type"]) == (413, "application/problem+json")
    assert answer.json()["code"] == "body_too_large"


def test_proxy_reports_a_stopped_service_and_finds_it_again(service: tuple[Container, str]) -> None:
    behind, url = service
    docker("stop", behind.id)
    answer = httpx2.get(f"{url}/health/ready")
    assert (answer.status_code, answer.headers["retry-after"], answer.json()["code"]) == (503, "2", "unavailable")
    docker("start", behind.id)
    eventually(lambda: httpx2.get(f"{url}/health/ready").status_code == 200)


def test_proxy_is_not_root_and_writes_only_arriving_bodies(service: tuple[Container, str]) -> None:
    facts = Container(edge_of(service[0]), service[1]).facts()
    assert facts["Config"]["User"] not in ("", "0", "root")
    host = facts["HostConfig"]
    assert (host["ReadonlyRootfs"], host["CapDrop"], list(host["Tmpfs"])) == (True, ["ALL"], ["/tmp"])
