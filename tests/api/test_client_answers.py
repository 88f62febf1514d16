"""What the clients make of answers that are rare, odd, cut off, or another program's."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from app.client import Img2Img, Img2ImgError, NoService, Progress
from tests.support.canned import (
    BUSY,
    DEEP,
    FASTAPI,
    PICTURE,
    RESULT,
    Answer,
    Ask,
    canned,
    events,
    ignore,
    in_events,
    problem,
)
from tests.support.servers import StartServer


class TestRefusals:
    @pytest.mark.parametrize(
        "body",
        [FASTAPI, b'{"code": 7, "detail": null, "param": ["x"]}', b'{"detail": ""}', b"<h1>No</h1>", b"\xff", DEEP],
    )
    def test_error_without_a_text_is_reported_by_its_status(self, ask: Ask, body: bytes) -> None:
        with canned(Answer(422, body)) as server, pytest.raises(Img2ImgError) as caught:
            ask(server.url)
        error = caught.value
        assert str(error).startswith(f"{server.url} answered 422 Unprocessable ")
        assert (error.status, error.code, error.param) == (422, "unknown", None)

    def test_text_of_another_program_is_reported(self, ask: Ask) -> None:
        with (
            canned(Answer(400, b'{"detail": "No, thanks"}')) as server,
            pytest.raises(Img2ImgError, match="No, thanks"),
        ):
            ask(server.url)

    @pytest.mark.parametrize("status", [404, 405, 501])
    def test_missing_route_is_another_program(self, ask: Ask, status: int) -> None:
        with (
            canned(Answer(status, b'{"detail": "Not Found"}')) as server,
            pytest.raises(NoService, match="without a path"),
        ):
            ask(server.url)

    def test_status_without_a_phrase_ends_with_a_full_stop(self) -> None:
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
    def test_unreadable_headers_are_another_program_s(self, ask: Ask, headers: dict[str, str | None]) -> None:
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
    def test_unreadable_times_are_left_out(self, timing: str, seconds: dict[str, float]) -> None:
        answer = Answer(body=b"picture", headers={**PICTURE.headers, "Server-Timing": timing})
        with canned(answer) as server, Img2Img(server.url) as client:
            assert client.edit(b"x", "").seconds == seconds

    def test_response_without_request_id_and_with_charset_is_read(self) -> None:
        headers = {name: value for name, value in PICTURE.headers.items() if name != "X-Request-Id"}
        answer = Answer(body=b"picture", headers={**headers, "Content-Type": "Image/PNG; charset=utf-8"})
        with canned(answer) as server, Img2Img(server.url) as client:
            edited = client.edit(b"x", "")
        assert (edited.media_type, edited.request_id) == ("image/png", "")


def busy(status: int = 503, **members: object) -> Answer:
    error = {"status": status, "code": "deadline_exceeded", "detail": "Too busy.", **members}
    return in_events(events(("step", {"step": 1, "steps": 2}), ("error", error)))


class TestTryingAgain:
    @pytest.mark.parametrize("status", [503, 429])
    def test_stream_that_ends_as_busy_is_retried(self, ask: Ask, status: int) -> None:
        seen: list[Progress] = []
        done = in_events(events(("step", {"step": 1, "steps": 2}), ("picture", RESULT)))
        with canned(busy(status, retry_after=0), busy(status, retry_after=-5), done) as server:
            assert ask(server.url, on_progress=seen.append).seed == 3
            assert len(server.asked) == 3
        assert [one.step for one in seen] == [1, 1, 1]

    def test_retry_may_be_answered_in_another_format(self, ask: Ask) -> None:
        torn = in_events(events(("picture", {**RESULT, "seed": 9}), ("error", {"status": 503, "retry_after": 0})))
        with canned(torn, problem(503, BUSY), PICTURE) as server:
            assert ask(server.url, on_progress=ignore).seed == 3
        with canned(torn, in_events(b"")) as server, pytest.raises(NoService, match="ended before the image"):
            ask(server.url, on_progress=ignore)

    def test_retries_are_counted_together(self, ask: Ask) -> None:
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
    def test_no_retry_without_a_usable_retry_after(self, ask: Ask, answer: Answer) -> None:
        with canned(answer) as server:
            with pytest.raises(Img2ImgError, match="Too busy"):
                ask(server.url, on_progress=ignore)
            assert len(server.asked) == 1

    def test_out_of_memory_during_the_stream_is_retried(self, start_server: StartServer, png: bytes) -> None:
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
    def test_retry_after_of_a_past_date_is_no_wait(self, ask: Ask, date: str) -> None:
        with canned(problem(503, {"Retry-After": date}), PICTURE) as server:
            assert ask(server.url).seed == 3
            assert len(server.asked) == 2

    def test_retry_after_of_a_date_is_waited_for(self) -> None:
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
    def test_retry_after_too_late_or_malformed_is_not_waited_for(self, ask: Ask, value: str) -> None:
        with canned(problem(503, {"Retry-After": value.encode().decode("latin-1")})) as server:
            with pytest.raises(Img2ImgError, match="Too busy"):
                ask(server.url)
            assert len(server.asked) == 1


@pytest.mark.parametrize(
    "body", [b'{"status": "ready"}', b'{"status": "ready", "model": "x"}', b'{"status": "ok"}', b"[]", DEEP]
)
def test_health_of_another_program_raises_no_service(body: bytes) -> None:
    with canned(Answer(200, body)) as server, Img2Img(server.url) as client:
        assert not client.ready()
        with pytest.raises(NoService, match="another program"):
            client.health()
