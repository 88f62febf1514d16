"""Log lines: one of JSON for each request, with what an operator needs, and nothing that a client sent."""

import base64
import json
import logging
import subprocess
import sys

import httpx2
import pytest

from app.observability.logs import JsonLines, configure
from tests.support.fakes import FAKE
from tests.support.http import eventually, free_port, post
from tests.support.images import noise, saved
from tests.support.logs import CODE, logged, requests
from tests.support.servers import is_ready

PNG = saved(noise((24, 24)), "PNG")


def test_each_request_has_one_json_line_with_its_fields() -> None:
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    with logged(api_keys="secret") as (url, lines):
        headers = {"X-API-Key": "secret", "X-Request-Id": "mine", "traceparent": f"00-{trace}-00f067aa0ba902b7-01"}
        form = {"prompt": "unmistakable words", "seed": "7"}
        assert httpx2.post(f"{url}/img2img", files={"image": PNG}, data=form, headers=headers).is_success
        httpx2.post(f"{url}/img2img", files={"image": PNG}, data={**form, "strength": "0.1"}, headers=headers)
        httpx2.get(f"{url}/nowhere", headers={"traceparent": f"00-{'0' * 32}-00f067aa0ba902b7-01"})
    made, refused, unknown = requests(lines)
    facts = {name: made[name] for name in ("request_id", "method", "route", "status", "trace_id", "level")}
    assert facts == {
        "request_id": "mine",
        "method": "POST",
        "route": "/img2img",
        "status": 200,
        "trace_id": trace,
        "level": "INFO",
    }
    assert made["received_bytes"] > len(PNG)
    assert made["receive_milliseconds"] < made["milliseconds"]
    (picture,) = made["pictures"]
    assert picture["seed"] == 7
    assert list(picture["stage_milliseconds"])[:2] == ["decode", "queue"]
    assert made["milliseconds"] > sum(picture["stage_milliseconds"].values()) / 2
    assert len(made["key"]) == 12
    assert (refused["status"], refused["error"], "pictures" in refused) == (422, "invalid_parameter", False)
    assert "error" not in made
    assert (unknown["status"], unknown["route"], "key" in unknown, "trace_id" in unknown) == (
        *(401, "unmatched"),
        *(False, False),
    )
    assert "unmistakable" not in "".join(lines)
    assert "secret" not in "".join(lines)


def test_several_images_of_one_request_are_in_one_line() -> None:
    with logged(log_format="json") as (url, lines):
        form = {"prompt": "x", "n": "3", "seed": "4"}
        assert httpx2.post(f"{url}/v1/images/edits", files={"image": PNG}, data=form).is_success
    (line,) = requests(lines)
    assert sorted(picture["seed"] for picture in line["pictures"]) == [4, 5, 6]


def test_errors_of_streams_and_predictions_are_in_their_lines() -> None:
    with logged() as (url, lines):
        events = {"Accept": "text/event-stream"}
        for headers in ({}, events):
            httpx2.post(f"{url}/img2img", files={"image": PNG}, data={"prompt": "fail_at=1"}, headers=headers)
        image = base64.b64encode(PNG).decode()
        httpx2.post(f"{url}/predictions", json={"input": {"image": image, "prompt": "fail_at=1"}})
        httpx2.head(f"{url}/openapi.json")
    reported = [(line["method"], line["status"], line.get("error")) for line in requests(lines)]
    assert reported == [
        ("POST", 500, "inference_failed"),
        # As a stream it began with 200, before the error.
        ("POST", 500, "inference_failed"),
        ("POST", 200, "inference_failed"),
        ("HEAD", 200, None),
    ]
    assert [line["level"] for line in requests(lines)] == ["WARNING", "WARNING", "INFO", "INFO"]


def test_uncaught_exception_is_one_line() -> None:
    code = (
        "import warnings; from app.observability.logs import configure; configure('info', 'json'); "
        "warnings.warn('a\\nb'); 1 / 0"
    )
    done = subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    warned, ended = map(json.loads, done.stderr.splitlines())
    assert (done.returncode, warned["level"], ended["level"]) == (1, "WARNING", "CRITICAL")
    assert "a\nb" in warned["message"]
    assert "ZeroDivisionError" in ended["exception"]


def test_service_with_closed_standard_error_runs() -> None:
    port = free_port()
    command = [sys.executable, "-c", CODE, str(port), FAKE]
    process = subprocess.Popen(["/bin/sh", "-c", 'exec "$@" 2>&-', "sh", *command])
    try:
        eventually(lambda: is_ready(f"http://127.0.0.1:{port}"))
        assert post(f"http://127.0.0.1:{port}", PNG).is_success
    finally:
        process.terminate()
        assert process.wait(30) == 0


def test_unknown_variable_is_warned_about() -> None:
    with logged(qeue_size="3") as (_, lines):
        pass
    said = [line["message"] for line in map(json.loads, lines) if line["level"] == "WARNING"]
    assert said == ["IMG2IMG_QEUE_SIZE is not a setting, and has no effect: is IMG2IMG_QUEUE_SIZE meant?"]


def test_websocket_request_logs_no_advice() -> None:
    with logged() as (url, lines):
        headers = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
        headers["Sec-WebSocket-Key"] = "dGhlIHNhbXBsZSBub25jZQ=="
        assert httpx2.get(f"{url}/ws", headers=headers).status_code == 404
    assert [line["level"] for line in map(json.loads, lines)].count("WARNING") == 0


def test_console_format_is_one_sentence_each() -> None:
    with logged(log_format="console") as (url, lines):
        assert post(url, PNG).is_success
    (line,) = [line for line in lines if "app.web.request_context" in line]
    assert " INFO    app.web.request_context: POST /img2img 200 " in line


def test_exception_is_inside_its_json_line() -> None:
    record = logging.LogRecord("x", logging.ERROR, "f", 1, "it failed: %s", ("ü",), None)
    try:
        raise ValueError("inside")
    except ValueError:
        record.exc_info = sys.exc_info()
    line = JsonLines().format(record)
    assert "\n" not in line
    assert json.loads(line)["message"] == "it failed: ü"
    assert "ValueError: inside" in json.loads(line)["exception"]


@pytest.mark.parametrize(("terminal", "in_json"), [(True, False), (False, True)])
def test_terminal_gets_the_console_format(terminal: bool, in_json: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    try:
        configure("info", "auto")
        assert isinstance(root.handlers[0].formatter, JsonLines) is in_json
    finally:
        root.handlers[:] = before
        root.setLevel(level)
