"""OpenTelemetry: what a collector gets from a real server, and that a missing collector does no harm."""

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx2
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from app.observability import otel_env
from tests.support.images import noise, saved
from tests.support.logs import logged, requests

PNG = saved(noise((24, 24)), "PNG")
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"


class Collector(ThreadingHTTPServer):
    """Takes what exporters send by OTLP over HTTP, read by OpenTelemetry's own protocol classes."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.paths: set[str] = set()
        self.sent: list[bytes] = []
        self.resource: dict[str, str] = {}
        self.spans: list[Span] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def named(self, name: str) -> Span:
        (span,) = [span for span in self.spans if span.name == name]
        return span


class _Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.paths.add(self.path)
        self.server.sent.append(body)
        for group in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.server.resource = {one.key: one.value.string_value for one in group.resource.attributes}
            self.server.spans += [span for scope in group.scope_spans for span in scope.spans]
        self.send_response(200)
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.05,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@contextmanager
def traced(
    monkeypatch: pytest.MonkeyPatch, endpoint: str, variables: dict[str, str] | None = None
) -> Iterator[tuple[str, list[str]]]:
    """A server of its own that exports to an endpoint."""
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    for name, value in {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, **(variables or {})}.items():
        monkeypatch.setenv(name, value)
    with logged() as (url, lines):
        yield url, lines


def attributes(span: Span) -> dict[str, str | int]:
    return {one.key: one.value.string_value or one.value.int_value for one in span.attributes}


def test_image_has_a_span_for_each_stage_in_the_clients_trace(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    with traced(monkeypatch, collector.url) as (url, lines):
        answer = httpx2.post(
            f"{url}/img2img",
            files={"image": PNG},
            data={"prompt": "unmistakable words", "seed": "7"},
            headers={"traceparent": f"00-{TRACE}-{PARENT}-01", "X-Request-Id": "mine"},
        )
        assert answer.is_success
    request, picture, engine = (collector.named(name) for name in ("POST /img2img", "picture", "engine"))
    assert {span.trace_id.hex() for span in collector.spans} == {TRACE}
    assert request.parent_span_id.hex() == PARENT
    assert picture.parent_span_id == request.span_id
    under = {name: parent for parent in ("POST /img2img", "picture", "engine") for name in children(collector, parent)}
    assert under == {
        **dict.fromkeys(("receive", "picture"), "POST /img2img"),
        **dict.fromkeys(("decode", "engine", "png"), "picture"),
        **dict.fromkeys(("queue", "encode_prompt", "encode_image", "denoise", "vae"), "engine"),
    }
    assert len(collector.spans) == len(under) + 1
    # The response's times of the stages are those of the spans.
    reported = dict(part.split(";dur=") for part in answer.headers["server-timing"].split(", "))
    for name in ("queue", "encode_prompt", "encode_image", "denoise", "vae"):
        span = collector.named(name)
        assert (span.end_time_unix_nano - span.start_time_unix_nano) / 1e6 == pytest.approx(
            float(reported[name]), abs=0.06
        )
    assert picture.start_time_unix_nano <= engine.start_time_unix_nano
    assert abs(collector.named("vae").end_time_unix_nano - engine.end_time_unix_nano) < 1e9
    assert attributes(picture) == {"img2img.seed": 7, "img2img.steps_run": 3}
    facts = attributes(request)
    assert (facts["img2img.request_id"], facts["http.response.status_code"]) == ("mine", 200)
    assert collector.resource["service.name"] == "sdxl-turbo-img2img"
    assert collector.paths == {"/v1/traces"}
    assert b"unmistakable" not in b"".join(collector.sent)
    assert requests(lines)[0]["trace_id"] == TRACE


def children(collector: Collector, name: str) -> list[str]:
    parent = collector.named(name)
    return [span.name for span in collector.spans if span.parent_span_id == parent.span_id]


def test_request_without_a_trace_starts_one_with_its_id_in_the_log(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    with traced(monkeypatch, collector.url, {"OTEL_RESOURCE_ATTRIBUTES": "service.name=ours"}) as (url, lines):
        form = {"prompt": "x", "n": "2", "seed": "4"}
        # A query has no effect here, but a client may have put the prompt into it.
        query = {"note": "unmistakable"}
        assert httpx2.post(f"{url}/v1/images/edits", params=query, files={"image": PNG}, data=form).is_success
        httpx2.get(f"{url}/health")
        httpx2.get(f"{url}/metrics")
    (line,) = requests(lines)
    assert {span.trace_id.hex() for span in collector.spans} == {line["trace_id"]}
    request = collector.named("POST /v1/images/edits")
    assert request.parent_span_id == b""
    pictures = [span for span in collector.spans if span.name == "picture"]
    assert {attributes(span)["img2img.seed"] for span in pictures} == {4, 5}
    assert {span.parent_span_id for span in pictures} == {request.span_id}
    assert attributes(request)["url.query"] == "REDACTED"
    assert b"unmistakable" not in b"".join(collector.sent)
    assert collector.resource["service.name"] == "ours"


def test_failed_span_has_the_error_code_and_no_message(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    with traced(monkeypatch, collector.url) as (url, _):
        refused = httpx2.post(f"{url}/img2img", files={"image": PNG[:60]}, data={"prompt": "x"})
        assert refused.status_code == 422
    for name in ("decode", "picture"):
        span = collector.named(name)
        assert span.status.code == Status.STATUS_CODE_ERROR
        assert attributes(span)["error.type"] == "invalid_image"
        assert not span.events
        assert not span.status.message


def test_unsampled_trace_is_not_exported(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    with traced(monkeypatch, collector.url) as (url, lines):
        headers = {"traceparent": f"00-{TRACE}-{PARENT}-00"}
        assert httpx2.get(f"{url}/openapi.json", headers=headers).is_success
    assert collector.spans == []
    assert requests(lines)[0]["trace_id"] == TRACE


def test_silent_collector_delays_neither_requests_nor_exit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        # Small batches, so that there are many to wait for: with ten seconds for each, the wait for the end times out.
        variables = {"OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "2"}
        with traced(monkeypatch, f"http://127.0.0.1:{silent.getsockname()[1]}", variables) as (url, lines):
            for _ in range(5):
                assert httpx2.post(f"{url}/img2img", files={"image": PNG}, data={"prompt": "x"}).is_success
    assert len(requests(lines)) == 5


def test_wrong_variable_disables_tracing_only(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    with traced(monkeypatch, collector.url, {"OTEL_ATTRIBUTE_COUNT_LIMIT": "many"}) as (url, lines):
        assert httpx2.post(f"{url}/img2img", files={"image": PNG}, data={"prompt": "x"}).is_success
    assert not collector.paths
    (reported,) = [line for line in map(json.loads, lines) if "tracing disabled" in line["message"]]
    assert "OTEL_ATTRIBUTE_COUNT_LIMIT" in reported["message"]


@pytest.mark.parametrize(
    ("name", "value", "advice"),
    [
        ("OTEL_PROPAGATORS", "b3", "can be tracecontext or baggage here"),
        ("OTEL_PROPAGATORS", "none", "can be tracecontext or baggage here"),
        ("OTEL_TRACES_EXPORTER", "console", "can be otlp or none here"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "can be http/protobuf here"),
        ("OTEL_PYTHON_CONTEXT", "other", "can be contextvars_context here"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4318", "must be an address like http://collector:4318"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://[", "must be an address like http://collector:4318"),
    ],
)
@pytest.mark.parametrize("command", [["serve"], ["edit", "in.png", "--prompt", "x", "--local"]], ids=["serve", "edit"])
def test_unsupported_variable_is_refused_in_one_line(
    command: list[str], name: str, value: str, advice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in.png").write_bytes(PNG)
    monkeypatch.setenv(name, value)
    done = subprocess.run(
        [sys.executable, "-m", "app", *command], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert done.stderr.startswith(f"img2img: {name} {advice}")


def test_empty_variable_counts_as_absent() -> None:
    environment = {"OTEL_PROPAGATORS": "", "OTEL_EXPORTER_OTLP_ENDPOINT": " ", "OTEL_SERVICE_NAME": "ours", "HOME": ""}
    otel_env.validate_otel_env(environment)
    assert environment == {"OTEL_SERVICE_NAME": "ours", "HOME": ""}


def test_without_an_endpoint_nothing_is_exported(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    with traced(monkeypatch, "") as (url, lines):
        assert httpx2.post(f"{url}/img2img", files={"image": PNG}, data={"prompt": "x"}).is_success
    assert "trace_id" not in requests(lines)[0]
    assert not collector.paths
