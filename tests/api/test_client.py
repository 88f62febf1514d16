import asyncio
import email.parser
import email.policy
import pickle
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from app.client import AsyncImg2Img, Edited, Img2Img, Img2ImgError, NoService, Progress
from tests.support.canned import BUSY, PICTURE, Answer, Asked, canned, problem
from tests.support.http import free_port
from tests.support.images import opened
from tests.support.servers import StartServer


def form_of(asked: Asked) -> dict[str, Any]:
    head = f"Content-Type: {asked.headers['Content-Type']}\r\n\r\n".encode()
    form = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + asked.body)
    parts = list(form.iter_parts())
    assert all(part.get_content_disposition() == "form-data" for part in parts)
    return {str(part.get_param("name", header="content-disposition")): part.get_payload(decode=True) for part in parts}


def refusal(client: Img2Img, png: bytes) -> Img2ImgError | None:
    try:
        client.edit(png, "x")
    except Img2ImgError as error:
        return error
    return None


def test_edit_returns_the_image_and_its_facts(server: str, png: bytes) -> None:
    with Img2Img(server + "/") as client:
        edited = client.edit(png, "word " * 80, num_inference_steps=10, strength=0.5, seed=7, output_format="webp")
    assert opened(edited.data).format == "WEBP"
    assert (edited.media_type, edited.seed, edited.steps_run, edited.start_timestep) == ("image/webp", 7, 5, 999.0)
    assert edited.tokens_cut == 5
    assert len(edited.request_id) == 32
    assert list(edited.seconds) == ["decode", "queue", "encode_prompt", "encode_image", "denoise", "vae", "webp"]
    assert edited.seconds["denoise"] == pytest.approx(0.003)


def test_edit_sends_only_the_given_fields(png: bytes) -> None:
    with canned(PICTURE) as server, Img2Img(server.url) as client:
        edited = client.edit(png, "wizard")
        client.edit(
            png,
            "wizard",
            negative_prompt="",
            num_inference_steps=2,
            strength=1e-05,
            guidance_scale=1.5,
            seed=0,
            fit="pad",
            output_format="jpeg",
        )
    first, second = map(form_of, server.asked)
    assert first == {"image": png, "prompt": b"wizard"}
    assert {name: value for name, value in second.items() if name != "image"} == {
        "prompt": b"wizard",
        "negative_prompt": b"",
        "num_inference_steps": b"2",
        "strength": b"1e-05",
        "guidance_scale": b"1.5",
        "seed": b"0",
        "fit": b"pad",
        "output_format": b"jpeg",
    }
    assert edited == Edited(b"picture", "image/png", 3, 2, 499.0, 0, "r1", {"queue": 0.0015, "png": 0.02})


def test_image_may_be_bytes_a_path_or_an_open_file(server: str, png: bytes, tmp_path: Path) -> None:
    path = tmp_path / "in.png"
    path.write_bytes(png)
    with Img2Img(server) as client, path.open("rb") as file:
        pictures = [client.edit(image, "x", seed=1).data for image in (png, path, str(path), file)]
    assert len(set(pictures)) == 1


def test_save_overwrites_the_file(tmp_path: Path) -> None:
    edited = Edited(b"new", "image/png", 1, 1, 0.0, 0, "", {})
    (tmp_path / "out.png").write_bytes(b"longer than that")
    assert edited.save(str(tmp_path / "out.png")).read_bytes() == b"new"


def test_refusal_names_the_field_and_says_what_to_do(server: str, png: bytes) -> None:
    with Img2Img(server) as client, pytest.raises(Img2ImgError, match=r"at least 0\.25") as caught:
        client.edit(png, "x", strength=0.1)
    error = caught.value
    assert (error.status, error.code, error.param, error.retry_after) == (422, "invalid_parameter", "strength", None)
    assert error.request_id
    assert str(error) == error.detail
    assert str(pickle.loads(pickle.dumps(error))) == error.detail


def test_failure_of_the_service_is_not_retried(server: str, png: bytes) -> None:
    with Img2Img(server) as client, pytest.raises(Img2ImgError) as caught:
        client.edit(png, "finish=nan")
    assert (caught.value.status, caught.value.code) == (500, "non_finite_result")


def test_client_waits_for_a_place_in_a_full_queue(
    start_server: Callable[..., AbstractContextManager[str]], png: bytes
) -> None:
    with start_server(queue_size=1) as url, Img2Img(url) as first, Img2Img(url, retries=0) as impatient:
        thread = threading.Thread(target=first.edit, args=(png, "tick=0.5"))
        thread.start()
        while "img2img_jobs_on_board 1.0" not in httpx2.get(f"{url}/metrics").text:
            time.sleep(0.01)
        error = refusal(impatient, png)
        assert error
        assert (error.status, error.code, error.retry_after) == (503, "queue_full", 1)
        with Img2Img(url) as patient:
            assert patient.edit(png, "x", seed=1).seed == 1
        thread.join()


def test_busy_service_is_retried_as_often_as_allowed() -> None:
    with canned(problem(503, BUSY), problem(503, BUSY), PICTURE) as server, Img2Img(server.url) as client:
        assert client.edit(b"x", "").data == b"picture"
        assert len(server.asked) == 3
    with canned(problem(503, BUSY)) as server, Img2Img(server.url, retries=1) as client:
        with pytest.raises(Img2ImgError, match="Too busy"):
            client.edit(b"x", "")
        assert len(server.asked) == 2


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (503, {"Retry-After": "0", "X-Should-Retry": "false"}),
        (503, {}),
        (503, {"Retry-After": "3600"}),
        (500, {"Retry-After": "0"}),
    ],
    ids=["it says not to", "it does not say when", "it says much later", "it is broken, not busy"],
)
def test_service_is_not_retried_if(status: int, headers: dict[str, str]) -> None:
    with canned(problem(status, headers)) as server, Img2Img(server.url) as client:
        with pytest.raises(Img2ImgError):
            client.edit(b"x", "")
        assert len(server.asked) == 1


@pytest.mark.parametrize("body", [b"<h1>Bad Gateway</h1>", b"[]"])
def test_error_of_a_proxy_is_reported_by_its_status(body: bytes) -> None:
    with (
        canned(Answer(502, body)) as server,
        Img2Img(server.url) as client,
        pytest.raises(Img2ImgError, match=f"{server.url} answered 502 Bad Gateway") as caught,
    ):
        client.edit(b"x", "")
    assert (caught.value.code, caught.value.request_id) == ("unknown", None)


def test_error_without_a_server_says_how_to_start_one() -> None:
    with Img2Img(f"http://127.0.0.1:{free_port()}") as client:
        assert not client.ready()
        with pytest.raises(NoService, match="start one with `img2img serve`"):
            client.edit(b"x", "")


def test_error_for_another_program_says_so() -> None:
    with canned(Answer(200, b"<h1>It works!</h1>")) as server, Img2Img(server.url) as client:
        with pytest.raises(NoService, match="another program"):
            client.edit(b"x", "")
        with pytest.raises(NoService, match="another program"):
            client.health()


def test_service_that_sends_nothing_times_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with Img2Img(url, timeout=0.2) as client, pytest.raises(NoService, match=r"did not answer within 0\.2 s"):
            client.edit(b"x", "")


def test_broken_connection_is_reported() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def hang_up() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1 << 16)

        thread = threading.Thread(target=hang_up)
        thread.start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        with Img2Img(url) as client, pytest.raises(NoService, match="broke off"):
            client.health()
        thread.join()


def test_client_waits_until_ready(start_server: Callable[..., AbstractContextManager[str]]) -> None:
    with start_server(model="slow", wait=False) as url, Img2Img(url) as client:
        assert client.health() == {"status": "starting"}
        assert not client.ready()
        with pytest.raises(TimeoutError, match="not ready within 0 s"):
            client.wait_until_ready(0)
        client.wait_until_ready()
        assert client.ready()
        assert client.health()["model"]["model"] == "fake"


@pytest.mark.parametrize("url", ["localhost:8000", "http://", "ftp://host", "http://host:port", ""])
def test_invalid_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="is not an http:// or https:// URL"):
        Img2Img(url)


def test_loopback_service_is_reached_past_a_proxy(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")
    with Img2Img(server) as client:
        assert client.ready()


def test_client_imports_no_library_of_model_or_service() -> None:
    code = "import sys, app.client; print({'torch', 'fastapi', 'starlette', 'pydantic', 'PIL'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


class TestProgress:
    def test_progress_has_each_step_and_preview(self, server: str, png: bytes) -> None:
        seen: list[Progress] = []
        arguments: dict[str, Any] = {"num_inference_steps": 4, "strength": 1.0, "seed": 3, "output_format": "webp"}
        with Img2Img(server) as client:
            edited = client.edit(png, "x", on_progress=seen.append, previews=True, **arguments)
            plain = client.edit(png, "x", **arguments)
        assert [one.step for one in seen if one.steps and not one.preview] == [1, 2, 3, 4]
        assert [one.step for one in seen if one.preview] == [1, 2, 3]
        assert {opened(one.preview).size for one in seen if one.preview} == {(512, 512)}
        assert (edited.data, edited.media_type, edited.seed) == (plain.data, "image/webp", 3)
        assert set(edited.seconds) == set(plain.seconds)
        assert edited.request_id

    def test_progress_has_the_queue_position(self, start_server: StartServer, png: bytes) -> None:
        seen: list[Progress] = []
        with start_server(max_batch=1) as url, Img2Img(url) as client:
            other = threading.Thread(target=client.edit, args=(png, "tick=0.3"))
            other.start()
            time.sleep(0.3)
            client.edit(png, "x", on_progress=seen.append)
            other.join()
        assert [one.ahead for one in seen if one.ahead is not None][:1] == [1]

    def test_error_before_or_during_the_stream_is_raised(self, server: str, png: bytes) -> None:
        with Img2Img(server) as client:
            with pytest.raises(Img2ImgError) as failed:
                client.edit(png, "fail_at=1", on_progress=lambda progress: None)
            assert (failed.value.status, failed.value.code) == (500, "inference_failed")
            with pytest.raises(Img2ImgError) as refused:
                client.edit(png, "x", strength=0.1, on_progress=lambda progress: None)
            assert (refused.value.status, refused.value.param) == (422, "strength")

    def test_service_without_events_sends_the_image(self, png: bytes) -> None:
        with canned(PICTURE) as other, Img2Img(other.url) as client:
            assert client.edit(png, "x", on_progress=lambda progress: None).seed == 3

    def test_events_without_an_image_are_another_program_s(self, png: bytes) -> None:
        answer = Answer(body=b"event: news\ndata: {}\n\n", headers={"Content-Type": "text/event-stream"})
        with canned(answer) as other, Img2Img(other.url) as client, pytest.raises(NoService, match="another"):
            client.edit(png, "x", on_progress=lambda progress: None)


class TestAsynchronous:
    """The same on an event loop."""

    def test_async_client_makes_the_same_image(self, server: str, png: bytes) -> None:
        async def ask() -> tuple[Edited, list[Progress]]:
            seen: list[Progress] = []
            async with AsyncImg2Img(server) as client:
                await client.wait_until_ready(5)
                assert (await client.health())["status"] == "ready"
                plain = await client.edit(png, "x", seed=3)
                reported = await client.edit(png, "x", seed=3, on_progress=seen.append)
                assert reported.data == plain.data
                return plain, seen

        edited, seen = asyncio.run(ask())
        with Img2Img(server) as client:
            assert client.edit(png, "x", seed=3).data == edited.data
        assert [one.step for one in seen] == [1, 2, 3]

    def test_coroutine_callback_is_awaited_for_each_step(self, server: str, png: bytes) -> None:
        async def ask() -> list[int]:
            seen: list[int] = []

            async def show(progress: Progress) -> None:
                await asyncio.sleep(0)
                seen.append(progress.step)

            async with AsyncImg2Img(server) as client:
                await client.edit(png, "x", on_progress=show)
            return seen

        assert asyncio.run(ask()) == [1, 2, 3]

    def test_async_client_sends_several_at_once(self, server: str, png: bytes) -> None:
        async def ask() -> list[Edited]:
            async with AsyncImg2Img(server) as client:
                return list(await asyncio.gather(*(client.edit(png, "x", seed=seed) for seed in range(4))))

        assert [edited.seed for edited in asyncio.run(ask())] == [0, 1, 2, 3]

    def test_async_client_waits_and_retries(self, png: bytes) -> None:
        async def ask(url: str) -> Edited:
            async with AsyncImg2Img(url) as client:
                return await client.edit(png, "x")

        with canned(problem(503, BUSY), PICTURE) as server:
            assert asyncio.run(ask(server.url)).seed == 3
            assert len(server.asked) == 2

    def test_async_client_raises_the_same_errors(self, server: str, png: bytes) -> None:
        async def ask(url: str, strength: float) -> bool:
            async with AsyncImg2Img(url) as client:
                await client.edit(png, "x", strength=strength)
                return await client.ready()

        with pytest.raises(Img2ImgError, match="strength"):
            asyncio.run(ask(server, 0.1))
        with pytest.raises(NoService, match="No service answers"):
            asyncio.run(ask(f"http://127.0.0.1:{free_port()}", 1.0))

    def test_async_client_times_out_when_never_ready(self) -> None:
        async def wait() -> None:
            async with AsyncImg2Img(f"http://127.0.0.1:{free_port()}") as client:
                await client.wait_until_ready(0.1)

        with pytest.raises(TimeoutError, match="was not ready"):
            asyncio.run(wait())
