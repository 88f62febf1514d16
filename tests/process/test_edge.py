"""The proxy of the compose profile `edge`, with its own configuration: what it takes off the service's hands."""

import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx2
import pytest

from scripts.resilience.target import Target, serving
from tests.support.http import connect, eventually, free_port, pieces, post, sample
from tests.support.images import FILES
from tests.support.paths import ROOT
from tests.support.servers import run_server

NGINX = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")

pytestmark = pytest.mark.skipif(NGINX is None, reason="nginx is not installed")


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    with serving(tmp_path_factory.mktemp("target"), knobs={"queue_size": 200}) as target:
        yield target


@contextmanager
def nginx(folder: Path, service: str) -> Iterator[str]:
    """The proxy before a service, both by their URLs."""
    port = free_port()
    text = (ROOT / "deploy/edge/nginx.conf").read_text()
    text = text.replace("listen 8080", f"listen 127.0.0.1:{port}")
    text = text.replace("http://img2img-service:8000", service)
    # Seconds here are tenths there, and Docker's name service is not here.
    text = re.sub(r"(client_header_timeout|client_body_timeout|send_timeout) 10s", r"\1 1s", text)
    text = re.sub(r"resolver(_timeout)? .*;", "", text)
    text = text.replace("/tmp/", f"{folder}/")
    if os.geteuid() == 0:
        text = f"user root;\n{text}"
    config = folder / "edge.conf"
    config.write_text(text)
    assert NGINX
    command = [NGINX, "-p", str(folder), "-c", str(config), "-e", "stderr", "-g", "daemon off;"]
    with subprocess.Popen(command) as process:
        url = f"http://127.0.0.1:{port}"

        def answers() -> bool:
            assert process.poll() is None
            with suppress(httpx2.TransportError):
                return httpx2.get(f"{url}/health/live").is_success
            return False

        try:
            eventually(answers)
            yield url
        finally:
            process.terminate()
            process.wait(20)


@pytest.fixture(scope="module")
def edge(target: Target, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with nginx(tmp_path_factory.mktemp("edge"), target.url) as url:
        yield url


def test_proxy_passes_an_image_on(edge: str) -> None:
    answer = post(edge, FILES["PNG"], seed="7")
    assert (answer.status_code, answer.headers["x-seed"]) == (200, "7")


def test_proxy_passes_each_event_on_at_once(tmp_path: Path) -> None:
    form = {"prompt": "tick=0.5", "num_inference_steps": "4", "strength": "1"}
    headers, files = {"Accept": "text/event-stream"}, {"image": FILES["PNG"]}
    with (
        run_server() as service,
        nginx(tmp_path, service) as url,
        httpx2.stream("POST", f"{url}/img2img", headers=headers, data=form, files=files) as answer,
    ):
        lines = answer.iter_lines()
        assert [next(lines), next(lines)] == ["event: step", 'data: {"step": 1, "steps": 4}']
        assert sample(service, "img2img_jobs_on_board") == 1


def test_proxy_refuses_a_large_body_in_the_shape_of_the_service(edge: str) -> None:
    headers = {"Content-Type": "image/png"}
    answer = httpx2.post(f"{edge}/img2img", content=bytes(20 * 2**20 + 1), headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")
    assert answer.headers["content-type"] == "application/problem+json"
    accepted = httpx2.post(f"{edge}/img2img", content=bytes(20 * 2**20), headers=headers)
    assert accepted.json()["code"] == "unsupported_image_format"


def test_proxy_passes_a_body_of_unknown_length_on(edge: str) -> None:
    answer = httpx2.post(f"{edge}/img2img", content=pieces(FILES["PNG"]), headers={"Content-Type": "image/png"})
    assert answer.status_code == 200


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"GET /health/live HTTP/1.1\r\nX: ",
        b"POST /img2img HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 100000\r\n\r\n\x89PNG",
    ],
    ids=["nothing", "half a head", "half a body"],
)
def test_proxy_closes_silent_connections_itself(edge: str, target: Target, said: bytes) -> None:
    before = target.descriptors()
    with connect(edge) as connection:
        connection.sendall(said)
        # Ends when the proxy closes the connection, and fails by the socket's timeout if it does not.
        with suppress(ConnectionError):
            connection.makefile("rb").read()
        assert target.descriptors() <= before + 1


def test_proxy_closes_a_head_that_drips_past_the_timeout(edge: str) -> None:
    head = b"GET /health/live HTTP/1.1\r\n" + b"X: y\r\n" * 20
    sent = 0
    with connect(edge) as connection:
        gone = threading.Event()

        def drip() -> None:
            nonlocal sent
            for byte in head:
                try:
                    connection.sendall(bytes([byte]))
                except OSError:
                    return
                sent += 1
                if gone.wait(0.1):
                    return

        thread = threading.Thread(target=drip)
        thread.start()
        with suppress(ConnectionError):
            connection.makefile("rb").read()
        gone.set()
        thread.join()
    # The connection is closed while the head still arrives: each byte would else start the timeout again.
    assert 0 < sent < len(head)


def test_proxy_answers_beside_2_000_silent_connections(edge: str) -> None:
    silent = [connect(edge) for _ in range(2_000)]
    try:
        for connection in silent:
            connection.sendall(b"GET /health/live HTTP/1.1\r\n")
        assert httpx2.get(f"{edge}/health/live").status_code == 200
    finally:
        for connection in silent:
            connection.close()


def test_proxy_refuses_a_huge_header_in_the_shape_of_the_service(edge: str) -> None:
    answer = httpx2.get(f"{edge}/health/live", headers={"X-Long": "x" * 9_000})
    assert (answer.status_code, answer.headers["content-type"]) == (400, "application/problem+json")
    assert answer.headers["x-request-id"]


def test_client_with_too_many_connections_gets_429(edge: str) -> None:
    head = b"POST /img2img HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 100000\r\n\r\n\x89PNG"
    connections = [connect(edge) for _ in range(110)]
    try:
        for connection in connections:
            connection.sendall(head)
        eventually(lambda: httpx2.get(f"{edge}/health/live").status_code == 429)
        answer = httpx2.get(f"{edge}/health/live")
        assert answer.json()["code"] == "too_many_requests"
        assert answer.headers["retry-after"] == "1"
    finally:
        for connection in connections:
            connection.close()
    eventually(lambda: httpx2.get(f"{edge}/health/live").status_code == 200)


def test_page_of_the_proxy_s_origin_is_same_origin(edge: str) -> None:
    answer = httpx2.post(f"{edge}/img2img", content=FILES["PNG"], headers={"Content-Type": "image/png", "Origin": edge})
    assert answer.status_code == 200


class _Echo(BaseHTTPRequestHandler):
    """Answers with what it receives about the client."""

    def do_GET(self) -> None:
        said = ",".join(self.headers.get_all("X-Forwarded-For", [])).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def echo(folder: Path) -> Iterator[tuple[ThreadingHTTPServer, str]]:
    """A server that echoes, and the URL of a proxy before it."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Echo) as service:
        threading.Thread(target=service.serve_forever).start()
        try:
            with nginx(folder, f"http://127.0.0.1:{service.server_port}") as url:
                yield service, url
        finally:
            service.shutdown()


def test_forged_forwarded_addresses_do_not_reach_the_service(tmp_path: Path) -> None:
    forged = [("X-Forwarded-For", "192.0.2.7"), ("x-forwarded-for", "192.0.2.8, 192.0.2.9")]
    with echo(tmp_path) as (_, url):
        assert httpx2.get(f"{url}/whatever", headers=forged).text == "127.0.0.1"


def test_proxy_without_a_service_answers_503(tmp_path: Path) -> None:
    with echo(tmp_path) as (service, url):
        service.server_close()
        answer = httpx2.get(f"{url}/health/ready")
    assert (answer.status_code, answer.json()["status"], answer.headers["retry-after"]) == (503, 503, "2")
