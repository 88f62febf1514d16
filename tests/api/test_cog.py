"""The API of Cog's containers, as its documentation shows it."""

import asyncio
import base64
import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest

from tests.support.http import connect, eventually, post, sample
from tests.support.servers import StartServer


def picture(png: bytes, **fields: Any) -> dict[str, Any]:
    url = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    return {"image": url, "prompt": "a wizard", "seed": 7, **fields}


def predict(url: str, png: bytes, name: str | None = None, **fields: Any) -> httpx2.Response:
    body = {"input": picture(png, **fields)}
    if name:
        return httpx2.put(f"{url}/predictions/{name}", json=body, timeout=30)
    return httpx2.post(f"{url}/predictions", json=body, timeout=30)


def test_prediction_is_the_image_of_the_native_route(server: str, png: bytes) -> None:
    answer = predict(server, png, strength=0.5)
    body = answer.json()
    assert (answer.status_code, body["status"], body["error"]) == (200, "succeeded", None)
    head, _, data = body["output"].partition(",")
    assert head == "data:image/png;base64"
    assert base64.b64decode(data) == post(server, png, prompt="a wizard", seed="7", strength="0.5").content
    assert body["metrics"]["predict_time"] > 0
    assert body["created_at"] <= body["completed_at"]
    assert "seed: 7" in body["logs"]


def test_prediction_of_bare_base64_succeeds(server: str, png: bytes) -> None:
    assert predict(server, png, image=base64.b64encode(png).decode()).json()["status"] == "succeeded"


def test_two_requests_with_one_id_at_once_share_one_image(start_server: StartServer, png: bytes) -> None:
    with start_server() as url, ThreadPoolExecutor() as pool:
        first = pool.submit(predict, url, png, "same", prompt="tick=0.2")
        eventually(lambda: sample(url, "img2img_jobs_on_board") == 1)
        second = pool.submit(predict, url, png, "same", prompt="tick=0.2")
        assert first.result().json() == second.result().json()
        assert sample(url, "img2img_images_total") == 1
        assert predict(url, png, "same").json()["id"] == "same"
        assert sample(url, "img2img_images_total") == 2, "it was over: that is another one"


def test_simultaneous_requests_with_one_id_share_one_image(start_server: StartServer, png: bytes) -> None:
    async def put(url: str, count: int) -> list[Any]:
        async with httpx2.AsyncClient(timeout=30) as client:
            # Each random seed would make another picture.
            body = {"input": picture(png, prompt="tick=0.1", seed=None)}
            puts = [client.put(f"{url}/predictions/same", json=body) for _ in range(count)]
            return [answer.json() for answer in await asyncio.gather(*puts)]

    with start_server() as url:
        for already in range(5):
            answers = asyncio.run(put(url, 8))
            assert all(answer == answers[0] for answer in answers)
            assert sample(url, "img2img_images_total") == already + 1


def test_client_that_disconnects_at_once_leaves_no_prediction(start_server: StartServer, png: bytes) -> None:
    body = json.dumps({"input": picture(png, prompt="tick=5")}).encode()
    head = f"PUT /predictions/same HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with start_server() as url:
        for _ in range(20):
            with connect(url) as connection:
                connection.sendall(head + body)
        eventually(lambda: sample(url, 'img2img_requests_total{code="499",route="/predictions/{name}"}') == 20)
        eventually(lambda: sample(url, "img2img_jobs_on_board") + sample(url, "img2img_queue_depth") == 0)
        assert httpx2.post(f"{url}/predictions/same/cancel").status_code == 404


def test_joined_request_has_its_own_timeout(start_server: StartServer, png: bytes) -> None:
    def join(seconds: str) -> httpx2.Response:
        body = {"input": picture(png, prompt="tick=0.5")}
        return httpx2.put(f"{url}/predictions/same", json=body, headers={"X-Request-Timeout": seconds}, timeout=30)

    with start_server() as url, ThreadPoolExecutor() as pool:
        first = pool.submit(predict, url, png, "same", prompt="tick=0.5")
        eventually(lambda: sample(url, "img2img_jobs_on_board") == 1)
        assert join("abc").status_code == 422
        late = join("0.1")
        assert (late.status_code, late.json()["detail"]) == (
            503,
            "The prediction was not done within 0.1 s. Allow more time.",
        )
        assert join("20").json()["status"] == "succeeded"
        assert first.result().json()["status"] == "succeeded"
        assert sample(url, "img2img_images_total") == 1


def test_shared_prediction_ends_with_its_last_request(start_server: StartServer, png: bytes) -> None:
    with start_server() as url, ThreadPoolExecutor() as pool:
        body = {"input": picture(png, prompt="tick=0.4"), "id": "same"}
        stays = pool.submit(predict, url, png, "same", prompt="tick=0.4")
        eventually(lambda: sample(url, "img2img_jobs_on_board") == 1)
        with pytest.raises(httpx2.ReadTimeout):
            httpx2.post(f"{url}/predictions", json=body, timeout=0.3)
        assert stays.result().json()["status"] == "succeeded"
        with pytest.raises(httpx2.ReadTimeout):
            httpx2.post(f"{url}/predictions", json=body, timeout=0.3)
        eventually(lambda: sample(url, "img2img_jobs_on_board") == 0)
        assert sample(url, "img2img_images_total") == 1


def test_prediction_is_cancelled_by_its_client_only(start_server: StartServer, png: bytes) -> None:
    with start_server(api_keys="mine,other") as url, ThreadPoolExecutor() as pool:
        mine, other = ({"Authorization": f"Bearer {key}"} for key in ("mine", "other"))
        body = {"input": picture(png, prompt="tick=1"), "id": "long"}
        request = pool.submit(httpx2.post, f"{url}/predictions", json=body, headers=mine, timeout=30)
        time.sleep(0.4)
        refused = httpx2.post(f"{url}/predictions/long/cancel", headers=other)
        assert (refused.status_code, "No prediction" in refused.json()["detail"]) == (404, True)
        assert httpx2.post(f"{url}/predictions/long/cancel", headers=mine).status_code == 200
        answer = request.result()
        assert (answer.status_code, answer.json()["status"]) == (200, "canceled")
        assert httpx2.post(f"{url}/predictions/long/cancel", headers=mine).status_code == 404


def test_engine_error_is_a_failed_prediction(server: str, png: bytes) -> None:
    answer = predict(server, png, prompt="fail_at=0")
    assert (answer.status_code, answer.json()["status"]) == (200, "failed")
    assert "could not be made" in answer.json()["error"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input"),
        ({"input": {"prompt": "x"}}, "input.image"),
        ({"input": {"image": "https://example.org/a.png"}}, "input.image"),
        ({"input": {"image": "!"}}, "input.image"),
        ({"input": {"image": "AAAA", "strength": 0.1}}, "input.strength"),
        ({"input": {"image": "AAAA", "scheduler": "x"}}, "input.scheduler"),
        ({"input": {"image": "AAAA"}, "webhook": "https://example.org"}, "webhook"),
        ({"input": {"image": "AAAA"}, "output_file_prefix": "https://example.org"}, "output_file_prefix"),
        ({"input": {"image": "AAAA"}, "id": 5}, "id"),
        ({"input": {"image": "AAAA"}, "id": 0}, "id"),
        ({"input": {"image": "AAAA"}, "id": ""}, "id"),
        ({"input": {"image": "AAAA"}, "seed": 1}, "seed"),
        ({"input": {"image": "AAAA"}, "inputs": {}}, "inputs"),
        ({"input": {"image": "AAAA"}, "id": "two words"}, "id"),
        ({"input": {"image": "AAAA"}, "id": "\ud800"}, "id"),
    ],
)
def test_unusable_input_is_refused_in_the_dialect_s_shape(server: str, body: dict[str, Any], param: str) -> None:
    answer = httpx2.post(f"{server}/predictions", content=json.dumps(body))
    (wrong,) = answer.json()["detail"]
    assert (answer.status_code, wrong["loc"]) == (422, ["body", *param.split(".")])
    assert wrong["msg"]


@pytest.mark.parametrize(
    "url", ["HTTP://example.org/a.png", "file:///etc/passwd", "ftp://example.org/a.png", "gs://b/o"]
)
def test_image_url_other_than_data_is_refused(server: str, url: str) -> None:
    answer = httpx2.post(f"{server}/predictions", json={"input": {"image": url}})
    assert answer.json()["detail"][0]["msg"] == "Send the image as a data: URL: no other address is read here."


def test_id_in_body_other_than_in_path_is_refused(server: str, png: bytes) -> None:
    def put(sent: Any) -> httpx2.Response:
        return httpx2.put(f"{server}/predictions/mine", json={"input": picture(png), "id": sent})

    assert "another one than that in the path" in put("other").json()["detail"][0]["msg"]
    for sent in ("mine", None):
        assert (put(sent).status_code, put(sent).json()["id"]) == (200, "mine")


def test_prediction_has_the_headers_of_an_image(server: str, png: bytes) -> None:
    headers = predict(server, png, prompt="word " * 100).headers
    assert (headers["x-seed"], headers["x-steps-run"], headers["x-prompt-tokens-cut"]) == ("7", "3", "25")
    assert "png;dur=" in headers["server-timing"]


def test_full_queue_is_answered_with_409(start_server: StartServer, png: bytes) -> None:
    with start_server(queue_size=1) as url, ThreadPoolExecutor() as pool:
        first = pool.submit(predict, url, png, prompt="tick=0.3")
        eventually(lambda: sample(url, "img2img_jobs_on_board") == 1)
        answer = predict(url, png)
        assert (answer.status_code, type(answer.json()["detail"])) == (409, str)
        assert first.result().status_code == 200


def test_prediction_as_events_is_not_acceptable(server: str, png: bytes) -> None:
    answer = httpx2.post(f"{server}/predictions", json={"input": picture(png)}, headers={"Accept": "text/event-stream"})
    assert (answer.status_code, "/img2img" in answer.json()["detail"]) == (406, True)
    refused = {"Accept": "text/event-stream;q=0, application/json"}
    assert httpx2.post(f"{server}/predictions", json={"input": picture(png)}, headers=refused).status_code == 200


def test_health_check_is_200_with_the_state_in_its_status(start_server: StartServer) -> None:
    with start_server(api_keys="key") as url:
        answer = httpx2.get(f"{url}/health-check")
        assert (answer.status_code, answer.json()["status"]) == (200, "READY")
        assert answer.json()["setup"]["status"] == "succeeded"
    with start_server("tests.support.fakes:hang", wait=False) as url:
        answer = httpx2.get(f"{url}/health-check")
        assert (answer.status_code, answer.json()["status"]) == (200, "STARTING")
