"""Requests to a service under test, over HTTP and bare sockets, and what is checked of the answers."""

import socket
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx2

PATIENCE = 60.0
"""Seconds that a machine with much else to do may need."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def post(url: str, png: bytes, accept: str = "*/*", **fields: Any) -> httpx2.Response:
    return httpx2.post(
        f"{url}/img2img",
        files={"image": ("in.png", png, "image/png")},
        data={"prompt": "dog wizard", **fields},
        headers={"Accept": accept},
        timeout=PATIENCE,
    )


def problem(response: httpx2.Response, status: int, code: str, param: str | None = None) -> str:
    """Check an error's whole shape; its sentence."""
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert body["status"] == status
    assert body["code"] == code
    assert body.get("param") == param
    assert body["request_id"] == response.headers["x-request-id"]
    assert response.headers["x-error-message"]
    return str(body["detail"])


def pieces(data: bytes) -> Iterator[bytes]:
    """A body without a declared length."""
    for start in range(0, len(data), 1000):
        yield data[start : start + 1000]


def connect(url: str) -> socket.socket:
    address = urlsplit(url)
    assert address.hostname
    assert address.port
    return socket.create_connection((address.hostname, address.port), timeout=20)


def sample(url: str, name: str) -> float:
    """One series of /metrics, by its whole name with labels; 0 if it is not there yet."""
    for line in httpx2.get(f"{url}/metrics", timeout=PATIENCE).text.splitlines():
        if line.startswith(f"{name} "):
            return float(line.rpartition(" ")[2])
    return 0.0


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.02)
