"""What the API process holds of an upload: nothing, once it is decoded and the request waits in the queue."""

import base64
import gc
import tracemalloc
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any
from urllib.parse import urlsplit

import pytest

from app.edits import Upload
from tests.support.bodies import BODIES, Body, form
from tests.support.http import connect, eventually, sample
from tests.support.images import noise, saved
from tests.support.servers import run_server

MIB = 2**20
PIXELS = 512 * 512 * 3
"""Bytes of a decoded image, which a waiting request does hold."""


def send(url: str, body: Body, stack: ExitStack, accept: str = "*/*") -> None:
    """Send a request, and keep its connection open without reading the answer."""
    path, content_type, content = body
    connection = stack.enter_context(connect(url))
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {urlsplit(url).netloc}\r\nContent-Type: {content_type}\r\n"
        f"Accept: {accept}\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    connection.sendall(head.encode())
    connection.sendall(content)


@pytest.fixture(scope="module")
def image() -> bytes:
    """A PNG file of 5 MiB."""
    data = saved(noise((1400, 1250)), "PNG")
    assert 5 * MIB < len(data) < 5.5 * MIB
    return data


@pytest.fixture(scope="module")
def busy_server(png: bytes) -> Iterator[str]:
    """A server whose worker is at work for good and has a job in reserve: every other request waits in the queue."""
    knobs: dict[str, Any] = {"max_batch": 1, "tick_timeout_seconds": 600, "deadline_seconds": 600}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIP_PREDICT_ROUTE", "/vertex")
        with run_server(**knobs) as url, ExitStack() as stack:
            for _ in range(2):
                send(url, form("/img2img", png, prompt="hang_at=0"), stack)
            eventually(lambda: sample(url, "img2img_jobs_on_board") == 2)
            yield url


def held_while_waiting(url: str, body: Body, requests: int, jobs: int, accept: str = "*/*") -> int:
    """Bytes that the process holds more than before while so many requests wait, with so many jobs in the queue."""
    tracemalloc.start()
    try:
        with ExitStack() as stack:
            gc.collect()
            before, _ = tracemalloc.get_traced_memory()
            for _ in range(requests):
                send(url, body, stack, accept)
            eventually(
                lambda: (
                    sample(url, "img2img_queue_depth") == jobs
                    and sample(url, "img2img_inflight_requests") == requests + 2
                )
            )
            gc.collect()
            held = tracemalloc.get_traced_memory()[0] - before
        eventually(lambda: sample(url, "img2img_queue_depth") == 0)
        return held
    finally:
        tracemalloc.stop()


def test_16_waiting_forms_of_5_mib_are_held_as_pixels_only(busy_server: str, image: bytes) -> None:
    held = held_while_waiting(busy_server, form("/img2img", image, prompt="x"), 16, 16)
    assert 16 * PIXELS <= held < 25 * MIB


@pytest.mark.parametrize("kind", BODIES)
def test_waiting_body_of_any_dialect_is_held_as_pixels_only(busy_server: str, image: bytes, kind: str) -> None:
    body = BODIES[kind](image, base64.b64encode(image).decode())
    jobs = {"openai, two images": 6, "cog, one id": 1}.get(kind, 3)
    assert jobs * PIXELS <= held_while_waiting(busy_server, body, 3, jobs) < jobs * PIXELS + 2 * MIB


def test_waiting_event_stream_holds_pixels_only(busy_server: str, image: bytes) -> None:
    body = form("/img2img", image, prompt="x")
    held = held_while_waiting(busy_server, body, 3, 3, accept="text/event-stream")
    assert 3 * PIXELS <= held < 3 * PIXELS + 2 * MIB


def test_upload_of_two_edits_is_released_by_the_second() -> None:
    upload = Upload(b"file", uses=2)
    assert upload.take() == upload.take() == b"file"
    with pytest.raises(IndexError):
        upload.take()
