"""`Accept: text/event-stream`: how a request goes, told as it goes."""

import base64
import json
import threading
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from app.client import Img2Img
from tests.support.http import eventually, post, problem, sample
from tests.support.images import opened
from tests.support.servers import StartServer

LONG = {"num_inference_steps": "4", "strength": "1", "seed": "5"}


def read(lines: Iterator[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Events by the rules of the HTML standard, as far as they are used."""
    name, data = "", ""
    for line in lines:
        field, _, value = line.partition(": ")
        if field == "event":
            name = value
        elif field == "data":
            data += value
        elif not line and data:
            yield name, json.loads(data)
            name, data = "", ""


def events(url: str, png: bytes, previews: bool = False, **fields: str) -> list[tuple[str, dict[str, Any]]]:
    headers = {"Accept": "text/event-stream", **({"X-Previews": "1"} if previews else {})}
    form: dict[str, Any] = {"data": {"prompt": "", **LONG, **fields}, "files": {"image": png}}
    with httpx2.stream("POST", f"{url}/img2img", headers=headers, timeout=30, **form) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-accel-buffering"] == "no"
        return list(read(answer.iter_lines()))


def data_of(url: str) -> bytes:
    return base64.b64decode(url.partition(",")[2])


def test_events_are_each_step_and_then_the_image(server: str, png: bytes) -> None:
    *steps, (name, picture) = events(server, png)
    assert [(name, body) for name, body in steps if name == "step"] == [
        ("step", {"step": number, "steps": 4}) for number in (1, 2, 3, 4)
    ]
    assert name == "picture"
    assert picture["image"].startswith("data:image/png;base64,")
    assert data_of(picture["image"]) == post(server, png, prompt="", **LONG).content
    assert (picture["seed"], picture["steps_run"], picture["tokens_cut"]) == (5, 4, 0)
    assert "denoise" in picture["seconds"]


def test_previews_are_sent_if_requested(server: str, png: bytes) -> None:
    shown = [body for name, body in events(server, png, previews=True) if "preview" in body]
    assert [body["step"] for body in shown] == [1, 2, 3]
    image = opened(data_of(shown[0]["preview"]))
    assert (image.format, image.size) == ("JPEG", (512, 512))


def test_waiting_request_gets_its_position(start_server: StartServer, png: bytes) -> None:
    with start_server(max_batch=1) as url:
        others = [threading.Thread(target=post, args=(url, png), kwargs={"prompt": "tick=0.3"}) for _ in range(2)]
        for other in others:
            other.start()
        eventually(lambda: (sample(url, "img2img_jobs_on_board") or 0) == 2)
        found = events(url, png)
        for other in others:
            other.join()
    ahead = [body["ahead"] for name, body in found if name == "waiting"]
    assert ahead[:1] == [2]
    assert ahead == sorted(set(ahead), reverse=True)


def test_idle_stream_gets_keepalive_comments(
    start_server: StartServer, png: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.web.sse.KEEPALIVE_SECONDS", 0.2)
    headers = {"Accept": "text/event-stream"}
    form: dict[str, Any] = {"data": {"prompt": "tick=0.7", **LONG}, "files": {"image": png}}
    with start_server() as url, httpx2.stream("POST", f"{url}/img2img", headers=headers, **form) as answer:
        lines = list(answer.iter_lines())
    assert sum(line.startswith(":") for line in lines) >= 3
    assert [name for name, _ in read(iter(lines))] == ["step"] * 4 + ["picture"]
    told: list[object] = []
    with start_server() as url, Img2Img(url) as client:
        assert client.edit(png, "tick=0.7", seed=5, on_progress=told.append).seed == 5
    assert told


def test_refused_stream_has_the_status_of_its_error(server: str, png: bytes) -> None:
    headers = {"Accept": "text/event-stream"}
    form: dict[str, Any] = {"data": {"prompt": "x", "strength": "0.1"}, "files": {"image": png}}
    problem(httpx2.post(f"{server}/img2img", headers=headers, **form), 422, "invalid_parameter", "strength")
    form = {"data": {"prompt": "x"}, "files": {"image": b"GIF89a"}}
    problem(httpx2.post(f"{server}/img2img", headers=headers, **form), 415, "unsupported_image_format", "image")


def test_event_stream_has_the_accepted_format_and_previews(server: str, png: bytes) -> None:
    form: dict[str, Any] = {"data": {"prompt": "x"}, "files": {"image": png}}

    def ask(accept: str, previews: str) -> httpx2.Response:
        headers = {"Accept": accept, "X-Previews": previews}
        return httpx2.post(f"{server}/img2img", headers=headers, **form)

    *steps, (_, picture) = read(iter(ask("text/event-stream, image/webp", "true").text.splitlines()))
    assert picture["image"].startswith("data:image/webp")
    assert any("preview" in body for _, body in steps)
    (_, picture) = list(read(iter(ask("text/event-stream, */*;q=0.1", "0").text.splitlines())))[-1]
    assert picture["image"].startswith("data:image/png")
    problem(ask("text/event-stream", "maybe"), 422, "invalid_parameter", "X-Previews")


def test_error_after_the_first_event_is_the_last_event(server: str, png: bytes) -> None:
    *_, (name, body) = events(server, png, prompt="fail_at=2")
    assert (name, body["code"], body["status"]) == ("error", "inference_failed", 500)


def test_client_that_disconnects_during_events_ends_the_work(start_server: StartServer, png: bytes) -> None:
    with start_server() as url:
        headers = {"Accept": "text/event-stream"}
        form: dict[str, Any] = {
            "data": {"prompt": "tick=0.2", "num_inference_steps": "50", "strength": "1"},
            "files": {"image": png},
        }
        with httpx2.stream("POST", f"{url}/img2img", headers=headers, **form) as answer:
            next(read(answer.iter_lines()))
        eventually(lambda: sample(url, "img2img_jobs_on_board") == 0)
        assert sample(url, "img2img_images_total") == 0
        eventually(lambda: sample(url, 'img2img_requests_total{code="499",route="/img2img"}') == 1)
        assert len(events(url, png)) == 5
        assert sample(url, 'img2img_requests_total{code="200",route="/img2img"}') == 1
        name = "img2img_request_duration_seconds_count"
        assert sample(url, f'{name}{{outcome="error",route="/img2img"}}') == 1
        assert sample(url, f'{name}{{outcome="success",route="/img2img"}}') == 1


def test_fault_during_events_is_counted_as_500(
    start_server: StartServer, png: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: Any) -> bytes:
        raise RuntimeError("nobody has foreseen this")

    monkeypatch.setattr("app.service.encode_preview", broken)
    with start_server() as url:
        with pytest.raises(httpx2.RemoteProtocolError):
            events(url, png, previews=True)
        eventually(lambda: sample(url, 'img2img_requests_total{code="500",route="/img2img"}') == 1)
        assert sample(url, "img2img_jobs_on_board") == 0
