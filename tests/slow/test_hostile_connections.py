"""Slow clients, a thousand of them: requests of other clients are answered while they are connected."""

import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from urllib.parse import urlsplit

import httpx2
import pytest

from scripts.resilience.target import Target
from tests.support.hostile import IMAGE, PROMPT, form, unharmed
from tests.support.http import connect, eventually, post
from tests.support.images import (
    FILES,
)
from tests.support.servers import StartServer


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    with unharmed(tmp_path_factory.mktemp("target")) as target:
        yield target


HEAD = b"POST /img2img HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 1000000\r\n\r\n"


def answered(target: Target) -> int:
    """How many of nine requests, one after the other, get their image."""
    return sum(post(target.url, FILES["PNG"], seed=str(seed)).status_code == 200 for seed in range(9))


@pytest.mark.parametrize("said", [b"", b"GET /health/li", HEAD[:40], HEAD, HEAD + b"\x89PNG"], ids=range(5))
def test_thousand_half_open_connections_hold_up_no_request(target: Target, said: bytes) -> None:
    before = target.descriptors()
    connections = [connect(target.url) for _ in range(1_000)]
    try:
        for connection in connections:
            connection.sendall(said)
        eventually(lambda: target.descriptors() >= before + 900)
        assert answered(target) == 9
        assert httpx2.get(f"{target.url}/health/ready").status_code == 200
        # They were answered before any of the thousand was given up.
        assert target.descriptors() >= before + 900
    finally:
        for connection in connections:
            connection.close()
    eventually(lambda: target.descriptors() <= before + 5)


def test_fifty_dripping_clients_hold_up_no_request(target: Target) -> None:
    over = threading.Event()
    dripping = 0

    def drip() -> None:
        nonlocal dripping
        with connect(target.url) as connection, suppress(OSError):
            dripping += 1
            for byte in HEAD + bytes(100_000):
                if over.wait(0.02):
                    return
                connection.sendall(bytes([byte]))
            dripping -= 1

    threads = [threading.Thread(target=drip) for _ in range(50)]
    for thread in threads:
        thread.start()
    try:
        eventually(lambda: dripping == 50)
        assert answered(target) == 9
        assert all(thread.is_alive() for thread in threads)
    finally:
        over.set()
        for thread in threads:
            thread.join()


def test_body_without_an_end_is_refused_at_the_limit(start_server: StartServer) -> None:
    with start_server(max_body_bytes=50_000) as url, connect(url) as connection:
        connection.sendall(
            b"POST /img2img HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        with suppress(OSError):
            for _ in range(1_000):
                connection.sendall(b"400\r\n" + bytes(1024) + b"\r\n")
        assert b" 413 " in connection.recv(100)


def test_clients_that_do_not_read_hold_up_no_request(target: Target) -> None:
    body = form(IMAGE, PROMPT)
    head = (
        b"POST /img2img HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=x\r\n"
        b"Content-Length: " + str(len(body)).encode() + b"\r\n\r\n"
    )
    before, readers = target.descriptors(), []
    for _ in range(20):
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        address = urlsplit(target.url)
        connection.connect((address.hostname, address.port))
        connection.sendall(head + body)
        readers.append(connection)
    try:
        assert answered(target) == 9
        assert target.descriptors() >= before + 20
    finally:
        for connection in readers:
            connection.close()
