"""OpenAI's package for JavaScript against a real server: what it sends is taken, and what it reads is there."""

import base64
import json
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.support.http import eventually, post, sample
from tests.support.images import noise, opened, saved
from tests.support.servers import StartServer

ROOT = Path(__file__).parents[1] / "support/node"
PROMPT = "a wizard"


@dataclass(frozen=True)
class Node:
    """Runs the cases of `tests/support/node/client.mjs`, each with a picture that lies in a file."""

    folder: Path
    picture: Path

    @contextmanager
    def started(self, case: str, url: str, key: str = "none") -> Iterator[subprocess.Popen[str]]:
        """A case's process; it stays until what came of it is asked for."""
        command = ["node", "client.mjs", case, url, str(self.picture), key]
        pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        # Nothing of what the developer's shell says of proxies and of OpenAI.
        environment = {"PATH": os.environ["PATH"]}
        with subprocess.Popen(command, cwd=self.folder, env=environment, text=True, **pipes) as process:
            try:
                yield process
            finally:
                process.kill()

    def run(self, case: str, url: str, key: str = "none") -> Any:
        with self.started(case, url, key) as process:
            return outcome(process)


def outcome(process: subprocess.Popen[str]) -> Any:
    printed, complaints = process.communicate(timeout=60)
    assert process.returncode == 0, complaints
    return json.loads(printed)


@pytest.fixture(scope="module")
def node(node_folder: Path, png: bytes) -> Node:
    (node_folder / "in.png").write_bytes(png)
    return Node(node_folder, node_folder / "in.png")


@pytest.fixture(scope="module")
def node_with_a_large_picture(node_folder: Path) -> Node:
    """Of several megabytes: more than a socket buffers."""
    (node_folder / "large.png").write_bytes(saved(noise((1400, 1400)), "PNG"))
    return Node(node_folder, node_folder / "large.png")


def data_of(datum: dict[str, Any]) -> bytes:
    return base64.b64decode(datum["b64_json"])


def test_edit_gives_the_image_of_the_native_route_in_each_way(node: Node, server: str, png: bytes) -> None:
    fields = {"prompt": PROMPT, "strength": "0.5", "seed": "7", "num_inference_steps": "6", "fit": "crop"}
    native = post(server, png, **fields).content
    answers = node.run("ways", server)
    assert set(answers) == {"stream", "file", "named", "list"}
    for answer in answers.values():
        (datum,) = answer["data"]
        assert data_of(datum) == native
        assert (opened(data_of(datum)).size, datum["seed"]) == ((512, 512), 7)
        assert (answer["size"], answer["output_format"], answer["background"]) == ("512x512", "png", "opaque")
        assert re.fullmatch("[0-9a-f]{32}", answer["requestID"])


@pytest.fixture(scope="module")
def kinds(node: Node, server: str) -> Any:
    return node.run("kinds", server)


class TestKinds:
    def test_several_images_have_consecutive_seeds(self, kinds: Any, server: str, png: bytes) -> None:
        assert [datum["seed"] for datum in kinds["several"]["data"]] == [40, 41, 42]
        singles = [post(server, png, prompt=PROMPT, seed=str(seed)).content for seed in (40, 41, 42)]
        assert [data_of(datum) for datum in kinds["several"]["data"]] == singles

    def test_result_has_the_requested_format(self, kinds: Any) -> None:
        (datum,) = kinds["webp"]["data"]
        assert (opened(data_of(datum)).format, kinds["webp"]["output_format"]) == ("WEBP", "webp")

    def test_url_is_a_data_url(self, kinds: Any) -> None:
        head, _, data = kinds["url"]["data"][0]["url"].partition(",")
        assert head == "data:image/jpeg;base64"
        assert opened(base64.b64decode(data)).size == (512, 512)

    def test_variation_needs_no_prompt(self, kinds: Any) -> None:
        assert [opened(data_of(datum)).size for datum in kinds["variation"]["data"]] == [(512, 512)] * 2


def test_model_is_listed_and_found_by_name_and_alias(node: Node, start_server: StartServer) -> None:
    with start_server(model_aliases="some/turbo") as url:
        seen = node.run("models", url)
    assert seen["listed"] == ["fake"]
    assert (seen["retrieved"]["id"], seen["retrieved"]["object"]) == ("some/turbo", "model")
    assert opened(data_of(seen["edited"]["data"][0])).size == (512, 512)
    for error in (seen["unknown"], seen["refused"]):
        check(error, "NotFoundError", 404, "model_not_found", "model")


def check(error: dict[str, Any], kind: str, status: int | None, code: str, param: str | None = None) -> None:
    """An error's class and all of its fields."""
    assert (error["kind"], error.get("status"), error["code"], error["param"]) == (kind, status, code, param)
    assert error["type"].endswith("_error")
    assert re.fullmatch("[0-9a-f]{32}", error["requestID"])


class TestErrors:
    def test_unsupported_field_is_refused_by_its_name(self, node: Node, server: str) -> None:
        refused = node.run("refusals", server)
        assert len(refused) == 9
        for param, error in refused.items():
            check(error, "BadRequestError", 400, "invalid_parameter", param)
            assert error["type"] == "invalid_request_error"
        assert "whole image is redrawn" in refused["mask"]["message"]
        assert "would run no" in refused["strength"]["message"]
        assert "Send one image" in refused["image"]["message"]

    def test_refusals_raise_their_own_classes(self, node: Node, server: str) -> None:
        seen = node.run("others", server)
        check(seen["picture"], "BadRequestError", 400, "unsupported_image_format", "image")
        check(seen["route"], "NotFoundError", 404, "not_found")
        # Not a stream with an error in it.
        check(seen["stream"], "BadRequestError", 400, "invalid_parameter", "strength")
        # The package would try any other 500 again.
        check(seen["once"]["outcome"], "InternalServerError", 500, "inference_failed")
        assert [one["status"] for one in seen["once"]["tries"]] == [500]

    def test_wrong_key_is_reported_while_the_body_is_sent(
        self, node_with_a_large_picture: Node, start_server: StartServer
    ) -> None:
        with start_server(api_keys="right") as url:
            seen = node_with_a_large_picture.run("keys", url, "wrong")
        for error in (seen["file"], seen["stream"]):
            check(error, "AuthenticationError", 401, "invalid_api_key")
        assert opened(data_of(seen["right"]["data"][0])).size == (512, 512)

    def test_too_large_body_is_reported_without_a_content_length(
        self, node_with_a_large_picture: Node, start_server: StartServer
    ) -> None:
        with start_server(max_body_bytes=1_000_000) as url:
            seen = node_with_a_large_picture.run("early", url)
        for error in (seen["file"], seen["stream"]):
            check(error, "APIError", 413, "body_too_large")


@pytest.fixture(scope="module")
def streamed(node: Node, server: str) -> Any:
    return node.run("stream", server)


class TestStream:
    def test_previews_come_at_even_steps_and_then_the_image(self, streamed: Any, server: str, png: bytes) -> None:
        *partial, last = streamed["events"]
        assert [event["type"] for event in partial] == ["image_edit.partial_image"] * 2
        assert [event["partial_image_index"] for event in partial] == [0, 1]
        # The fake's previews are of the colour of their step.
        assert [opened(data_of(event)).getpixel((9, 9)) for event in partial] == [(step, step, step) for step in (3, 5)]
        assert last["type"] == "image_edit.completed"
        assert (
            data_of(last) == post(server, png, prompt=PROMPT, num_inference_steps="8", strength="1", seed="3").content
        )
        assert last["usage"]["total_tokens"] == 0

    def test_failure_during_the_stream_is_an_error_event(self, streamed: Any) -> None:
        begun = [event["type"] for event in streamed["begun"]]
        assert begun == ["image_edit.partial_image"] * 2, "not those of the second try once more"
        check(streamed["error"], "APIError", None, "inference_failed")

    def test_leaving_the_loop_ends_the_work(self, node: Node, start_server: StartServer) -> None:
        with start_server() as url, node.started("leaving", url) as process:
            eventually(lambda: sample(url, "img2img_jobs_on_board") == 1)
            eventually(lambda: sample(url, "img2img_jobs_on_board") == 0)
            assert process.poll() is None, "the end of the process would end the work as well"
            assert sample(url, "img2img_images_total") == 0
            assert outcome(process) == "image_edit.partial_image"


@contextmanager
def held(url: str, png: bytes, key: str) -> Iterator[None]:
    """A place in the queue, taken for as long as it is wanted."""
    fields = {"prompt": "tick=0.2", "num_inference_steps": "50", "strength": "1"}
    headers = {"Accept": "text/event-stream", "X-API-Key": key}
    with httpx2.stream("POST", f"{url}/img2img", headers=headers, data=fields, files={"image": png}) as answer:
        # The name keeps the iterator, whose end would be that of the answer.
        lines = answer.iter_lines()
        next(lines)
        yield


@pytest.mark.parametrize(
    ("callers", "kind", "status", "code"),
    [
        (["mine"], "InternalServerError", 503, "queue_full"),
        (["another", "mine"], "RateLimitError", 429, "too_many_requests"),
    ],
    ids=["full", "more than its share"],
)
def test_package_waits_for_retry_after_and_retries(
    node: Node, start_server: StartServer, png: bytes, callers: list[str], kind: str, status: int, code: str
) -> None:
    with start_server(queue_size=1, api_keys="mine,another") as url, ExitStack() as places:
        for caller in callers:
            places.enter_context(held(url, png, caller))
        with node.started("busy", url, "mine") as process:
            metrics = url.replace("://", "://any:mine@")
            eventually(lambda: sample(metrics, f'img2img_rejected_total{{reason="{code}"}}') == 2)
            places.close()
            seen = outcome(process)
    check(seen["stream"]["outcome"], kind, status, code)
    assert [one["status"] for one in seen["stream"]["tries"]] == [status]
    *refused, answered = seen["file"]["tries"]
    assert answered["status"] == 200
    assert {one["status"] for one in refused} == {status}
    for one, following in zip(refused, [*refused[1:], answered], strict=True):
        assert one["wait"] >= 1
        # Timers may be early by a millisecond. Left to itself the package would wait for half a second.
        assert following["sent"] - one["answered"] >= 1000 * one["wait"] - 5
    assert opened(data_of(seen["file"]["outcome"]["data"][0])).size == (512, 512)


def test_listed_origin_may_send_the_package_s_headers(node: Node, start_server: StartServer) -> None:
    with start_server(cors_origins="https://friend.org") as url:
        (seen,) = node.run("page", url)
        question = {
            "Origin": "https://friend.org",
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": ",".join(seen["sent"]),
        }
        preflight = httpx2.options(f"{url}/v1/images/edits", headers=question)
    assert preflight.status_code == 200, preflight.text
    allowed = re.split(r",\s*", preflight.headers["access-control-allow-headers"].lower())
    assert {"authorization", "x-stainless-lang"} <= set(seen["sent"]) <= set(allowed)
    assert seen["got"]["access-control-allow-origin"] == "https://friend.org"
    exposed = seen["got"]["access-control-expose-headers"].lower()
    assert all(name in exposed for name in ("x-request-id", "retry-after", "x-should-retry"))


def test_lock_names_one_version_and_no_registry() -> None:
    wanted = json.loads((ROOT / "package.json").read_text())["dependencies"]
    text = (ROOT / "package-lock.json").read_text()
    packages = json.loads(text)["packages"]
    assert {name: packages[f"node_modules/{name}"]["version"] for name in wanted} == wanted
    assert all(package["integrity"].startswith("sha512-") for name, package in packages.items() if name)
    assert not re.search(r'"resolved"|://|"file:', text)
