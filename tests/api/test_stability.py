"""Stability AI's REST API, by requests as its documentation shows them: there is no client package that is kept up."""

import base64
from typing import Any

import pytest
import requests

from app.errors import InvalidParameter
from app.routes.stability import parse_sd3
from tests.support.http import post
from tests.support.images import opened

PATH = "/v2beta/stable-image/generate/sd3"
FIELDS = {"prompt": "a wizard", "mode": "image-to-image", "strength": "0.75", "seed": "7"}


def ask(url: str, png: bytes, accept: str = "image/*", **fields: str) -> requests.Response:
    headers = {"authorization": "Bearer sk-none", "accept": accept}
    return requests.post(f"{url}{PATH}", headers=headers, files={"image": png}, data={**FIELDS, **fields}, timeout=30)


def test_sd3_answer_is_the_image_with_its_seed(server: str, png: bytes) -> None:
    answer = ask(server, png, output_format="jpeg")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/jpeg")
    assert (answer.headers["seed"], answer.headers["finish-reason"]) == ("7", "SUCCESS")
    assert answer.headers["x-request-id"]
    fields = {"prompt": "a wizard", "strength": "0.75", "seed": "7", "output_format": "jpeg"}
    assert answer.content == post(server, png, **fields).content


def test_sd3_json_holds_the_same_image(server: str, png: bytes) -> None:
    answer = ask(server, png, "application/json")
    assert answer.headers["content-type"] == "application/json; type=image/png"
    body = answer.json()
    assert base64.b64decode(body["image"]) == ask(server, png).content
    assert (body["finish_reason"], body["seed"]) == ("SUCCESS", 7)


@pytest.mark.parametrize(
    "accept", ["application/json;q=0, image/*", "application/json;q=0.5, image/*", "image/*, text/application/json"]
)
def test_sd3_json_is_sent_only_if_preferred(server: str, png: bytes, accept: str) -> None:
    assert ask(server, png, accept).headers["content-type"] == "image/png"


def test_sd3_json_has_the_headers_of_an_image(server: str, png: bytes) -> None:
    names = ("x-seed", "x-steps-run", "x-start-timestep", "x-prompt-tokens-cut")
    alone, in_json = (ask(server, png, accept, prompt="word " * 100) for accept in ("image/*", "application/json"))
    assert [alone.headers[name] for name in names] == [in_json.headers[name] for name in names]
    assert "png;dur=" in in_json.headers["server-timing"]


def test_sd3_seed_0_is_random(server: str, png: bytes) -> None:
    seeds = {ask(server, png, seed="0").headers["seed"] for _ in range(3)}
    assert len(seeds) == 3


def test_sd3_cfg_scale_is_guidance_scale(server: str, png: bytes) -> None:
    answer = ask(server, png, cfg_scale="2.5", negative_prompt="red")
    assert "CFG scale: 2.5" in opened(answer.content).info["parameters"]


@pytest.mark.parametrize(
    ("fields", "status", "named"),
    [
        ({"mode": "text-to-image"}, 422, "mode"),
        ({"style_preset": "anime"}, 422, "style_preset"),
        ({"aspect_ratio": "16:9"}, 422, "aspect_ratio"),
        ({"strength": "0.1"}, 422, "strength"),
        ({"strenght": "1"}, 422, "did you mean 'strength'"),
        ({"cfg_scal": "1"}, 422, "did you mean 'cfg_scale'"),
        ({"colour": "red"}, 422, ", mode, model, cfg_scale"),
        ({"model": "sd3.5-large"}, 404, "sd3.5-large"),
        ({"output_format": "gif"}, 422, "output_format"),
        ({"cfg_scale": "21"}, 422, "cfg_scale: "),
        ({"cfg_scale": "a lot"}, 422, "cfg_scale: "),
        ({"cfg_scale": "2", "strength": "2"}, 422, "strength: "),
        ({"cfg_scale": "2", "guidance_scale": "2"}, 422, "cfg_scale was sent twice"),
        ({"guidance_scale": "21"}, 422, "guidance_scale: "),
    ],
)
def test_unsupported_field_is_refused_in_the_dialect_s_shape(
    server: str, png: bytes, fields: dict[str, str], status: int, named: str
) -> None:
    answer = ask(server, png, **fields)
    body = answer.json()
    assert (answer.status_code, set(body)) == (status, {"id", "name", "errors"})
    assert named in body["errors"][0]
    assert body["id"] == answer.headers["x-request-id"]


def test_sd3_missing_part_is_named(server: str, png: bytes) -> None:
    for data, files, named in (
        ({**FIELDS}, {"picture": png}, "image"),
        ({"mode": "image-to-image"}, {"image": png}, "prompt"),
    ):
        answer = requests.post(f"{server}{PATH}", files=files, data=data, timeout=30)
        assert answer.status_code == 422
        assert named in answer.json()["errors"][0]
    # Without curl's @, it is a text.
    answer = requests.post(f"{server}{PATH}", files={"image": (None, "a.png")}, data=FIELDS, timeout=30)
    assert "as a file part named 'image'" in answer.json()["errors"][0]
    assert requests.post(f"{server}{PATH}", json=FIELDS, timeout=30).status_code == 415


def test_sd3_unauthorized_has_the_dialects_shape(start_server: Any, png: bytes) -> None:
    with start_server(api_keys="right") as url:
        answer = ask(url, png)
    assert (answer.status_code, answer.json()["name"]) == (401, "unauthorized")


def test_sd3_without_mode_is_refused() -> None:
    with pytest.raises(InvalidParameter):
        parse_sd3({"prompt": "x"})
