"""What the clients make of events that are rare, odd or cut off."""

import io
import json
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import pairwise
from threading import Thread
from typing import Any

import httpx2
import pytest
from PIL import Image

from app.client import Edited, Img2ImgError, NoService, Progress
from tests.support.canned import DEEP, RESULT, Ask, canned, events, ignore, in_events


@pytest.fixture(scope="module")
def stream(server: str, png: bytes) -> bytes:
    """The events of a real service."""
    form: dict[str, Any] = {"data": {"prompt": "", "seed": "3"}, "files": {"image": png}}
    answer = httpx2.post(f"{server}/img2img", headers={"Accept": "text/event-stream"}, **form)
    assert b"event: step\n" in answer.content
    return answer.content


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
    def test_each_form_of_events_in_the_standard_is_read(self, ask: Ask, stream: bytes, form: str) -> None:
        reported: list[Progress] = []
        seen: list[Progress] = []
        with canned(in_events(stream), in_events(FORMS[form](stream))) as server:
            plain = ask(server.url, on_progress=reported.append)
            assert ask(server.url, on_progress=seen.append) == plain
        assert seen == reported
        assert [one.step for one in seen if one.steps] == [1, 2, 3]

    def test_events_are_utf_8_whatever_the_header_says(self, ask: Ask) -> None:
        body = 'event: error\ndata: {"status": 500, "detail": "Zu kalt: ☃"}\n\n'.encode()
        answer = in_events(body, "Text/Event-Stream ; charset=iso-8859-1")
        with canned(answer) as server, pytest.raises(Img2ImgError, match=r"^Zu kalt: ☃$"):
            ask(server.url, on_progress=ignore)

    def test_events_cut_anywhere_are_read(self, ask: Ask) -> None:
        body = 'event: error\r\ndata: {"status": 500, "detail": "Zu kalt: ☃"}\r\n\r\n'.encode()
        places = [0, body.index(b"\r\n") + 1, body.index("☃".encode()) + 1, len(body) - 3, len(body) - 1, len(body)]
        pieces = [body[start:end] for start, end in pairwise(places)]
        with in_pieces(*pieces) as url, pytest.raises(Img2ImgError, match=r"^Zu kalt: ☃$"):
            ask(url, on_progress=ignore)

    def test_event_with_an_incompressible_image_is_read(self, ask: Ask, server: str) -> None:
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
            events(("picture", {**RESULT, "image": "data:text/html;base64,cGljdHVyZQ=="})),
            events(("picture", {**RESULT, "seconds": [1]})),
            events(("picture", {**RESULT, "seed": None})),
            events(("error", "no")),
            events(("error", {"detail": "no"})),
            events(("error", {"status": 200, "detail": "no"})),
        ],
    )
    def test_unreadable_events_are_another_program_s(self, ask: Ask, body: bytes) -> None:
        with canned(in_events(body)) as server, pytest.raises(NoService, match="another program"):
            ask(server.url, on_progress=ignore)

    def test_unknown_members_of_an_event_are_ignored(self, ask: Ask) -> None:
        with canned(in_events(events(("picture", {**RESULT, "mood": "good"})))) as server:
            assert ask(server.url, on_progress=ignore) == Edited(
                b"picture", "image/png", 3, 2, 499.0, 0, "r1", {"queue": 0.0015}
            )

    def test_events_that_were_not_requested_are_read(self, ask: Ask, stream: bytes) -> None:
        with canned(in_events(stream), in_events(b"data: {}\n\n")) as server:
            assert ask(server.url).seed == 3
            with pytest.raises(NoService, match="another program"):
                ask(server.url)

    @pytest.mark.parametrize("end", [0, 7, -2, -100, None])
    def test_stream_that_ends_before_the_image_is_reported(self, ask: Ask, stream: bytes, end: int | None) -> None:
        body = stream[: stream.index(b"event: picture")] if end is None else stream[: end or 0]
        with canned(in_events(body)) as server, pytest.raises(NoService, match="ended before the image"):
            ask(server.url, on_progress=ignore)

    def test_error_event_without_a_text_is_reported_by_its_status(self, ask: Ask) -> None:
        answer = in_events(events(("error", {"status": 500, "detail": [1]})))
        with canned(answer) as server, pytest.raises(Img2ImgError, match=r"answered 500\.$") as caught:
            ask(server.url, on_progress=ignore)
        assert (caught.value.code, caught.value.request_id) == ("unknown", "r1")
