"""Limits, health and metrics of a real server, some of it over a bare socket."""

import gzip
import json
import re
import threading
import time
from collections.abc import Iterator

import httpx2
import pytest

from tests.support.http import connect, eventually, pieces, post, problem, sample
from tests.support.servers import StartServer, run_server


@pytest.fixture(scope="module")
def small_bodies() -> Iterator[str]:
    """A server that takes bodies of 2 KiB at most."""
    with run_server(max_body_bytes=2048) as url:
        yield url


@pytest.mark.parametrize("chunked", [False, True], ids=["declared", "chunked"])
@pytest.mark.parametrize(("size", "too_large"), [(2047, False), (2048, False), (2049, True)])
def test_body_over_the_limit_is_refused_in_one_shape(
    small_bodies: str, chunked: bool, size: int, too_large: bool
) -> None:
    refused = 'img2img_rejected_total{reason="body_too_large"}'
    data, before = bytes(size), sample(small_bodies, refused)
    response = httpx2.post(
        f"{small_bodies}/img2img", content=pieces(data) if chunked else data, headers={"Content-Type": "image/png"}
    )
    if too_large:
        assert "2,048 bytes" in problem(response, 413, "body_too_large")
    else:
        problem(response, 415, "unsupported_image_format", "image")
    assert sample(small_bodies, refused) - before == too_large


def test_client_that_expects_100_continue_gets_413_before_it_sends(small_bodies: str) -> None:
    with connect(small_bodies) as connection:
        connection.sendall(
            b"POST /img2img HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
            b"Content-Length: 9999999\r\nExpect: 100-continue\r\n\r\n"
        )
        assert b" 413 " in connection.recv(100)


@pytest.mark.parametrize("head", [b"", b"half of it"])
def test_body_that_does_not_arrive_in_time_is_408(start_server: StartServer, head: bytes) -> None:
    with start_server(body_timeout_seconds=0.3) as url, connect(url) as connection:
        connection.sendall(
            b"POST /img2img HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 100\r\n\r\n" + head
        )
        answer = connection.makefile("rb").read()
        assert b" 408 " in answer.partition(b"\r\n")[0]
        assert b"connection: close" in answer.lower()
        assert json.loads(answer.rpartition(b"\r\n\r\n")[2])["code"] == "body_timeout"
        # Those that took longest are not to be missing where one looks for how long bodies take.
        assert sample(url, 'img2img_stage_duration_seconds_sum{stage="receive"}') >= 0.3


def test_slow_body_does_not_extend_its_timeout(start_server: StartServer) -> None:
    with start_server(body_timeout_seconds=0.5) as url, connect(url) as connection:
        connection.sendall(
            b"POST /img2img HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 100\r\n\r\n"
        )

        def drip() -> None:
            for _ in range(100):
                try:
                    connection.sendall(b"x")
                except OSError:
                    return
                time.sleep(0.1)

        thread = threading.Thread(target=drip)
        thread.start()
        assert b" 408 " in connection.recv(100)
        thread.join()


def test_body_timeout_does_not_limit_the_edit(start_server: StartServer, png: bytes) -> None:
    with start_server(body_timeout_seconds=0.5) as url:
        assert post(url, png, prompt="tick=0.4").status_code == 200


def test_full_queue_is_refused_with_retry_after(start_server: StartServer, png: bytes) -> None:
    with start_server(queue_size=1) as url:
        running = threading.Thread(target=post, args=(url, png), kwargs={"prompt": "tick=0.5"})
        running.start()
        eventually(lambda: sample(url, "img2img_jobs_on_board") == 1)
        response = post(url, png)
        problem(response, 503, "queue_full")
        assert int(response.headers["retry-after"]) >= 1
        assert response.headers["x-should-retry"] == "true"
        assert response.json()["retry_after"] == int(response.headers["retry-after"])
        running.join()
        assert post(url, png).status_code == 200


def test_predicted_wait_over_the_deadline_is_refused_at_once(start_server: StartServer, png: bytes) -> None:
    with start_server(deadline_seconds=1.0, max_batch=1) as url:
        for _ in range(30):
            assert post(url, png, prompt="tick=0.08", num_inference_steps="1", strength="1").status_code == 200
        threads = [
            threading.Thread(target=post, args=(url, png), kwargs={"prompt": "tick=0.02", "num_inference_steps": "30"})
            for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        eventually(lambda: sample(url, 'img2img_rejected_total{reason="deadline_exceeded"}') >= 1)
        for thread in threads:
            thread.join()


def test_disconnect_cancels_the_job(start_server: StartServer, png: bytes) -> None:
    with start_server(max_batch=1) as url:
        with connect(url) as connection:
            head = "POST /img2img?prompt=tick%3D0.1&num_inference_steps=50&strength=1 HTTP/1.1\r\nHost: x\r\n"
            head += f"Content-Type: image/png\r\nContent-Length: {len(png)}\r\n\r\n"
            connection.sendall(head.encode() + png)
            eventually(lambda: sample(url, "img2img_jobs_on_board") == 1)
        eventually(lambda: sample(url, "img2img_jobs_on_board") == 0)
        assert sample(url, "img2img_images_total") == 0
        assert post(url, png).status_code == 200


def test_disconnect_while_sending_is_no_error(start_server: StartServer, png: bytes) -> None:
    with start_server() as url:
        with connect(url) as connection:
            connection.sendall(
                b"POST /img2img HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 99\r\n\r\nx"
            )
            time.sleep(0.1)
        eventually(lambda: sample(url, 'img2img_requests_total{code="499",route="/img2img"}') == 1)
        assert post(url, png).status_code == 200


def test_request_survives_the_death_of_a_worker(start_server: StartServer, png: bytes, tmp_path: object) -> None:
    with start_server() as url:
        response = post(url, png, prompt=f"exit_at=1 once={tmp_path}/died", seed="1")
        assert response.status_code == 200
        assert response.content != b""
        assert sample(url, 'img2img_worker_deaths_total{cause="exit"}') == 1


def test_readiness_needs_a_warm_worker_and_liveness_none(start_server: StartServer) -> None:
    with start_server(wait=False, model="slow") as url:
        assert httpx2.get(f"{url}/health/live").json() == {"status": "live"}
        not_yet = httpx2.get(f"{url}/health/ready")
        assert (not_yet.status_code, not_yet.json(), not_yet.headers["retry-after"]) == (
            503,
            {"status": "starting"},
            "1",
        )
        for alias in ("/health", "/ping"):
            assert httpx2.get(f"{url}{alias}").status_code == 503
        eventually(lambda: httpx2.get(f"{url}/health/ready").status_code == 200)
        ready = httpx2.get(f"{url}/health/ready").json()
        assert ready["status"] == "ready"
        assert ready["model"]["model"] == "fake"
        for alias in ("/health", "/ping"):
            assert httpx2.get(f"{url}{alias}").json() == ready


def test_metrics_count_images_requests_and_stages(start_server: StartServer, png: bytes) -> None:
    with start_server() as url:
        post(url, png)
        post(url, png, strength="0.1")
        httpx2.get(f"{url}/no/such/{'path'}")
        assert sample(url, "img2img_images_total") == 1
        assert sample(url, 'img2img_requests_total{code="200",route="/img2img"}') == 1
        assert sample(url, 'img2img_requests_total{code="422",route="/img2img"}') == 1
        assert sample(url, 'img2img_requests_total{code="404",route="unmatched"}') == 1
        assert sample(url, 'img2img_stage_duration_seconds_count{stage="denoise"}') == 1
        assert sample(url, 'img2img_rejected_total{reason="invalid_parameter"}') == 1
        assert sample(url, "img2img_ready") == 1
        assert sample(url, 'img2img_worker_peak_memory_bytes{device="cpu"}') > 0
        # Both bodies arrived, though only one of them made a picture.
        assert sample(url, 'img2img_stage_duration_seconds_count{stage="receive"}') == 2
        assert sample(url, "img2img_inflight_requests") == 0
        sizes = {
            sample(url, f'img2img_gpu_memory_bytes{{device="cpu",kind="{kind}"}}') for kind in ("reserved", "free")
        }
        assert sizes == {5, 7}


def test_all_series_exist_before_the_first_image(start_server: StartServer, png: bytes) -> None:
    def series(url: str) -> set[str]:
        lines = httpx2.get(f"{url}/metrics").text.splitlines()
        return {line.rpartition(" ")[0] for line in lines if not line.startswith(("#", "img2img_request"))}

    with start_server() as url:
        before = series(url)
        for output_format in ("png", "webp", "jpeg"):
            post(url, png, output_format=output_format)
        new = series(url) - before
    # What only the first picture can tell.
    assert {line.partition("{")[0] for line in new} == {"img2img_worker_peak_memory_bytes", "img2img_gpu_memory_bytes"}
    assert not [line for line in before if "_created" in line]


def test_incomplete_body_is_not_counted_as_received(start_server: StartServer) -> None:
    with start_server() as url:
        with connect(url) as caller:
            head = "POST /img2img HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 1000\r\n\r\n"
            caller.sendall(head.encode() + b"some of it")
            eventually(lambda: sample(url, "img2img_inflight_requests") == 1)
        eventually(lambda: sample(url, 'img2img_requests_total{code="499",route="/img2img"}') == 1)
        assert sample(url, 'img2img_stage_duration_seconds_count{stage="receive"}') == 0
        assert sample(url, "img2img_inflight_requests") == 0


def test_request_id_is_kept_if_valid_and_replaced_if_not(server: str) -> None:
    def echoed(sent: str) -> str:
        headers = {b"X-Request-Id": sent.encode()}
        return str(httpx2.get(f"{server}/health/live", headers=headers).headers["x-request-id"])

    assert echoed("abc-DEF_123") == "abc-DEF_123"
    for harmful in ("a b", "a\tb", "x" * 129, "a;b", "é"):
        assert re.fullmatch(r"[0-9a-f]{32}", echoed(harmful))


def test_unknown_path_and_method_are_problems(server: str) -> None:
    problem(httpx2.get(f"{server}/nope"), 404, "not_found")
    response = httpx2.get(f"{server}/img2img")
    assert problem(response, 405, "method_not_allowed") == (
        "GET /img2img: Method Not Allowed. Send POST. An image and a prompt go to POST /img2img."
    )
    assert response.headers["allow"] == "POST"
    sentence = problem(httpx2.post(f"{server}/openapi.json"), 405, "method_not_allowed")
    assert sentence.endswith("Send GET or HEAD. An image and a prompt go to POST /img2img.")


def test_wrong_method_in_another_dialect_names_the_right_one_and_its_edit_path(server: str) -> None:
    response = httpx2.get(f"{server}/v1/images/edits")
    assert response.status_code == 405
    assert response.json()["error"]["message"] == (
        "GET /v1/images/edits: Method Not Allowed. Send POST. An image and a prompt go to POST /v1/images/edits."
    )


def test_description_has_every_field_and_error(server: str) -> None:
    route = httpx2.get(f"{server}/openapi.json").json()["paths"]["/img2img"]["post"]
    bodies = route["requestBody"]["content"]
    form = bodies["multipart/form-data"]["schema"]
    assert form["required"] == ["image", "prompt"]
    assert form["properties"]["strength"]["default"] == 0.9
    assert form["properties"]["num_inference_steps"]["maximum"] == 50
    assert form["properties"]["fit"]["enum"] == ["stretch", "crop", "pad"]
    assert set(bodies) == {"multipart/form-data", "image/*", "application/json"}
    assert {"200", "400", "406", "408", "413", "415", "422", "500", "503"} <= set(route["responses"])
    assert "X-Seed" in route["responses"]["200"]["headers"]
    assert httpx2.get(f"{server}/docs").status_code == 200


@pytest.mark.parametrize("sent", ["0", "-1", "soon", "nan", "inf", "", "1_0", "1e999", "0e1", "1" * 65])
def test_invalid_timeout_header_is_refused(server: str, png: bytes, sent: str) -> None:
    response = httpx2.post(
        f"{server}/img2img", files={"image": png}, data={"prompt": ""}, headers={"X-Request-Timeout": sent}
    )
    assert "seconds above 0" in problem(response, 422, "invalid_parameter", "X-Request-Timeout")


@pytest.mark.parametrize("seconds", [0.1 + 0.2 + 9, 1e1, 1e16, 1e300, 5])
def test_timeout_header_takes_any_decimal_number(server: str, png: bytes, seconds: float) -> None:
    headers = {"X-Request-Timeout": str(seconds)}
    answer = httpx2.post(f"{server}/img2img", files={"image": png}, data={"prompt": ""}, headers=headers)
    assert answer.status_code == 200


def test_timeout_too_short_without_a_queue_asks_for_more_time(start_server: StartServer, png: bytes) -> None:
    with start_server() as url:
        assert post(url, png, prompt="tick=0.2").status_code == 200
        response = httpx2.post(
            f"{url}/img2img", files={"image": png}, data={"prompt": ""}, headers={"X-Request-Timeout": "0.001"}
        )
    assert "Allow more time" in problem(response, 503, "deadline_exceeded")


@pytest.mark.parametrize("path", ["/health/live", "/health/ready", "/ping", "/metrics", "/docs", "/openapi.json"])
def test_head_is_answered_as_get_without_a_body(server: str, path: str) -> None:
    head, get = httpx2.head(f"{server}{path}"), httpx2.get(f"{server}{path}")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == get.headers["content-type"]


def test_compressed_body_is_refused(server: str, png: bytes) -> None:
    headers = {"Content-Type": "image/png", "Content-Encoding": "gzip"}
    answer = httpx2.post(f"{server}/img2img", content=gzip.compress(png), headers=headers)
    assert "Content-Encoding" in problem(answer, 415, "unsupported_media_type")
    assert httpx2.post(f"{server}/img2img", content=png, headers={"Content-Encoding": "identity"}).status_code == 200


def test_timeout_header_ends_the_request_in_time(start_server: StartServer, png: bytes) -> None:
    with start_server() as url:
        response = httpx2.post(
            f"{url}/img2img",
            files={"image": png},
            data={"prompt": "tick=0.3", "num_inference_steps": "50", "strength": "1"},
            headers={"X-Request-Timeout": "0.5"},
        )
        problem(response, 503, "deadline_exceeded")
        eventually(lambda: sample(url, "img2img_jobs_on_board") == 0)
        assert sample(url, "img2img_tick_duration_seconds_count") < 50
        assert sample(url, "img2img_images_total") == 0
