"""The docs' tables of each dialect's fields, held against a real server that is sent them."""

import ast
import base64
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from app.request import Img2ImgRequest
from app.routes import stability
from app.routes.cog import routes as cog
from app.routes.openai.fields import _HINTS
from app.routes.webui import fields
from tests.support.images import noise, saved
from tests.support.pages import read, section, tables
from tests.support.paths import ROOT
from tests.support.servers import run_server

PNG = saved(noise((24, 24)), "PNG")
TEXT = base64.b64encode(PNG).decode()
OTHER = base64.b64encode(saved(noise((32, 24)), "PNG")).decode()
FIELDS = {"prompt": "a wizard", "seed": "7"}
PREDICT = "/predict"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with run_server(predict_route=PREDICT) as url:
        yield url


def by_openai(url: str, fields: dict[str, Any]) -> httpx2.Response:
    files = [("image", PNG), *(("mask", PNG) for name in fields if name == "mask")]
    data = {name: value for name, value in {**FIELDS, **fields}.items() if name not in ("image", "mask")}
    if "image" in fields:
        files = [("image[]", fields["image"]), ("image[]", PNG)]
    return httpx2.post(f"{url}/v1/images/edits", files=files, data=data)


def by_webui(url: str, fields: dict[str, Any]) -> httpx2.Response:
    body = {"init_images": [TEXT], "prompt": "a wizard", "seed": 7, "steps": 4, **fields}
    return httpx2.post(f"{url}/sdapi/v1/img2img", json=body)


def by_stability(url: str, fields: dict[str, Any]) -> httpx2.Response:
    data = {"mode": "image-to-image", **FIELDS, **fields}
    return httpx2.post(f"{url}/v2beta/stable-image/generate/sd3", files={"image": PNG}, data=data)


def by_cog(url: str, fields: dict[str, Any]) -> httpx2.Response:
    body = {"input": {"image": TEXT, **FIELDS}, **fields}
    return httpx2.post(f"{url}/predictions", json=body)


def by_hugging_face(url: str, fields: dict[str, Any]) -> httpx2.Response:
    inner = {name.removeprefix("parameters."): value for name, value in fields.items() if "." in name}
    outer = {name: value for name, value in fields.items() if "." not in name}
    return httpx2.post(f"{url}/img2img", json={"inputs": TEXT, "parameters": {**FIELDS, **inner}, **outer})


def by_vertex(url: str, fields: dict[str, Any]) -> httpx2.Response:
    return httpx2.post(f"{url}{PREDICT}", json={"instances": [{"image": TEXT, **FIELDS}], **fields})


@dataclass(frozen=True)
class Dialect:
    """How a table's fields are sent: by `ask`, each with a value that says something."""

    ask: Callable[[str, dict[str, Any]], httpx2.Response]
    values: dict[str, Any]


DIALECTS = {
    "OpenAI": Dialect(
        by_openai,
        {
            "image": PNG,
            "n": "2",
            "stream": "true",
            "partial_images": "2",
            "response_format": "url",
            "output_compression": "50",
            "model": "another",
            "size": "1024x1024",
            "background": "transparent",
            "mask": PNG,
            "url": "https://example.com/a.png",
            "user": "somebody",
            "quality": "high",
            "input_fidelity": "high",
            "moderation": "low",
        },
    ),
    "AUTOMATIC1111": Dialect(
        by_webui,
        {
            "init_images": [OTHER],
            "prompt": "an owl",
            "negative_prompt": "red",
            "denoising_strength": 0.5,
            "steps": 2,
            "cfg_scale": 1,
            "sampler_name": "DDIM",
            "sampler_index": "DDIM",
            "scheduler": "Karras",
            "eta": 0.5,
            "s_churn": 1,
            "s_tmin": 1,
            "s_tmax": 1,
            "s_noise": 1.5,
            "seed": 8,
            "batch_size": 2,
            "n_iter": 2,
            "resize_mode": 1,
            "send_images": False,
            "override_settings": {"sd_model_checkpoint": "another"},
            "width": 1024,
            "height": 768,
            "alwayson_scripts": {"controlnet": {"args": [{"enabled": True}]}},
            "mask": TEXT,
            "script_name": "x/y/z plot",
            "styles": ["watercolour"],
            "tiling": True,
            "restore_faces": True,
            "subseed_strength": 0.5,
            "refiner_checkpoint": "another",
            "seed_resize_from_w": 768,
            "seed_resize_from_h": 768,
            "initial_noise_multiplier": 0.5,
            "infotext": "an owl",
        },
    ),
    "Stability AI": Dialect(
        by_stability,
        {
            "mode": "text-to-image",
            "seed": "8",
            "cfg_scale": "2",
            "model": "another",
            "style_preset": "anime",
            "aspect_ratio": "16:9",
        },
    ),
    "Cog": Dialect(
        by_cog,
        {
            "input": {"image": TEXT, **FIELDS, "strength": 0.5},
            "id": "mine",
            "webhook": "http://127.0.0.1/",
            "webhook_events_filter": ["start"],
            "output_file_prefix": "http://127.0.0.1/",
            "created_at": "2026-01-01T00:00:00Z",
            "started_at": "2026-01-01T00:00:00Z",
            "context": {"trace": "1"},
            "version": "5c7d5dc6",
            "status": "starting",
            "logs": "",
            "urls": {},
        },
    ),
    "Hugging Face": Dialect(
        by_hugging_face,
        {
            "inputs": OTHER,
            "parameters": {**FIELDS, "strength": 0.5},
            "parameters.target_size": {"width": 64, "height": 64},
        },
    ),
    "Vertex AI": Dialect(
        by_vertex,
        {"instances": [{"image": TEXT, "prompt": "an owl", "seed": 7}], "parameters": {"strength": 0.5}},
    ),
}
PAGES = {
    "OpenAI": "openai",
    "AUTOMATIC1111": "webui",
    "Stability AI": "stability",
    "Cog": "cog",
    "Hugging Face": "huggingface",
    "Vertex AI": "vertex",
}
"""The page of `docs/clients` with a dialect's table."""

NEEDS = {"output_compression": {"output_format": "webp"}, "partial_images": {"stream": "true"}}
"""What has to be said for a field to mean something."""


def told(dialect: str) -> dict[str, str]:
    """What the docs say becomes of each field."""
    (table,) = tables(section(read(f"docs/clients/{PAGES[dialect]}.md"), "## Fields"))
    return {row[0].strip("`"): row[-1] for row in table}


CASES = [(dialect, field) for dialect in DIALECTS for field in DIALECTS[dialect].values]


@pytest.mark.parametrize(("dialect", "field"), CASES)
def test_a_field_does_what_the_table_says(url: str, dialect: str, field: str) -> None:
    says, ask, value = told(dialect)[field], DIALECTS[dialect].ask, DIALECTS[dialect].values[field]
    needs = NEEDS.get(field, {})
    without, answer = ask(url, needs), ask(url, {**needs, field: value})
    assert without.is_success, without.text
    if says.startswith("Refused") or "else 404" in says or (field == "image" and "second one is refused" in says):
        assert answer.status_code == (404 if "else 404" in says else 400 if dialect == "OpenAI" else 422)
        assert ("another" if "else 404" in says else field.rpartition(".")[2]) in answer.text
    elif says.startswith("No effect"):
        assert answer.is_success, answer.text
        assert pictures(answer) == pictures(without)
    else:
        assert answer.is_success, answer.text
        assert comparable(answer) != comparable(without)


def pictures(answer: httpx2.Response) -> list[bytes]:
    if answer.headers["content-type"].startswith("image/"):
        return [answer.content]
    return [base64.b64decode(text) for text in re.findall(r"[A-Za-z0-9+/=]{400,}", answer.text)]


def comparable(answer: httpx2.Response) -> tuple[list[bytes], str]:
    """The pictures, and what is said beside them, but for times."""
    text = "" if answer.headers["content-type"].startswith("image/") else answer.text
    return pictures(answer), re.sub(
        r'"\w+_at": ?"?[\d:.T+-]+"?|"created": ?\d+|"predict_time": ?[\d.e-]+|job_timestamp[\W\d]+', "", text
    )


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_table_has_the_fields_that_are_sent_here_and_no_other(dialect: str) -> None:
    assert list(told(dialect)) == list(DIALECTS[dialect].values)


@pytest.mark.parametrize("dialect", ["OpenAI", "Stability AI", "Cog", "Hugging Face", "Vertex AI"])
def test_the_fields_of_the_native_route_are_taken_too(url: str, dialect: str) -> None:
    # Of the very field that has another meaning there, its own table speaks.
    fields: dict[str, Any] = {"strength": "0.75", "num_inference_steps": "6", "fit": "crop", "output_format": "webp"}
    assert set(fields) < set(Img2ImgRequest.model_fields)
    inside = {
        "Cog": {"input": {"image": TEXT, **FIELDS, **fields}},
        "Hugging Face": {f"parameters.{name}": value for name, value in fields.items()},
        "Vertex AI": {"parameters": fields},
    }
    answer = DIALECTS[dialect].ask(url, inside.get(dialect, fields))
    native = httpx2.post(f"{url}/img2img", files={"image": PNG}, data={**FIELDS, **fields})
    assert pictures(answer) == [native.content]


def test_what_the_code_lists_as_refused_or_of_no_effect_is_in_the_tables() -> None:
    lists: list[tuple[str, tuple[str, ...], str]] = [
        ("OpenAI", _HINTS, "No effect"),
        ("AUTOMATIC1111", tuple(fields._UNSUPPORTED), "Refused"),
        ("AUTOMATIC1111", tuple(fields._OF_THE_SAMPLER), "No effect"),
        ("Stability AI", stability._UNSUPPORTED, "Refused"),
        ("Cog", cog._NEVER_SENT, "Refused"),
        ("Cog", cog._NO_EFFECT, "No effect"),
    ]
    for dialect, names, says in lists:
        assert {name: told(dialect)[name].startswith(says) for name in names} == dict.fromkeys(names, True)


def test_every_request_header_that_the_code_reads_has_its_row() -> None:
    framework = {"content-type", "content-length", "content-encoding", "host", "origin"}
    asked = {"authorization", "x-api-key", "traceparent"}
    for path in (ROOT / "app").rglob("*.py"):
        if "client" not in path.parts:
            asked |= set(headers_read(path))
    (rows,) = tables(section(read("docs/reference/headers.md"), "## Request headers"))
    assert sorted(row[0].strip("`").lower() for row in rows) == sorted(asked - framework)


def headers_read(path: Path) -> Iterator[str]:
    """Names that a file asks a request's headers for."""
    for node in ast.walk(ast.parse(path.read_text())):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr == "get"
            and ast.unparse(node.func.value).endswith("headers")
        ):
            yield str(ast.literal_eval(node.args[0])).lower()
