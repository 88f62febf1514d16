"""What the clients make of answers that are rare, odd, cut off, or another program's."""

import asyncio
import io
import json
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import pairwise
from threading import Thread
from typing import Any

import httpx2
import pytest
from PIL import Image

from app.client import AsyncImg2Img, Edited, Img2Img, Img2ImgError, NoService, Progress
from tests.support.canned import BUSY, FASTAPI, PICTURE, Answer, canned, events, in_events, problem
from tests.support.servers import StartServer

Ask = Callable[..., Edited]

DEEP = b"[" * 100_000
"""JSON that no parser follows to its end."""


TOLD = {
    "image": "data:image/png;base64,cGljdHVyZQ==",
    "seed": 3,
    "steps_run": 2,
    "start_timestep": 499.0,
    "tokens_cut": 0,
    "seconds": {"queue": 0.0015},
}


@pytest.fixture(params=["blocking", "asynchronous"])
def ask(request: pytest.FixtureRequest) -> Ask:
    """`edit` of either client."""

    def blocking(url: str, image: bytes = b"x", retries: int = 2, **options: Any) -> Edited:
        with Img2Img(url, retries=retries) as client:
            return client.edit(image, "", **options)

    def asynchronous(url: str, image: bytes = b"x", retries: int = 2, **options: Any) -> Edited:
        async def run() -> Edited:
            async with AsyncImg2Img(url, retries=retries) as client:
                return await client.edit(image, "", **options)

        return asyncio.run(run())

    return blocking if request.param == "blocking" else asynchronous


@pytest.fixture(scope="module")
def stream(server: str, png: bytes) -> bytes:
    """The events of a real service."""
    form: dict[str, Any] = {"data": {"prompt": "", "seed": "3"}, "files": {"image": png}}
    answer = httpx2.post(f"{server}/img2img", headers={"Accept": "text/event-stream"}, **form)
    assert b"event: step\n" in answer.content
    return answer.content


def ignore(progress: Progress) -> None:
    """For tests that are not about progress."""


@contextmanager
def in_pieces(*pieces: bytes) -> Iterator[str]:
    """A server whose one answer arrives piece by piece."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            for piece in pieces:
                self.wfile.write(piece)
                time.sleep(0.05)

        def log_message(self, *arguments: object) -> None:
            """Tests have nothing to log."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.handle_request)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        thread.join()


class TestRefusals:
    @pytest.mark.parametrize(
        "body",
        [FASTAPI, b'{"code": 7, "detail": null, "param": ["x"]}', b'{"detail": ""}', b"<h1>No</h1>", b"\xff", DEEP],
    )
    def test_what_is_no_sentence_is_told_by_its_status(self, ask: Ask, body: bytes) -> None:
        with canned(Answer(422, body)) as server, pytest.raises(Img2ImgError) as caught:
            ask(server.url)
        error = caught.value
        assert str(error).startswith(f"{server.url} answered 422 Unprocessable ")
        assert (error.status, error.code, error.param) == (422, "unknown", None)

    def test_a_sentence_of_another_program_is_told(self, ask: Ask) -> None:
        with (
            canned(Answer(400, b'{"detail": "No, thanks"}')) as server,
            pytest.raises(Img2ImgError, match="No, thanks"),
        ):
            ask(server.url)

    def test_where_there_is_no_such_route_there_is_no_service(self, ask: Ask) -> None:
        with (
            canned(Answer(404, b'{"detail": "Not Found"}')) as server,
            pytest.raises(NoService, match="without a path"),
        ):
            ask(server.url)

    def test_a_status_without_a_phrase_ends_like_a_sentence(self) -> None:
        with (
            canned(Answer(599)) as server,
            pytest.raises(Img2ImgError, match=r"answered 599\.$"),
            Img2Img(server.url) as client,
        ):
            client.edit(b"x", "")


class TestPictures:
    @pytest.mark.parametrize(
        "headers",
        [
            {name: None for name in PICTURE.headers if name not in ("X-Seed", "Content-Type")},
            {"Content-Type": None},
            {"Content-Type": "text/html"},
            {"Content-Type": "image/../../elsewhere"},
            {"X-Seed": "abc"},
            {"X-Seed": "-1"},
            {"X-Steps-Run": ""},
            {"X-Start-Timestep": "nan"},
            {"X-Start-Timestep": "early"},
            {"X-Prompt-Tokens-Cut": "9" * 5000},
        ],
    )
    def test_headers_that_no_service_sends_are_another_programs(self, ask: Ask, headers: dict[str, str | None]) -> None:
        sent = {name: value for name, value in {**PICTURE.headers, **headers}.items() if value is not None}
        with canned(Answer(body=b"picture", headers=sent)) as server, pytest.raises(NoService, match="another program"):
            ask(server.url)

    @pytest.mark.parametrize(
        ("timing", "seconds"),
        [
            ("garbage", {}),
            ("queue;dur=1.2.3, png;dur=., denoise;dur=1e3, vae;dur=-1", {}),
            ("cdn;desc=HIT, edge;dur=4;desc=x, queue;dur=1.5", {"edge": 0.004, "queue": 0.0015}),
        ],
    )
    def test_of_times_only_what_can_be_read_is_told(self, timing: str, seconds: dict[str, float]) -> None:
        answer = Answer(body=b"picture", headers={**PICTURE.headers, "Server-Timing": timing})
        with canned(answer) as server, Img2Img(server.url) as client:
            assert client.edit(b"x", "").seconds == seconds

    def test_a_proxy_may_drop_the_request_id_and_name_a_charset(self) -> None:
        headers = {name: value for name, value in PICTURE.headers.items() if name != "X-Request-Id"}
        answer = Answer(body=b"picture", headers={**headers, "Content-Type": "Image/PNG; charset=utf-8"})
        with canned(answer) as server, Img2Img(server.url) as client:
            edited = client.edit(b"x", "")
        assert (edited.media_type, edited.request_id) == ("image/png", "")


def with_comments(stream: bytes) -> bytes:
    between = b"\n\n: keep-alive\n\nid: 7\nretry: 3000\n:\n"
    return b": hello\n\nretry: soon\n" + stream.replace(b"\n\n", between)


def in_several_lines(stream: bytes) -> bytes:
    def spread(line: str) -> str:
        if not line.startswith("data: "):
            return line
        lines = json.dumps(json.loads(line[6:]), indent=1).splitlines()
        return "\n".join(f"data: {part}" for part in lines)

    return "\n".join(spread(line) for line in stream.decode().split("\n")).encode()


FORMS: dict[str, Callable[[bytes], bytes]] = {
    "no space": lambda stream: stream.replace(b"event: ", b"event:").replace(b"data: ", b"data:"),
    "CRLF": lambda stream: stream.replace(b"\n", b"\r\n"),
    "CR": lambda stream: stream.replace(b"\n", b"\r"),
    "comments, ids and retry": with_comments,
    "data in several lines": in_several_lines,
    "a byte order mark": lambda stream: b"\xef\xbb\xbf" + stream,
    "the name after the data": lambda stream: b"".join(
        b"\n".join(reversed(event.split(b"\n"))) + b"\n\n" for event in stream.split(b"\n\n")[:-1]
    ),
    "events without data": lambda stream: b"event: step\n\nevent: picture\ndata\n\n" + stream,
    "events of other names": lambda stream: b"event: news\ndata: no JSON\n\ndata: [1]\n\n" + stream,
}


class TestEvents:
    @pytest.mark.parametrize("form", FORMS)
    def test_every_form_that_the_standard_allows_is_understood(self, ask: Ask, stream: bytes, form: str) -> None:
        told: list[Progress] = []
        seen: list[Progress] = []
        with canned(in_events(stream), in_events(FORMS[form](stream))) as server:
            plain = ask(server.url, on_progress=told.append)
            assert ask(server.url, on_progress=seen.append) == plain
        assert seen == told
        assert [one.step for one in seen if one.steps] == [1, 2, 3]

    def test_they_are_in_utf_8_whatever_the_header_says_and_its_letters_may_be_capitals(self, ask: Ask) -> None:
        body = 'event: error\ndata: {"status": 500, "detail": "Zu kalt: ☃"}\n\n'.encode()
        answer = in_events(body, "Text/Event-Stream ; charset=iso-8859-1")
        with canned(answer) as server, pytest.raises(Img2ImgError, match=r"^Zu kalt: ☃$"):
            ask(server.url, on_progress=ignore)

    def test_characters_and_ends_of_lines_may_be_torn(self, ask: Ask) -> None:
        body = 'event: error\r\ndata: {"status": 500, "detail": "Zu kalt: ☃"}\r\n\r\n'.encode()
        places = [0, body.index(b"\r\n") + 1, body.index("☃".encode()) + 1, len(body) - 3, len(body) - 1, len(body)]
        pieces = [body[start:end] for start, end in pairwise(places)]
        with in_pieces(*pieces) as url, pytest.raises(Img2ImgError, match=r"^Zu kalt: ☃$"):
            ask(url, on_progress=ignore)

    def test_a_picture_that_nothing_compresses_comes_too(self, ask: Ask, server: str) -> None:
        buffer = io.BytesIO()
        Image.frombytes("RGB", (512, 512), random.Random(0).randbytes(512 * 512 * 3)).save(buffer, "PNG")
        edited = ask(server, buffer.getvalue(), on_progress=ignore, seed=3)
        assert len(edited.data) > 512 * 512 * 3
        assert edited.data == ask(server, buffer.getvalue(), seed=3).data

    @pytest.mark.parametrize(
        "body",
        [
            b"event: step\ndata: no JSON\n\n",
            b"event: step\ndata: " + DEEP + b"\n\n",
            events(("waiting", {})),
            events(("waiting", [])),
            events(("waiting", {"ahead": float("inf")})),
            events(("step", 7)),
            events(("step", {"step": "x", "steps": 2})),
            events(("step", {"step": 1, "steps": 2, "preview": 7})),
            events(("step", {"step": 1, "steps": 2, "preview": "data:image/jpeg;base64,%"})),
            events(("picture", {})),
            events(("picture", {**TOLD, "image": "data:text/html;base64,cGljdHVyZQ=="})),
            events(("picture", {**TOLD, "seconds": [1]})),
            events(("picture", {**TOLD, "seed": None})),
            events(("error", "no")),
            events(("error", {"detail": "no"})),
            events(("error", {"status": 200, "detail": "no"})),
        ],
    )
    def test_events_that_no_service_sends_are_another_programs(self, ask: Ask, body: bytes) -> None:
        with canned(in_events(body)) as server, pytest.raises(NoService, match="another program"):
            ask(server.url, on_progress=ignore)

    def test_a_newer_service_may_tell_more_of_a_picture(self, ask: Ask) -> None:
        with canned(in_events(events(("picture", {**TOLD, "mood": "good"})))) as server:
            assert ask(server.url, on_progress=ignore) == Edited(
                b"picture", "image/png", 3, 2, 499.0, 0, "r1", {"queue": 0.0015}
            )

    def test_events_that_nobody_asked_for_are_read_all_the_same(self, ask: Ask, stream: bytes) -> None:
        with canned(in_events(stream), in_events(b"data: {}\n\n")) as server:
            assert ask(server.url).seed == 3
            with pytest.raises(NoService, match="another program"):
                ask(server.url)

    @pytest.mark.parametrize("end", [0, 7, -2, -100, None])
    def test_a_stream_that_ends_before_the_picture_broke_off(self, ask: Ask, stream: bytes, end: int | None) -> None:
        body = stream[: stream.index(b"event: picture")] if end is None else stream[: end or 0]
        with canned(in_events(body)) as server, pytest.raises(NoService, match="ended before the image"):
            ask(server.url, on_progress=ignore)

    def test_an_error_without_a_sentence_is_told_by_its_status(self, ask: Ask) -> None:
        answer = in_events(events(("error", {"status": 500, "detail": [1]})))
        with canned(answer) as server, pytest.raises(Img2ImgError, match=r"answered 500\.$") as caught:
            ask(server.url, on_progress=ignore)
        assert (caught.value.code, caught.value.request_id) == ("unknown", "r1")


def busy(status: int = 503, **members: object) -> Answer:
    error = {"status": status, "code": "deadline_exceeded", "detail": "Too busy.", **members}
    return in_events(events(("step", {"step": 1, "steps": 2}), ("error", error)))


class TestTryingAgain:
    @pytest.mark.parametrize("status", [503, 429])
    def test_a_service_that_gets_too_busy_on_the_way_is_asked_again(self, ask: Ask, status: int) -> None:
        seen: list[Progress] = []
        done = in_events(events(("step", {"step": 1, "steps": 2}), ("picture", TOLD)))
        with canned(busy(status, retry_after=0), busy(status, retry_after=-5), done) as server:
            assert ask(server.url, on_progress=seen.append).seed == 3
            assert len(server.asked) == 3
        assert [one.step for one in seen] == [1, 1, 1]

    def test_it_may_answer_in_another_way_then(self, ask: Ask) -> None:
        torn = in_events(events(("picture", {**TOLD, "seed": 9}), ("error", {"status": 503, "retry_after": 0})))
        with canned(torn, problem(503, BUSY), PICTURE) as server:
            assert ask(server.url, on_progress=ignore).seed == 3
        with canned(torn, in_events(b"")) as server, pytest.raises(NoService, match="ended before the image"):
            ask(server.url, on_progress=ignore)

    def test_all_tries_are_counted_together(self, ask: Ask) -> None:
        with canned(problem(503, BUSY), busy(retry_after=0)) as server:
            with pytest.raises(Img2ImgError, match="Too busy") as caught:
                ask(server.url, on_progress=ignore)
            assert len(server.asked) == 3
        assert (caught.value.status, caught.value.code, caught.value.retry_after) == (503, "deadline_exceeded", 0)

    @pytest.mark.parametrize(
        "answer",
        [
            busy(),
            busy(retry_after=None),
            busy(retry_after="soon"),
            busy(retry_after=float("nan")),
            busy(retry_after=10**400),
            busy(retry_after=3600),
            busy(500, retry_after=0),
        ],
    )
    def test_it_is_not_asked_again_if_it_does_not_say_when_or_much_later_or_is_broken(
        self, ask: Ask, answer: Answer
    ) -> None:
        with canned(answer) as server:
            with pytest.raises(Img2ImgError, match="Too busy"):
                ask(server.url, on_progress=ignore)
            assert len(server.asked) == 1

    def test_a_real_service_that_runs_out_of_memory_on_the_way_is_asked_again(
        self, start_server: StartServer, png: bytes
    ) -> None:
        def steps(url: str, retries: int) -> int:
            seen: list[Progress] = []
            with Img2Img(url, retries=retries) as client, pytest.raises(Img2ImgError) as caught:
                client.edit(png, "oom_at=1", on_progress=seen.append)
            assert (caught.value.code, caught.value.retry_after) == ("out_of_memory", 1)
            return sum(one.step == 1 for one in seen)

        with start_server() as url:
            assert 0 < 2 * steps(url, retries=0) == steps(url, retries=1)

    @pytest.mark.parametrize(
        "date", ["Sun, 06 Nov 1994 08:49:37 GMT", "Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994"]
    )
    def test_a_date_that_has_come_is_not_waited_for(self, ask: Ask, date: str) -> None:
        with canned(problem(503, {"Retry-After": date}), PICTURE) as server:
            assert ask(server.url).seed == 3
            assert len(server.asked) == 2

    def test_a_date_is_waited_for(self) -> None:
        date = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=2)
        with (
            canned(problem(503, {"Retry-After": format_datetime(date, usegmt=True)}), PICTURE) as server,
            Img2Img(server.url) as client,
        ):
            client.edit(b"x", "")
        assert datetime.now(UTC) >= date

    @pytest.mark.parametrize(
        "value",
        [
            *("Fri, 31 Dec 2999 23:59:59 GMT", "soon", "-1", "1.5", "", "²", "9" * 400, "1 Jan 99999 00:00:00 GMT"),
            f"Mon, {'9' * 30} Jan 2020 00:00:00 GMT",
        ],
    )
    def test_neither_a_date_much_later_nor_nonsense_is(self, ask: Ask, value: str) -> None:
        with canned(problem(503, {"Retry-After": value.encode().decode("latin-1")})) as server:
            with pytest.raises(Img2ImgError, match="Too busy"):
                ask(server.url)
            assert len(server.asked) == 1


@pytest.mark.parametrize(
    "body", [b'{"status": "ready"}', b'{"status": "ready", "model": "x"}', b'{"status": "ok"}', b"[]", DEEP]
)
def test_health_of_another_program_is_not_taken_for_a_services(body: bytes) -> None:
    with canned(Answer(200, body)) as server, Img2Img(server.url) as client:
        assert not client.ready()
        with pytest.raises(NoService, match="another program"):
            client.health()
