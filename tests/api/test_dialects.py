"""The docs' tables of each dialect's fields, held against a real server that is sent them."""

import ast
import base64
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import httpx2
import pytest

from app.request import Img2ImgRequest
from app.routes import stability
from app.routes.cog import routes as cog
from app.routes.openai.fields import _HINTS
from app.routes.webui import fields
from tests.support.guards import fail_with
from tests.support.images import noise, saved
from tests.support.pages import read, section, tables
from tests.support.paths import ROOT
from tests.support.servers import run_server

PNG = saved(noise((24, 24)), "PNG")
TEXT = base64.b64encode(PNG).decode()
OTHER_PNG = saved(noise((32, 24)), "PNG")
OTHER = base64.b64encode(OTHER_PNG).decode()
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
    files = {"image": data.pop("image", PNG)}
    return httpx2.post(f"{url}/v2beta/stable-image/generate/sd3", files=files, data=data)


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
            "output_format": "webp",
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
            "image": OTHER_PNG,
            "mode": "text-to-image",
            "seed": "8",
            "output_format": "webp",
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


@dataclass(frozen=True)
class Row:
    """What the docs say of a field: the choices in its values, and its meaning; None if it is refused."""

    choices: list[str]
    meaning: str | None


@cache
def documented(dialect: str) -> dict[str, Row]:
    """The fields in the tables of a dialect's page."""
    page = read(f"docs/clients/{PAGES[dialect]}.md")
    (fields,) = tables(section(page, "## Fields"))
    rows = {name.strip("`"): Row(re.findall("`([^`]+)`", choices), meaning) for name, choices, _, meaning in fields}
    if "## Refused fields" in page:
        (refused,) = tables(section(page, "## Refused fields"))
        assert all(reason for _, reason in refused)
        rows |= {name.strip("`"): Row([], None) for name, _ in refused}
    return rows


def expected(dialect: str, field: str, value: Any) -> str:
    """What comes of a field: `refused`, `unknown model`, `no effect` or `effect`."""
    row = documented(dialect)[field]
    if field in ("model", "override_settings"):
        return "unknown model"
    # A second image, and a script that is switched on.
    if row.meaning is None or (dialect, field) in (("OpenAI", "image"), ("AUTOMATIC1111", "alwayson_scripts")):
        return "refused"
    if "no effect" in row.meaning.lower():
        return "no effect"
    return "refused" if row.choices and str(value).lower() not in row.choices else "effect"


CASES = [(dialect, field) for dialect in DIALECTS for field in DIALECTS[dialect].values]


@pytest.mark.parametrize(("dialect", "field"), CASES)
def test_field_does_what_the_docs_say(url: str, dialect: str, field: str) -> None:
    ask, value = DIALECTS[dialect].ask, DIALECTS[dialect].values[field]
    outcome, needs = expected(dialect, field, value), NEEDS.get(field, {})
    without, answer = ask(url, needs), ask(url, {**needs, field: value})
    assert without.is_success, without.text
    if outcome == "unknown model":
        assert answer.status_code == 404
        assert "another" in answer.text
    elif outcome == "refused":
        assert answer.status_code == (400 if dialect == "OpenAI" else 422)
        assert field.rpartition(".")[2] in answer.text
    elif outcome == "no effect":
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
def test_tables_have_the_fields_that_are_sent_here_and_no_other(dialect: str) -> None:
    assert set(documented(dialect)) == set(DIALECTS[dialect].values)


@pytest.mark.parametrize("dialect", ["OpenAI", "Stability AI", "Cog", "Hugging Face", "Vertex AI"])
def test_fields_of_the_native_route_are_accepted(url: str, dialect: str) -> None:
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


def test_fields_that_the_code_refuses_are_in_the_tables_of_refused_fields() -> None:
    lists: list[tuple[str, tuple[str, ...]]] = [
        ("AUTOMATIC1111", tuple(fields._UNSUPPORTED)),
        ("Stability AI", stability._UNSUPPORTED),
        ("Cog", cog._NEVER_SENT),
    ]
    missing: list[tuple[str, str]] = []
    for dialect, names in lists:
        rows = documented(dialect)
        missing += [(dialect, name) for name in names if name not in rows or rows[name].meaning is not None]
    fail_with(f"{dialect}: no table of refused fields has '{name}'." for dialect, name in missing)


def test_fields_that_the_code_ignores_are_described_as_without_effect() -> None:
    lists: list[tuple[str, tuple[str, ...]]] = [
        ("OpenAI", _HINTS),
        ("Cog", tuple(cog._NO_EFFECT)),
        ("AUTOMATIC1111", tuple(fields._OF_THE_SAMPLER)),
    ]
    missing: list[tuple[str, str]] = []
    for dialect, names in lists:
        rows = documented(dialect)
        missing += [(dialect, name) for name in names if "no effect" not in str(rows[name].meaning).lower()]
    fail_with(f"{dialect}: the table does not say that '{name}' has no effect." for dialect, name in missing)


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
