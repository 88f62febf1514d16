"""What is declared once is everywhere that it has to be. What is forgotten fails with a sentence that says where."""

import asyncio
import re
from collections.abc import Callable, Iterable, Iterator
from email import message_from_bytes
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
from fastapi.routing import APIRoute
from pydantic import BaseModel, Field
from typer.testing import CliRunner

from app import errors as error_module
from app.cli.app import app as cli
from app.client import AsyncImg2Img, Img2Img
from app.engine.messages import Job, Timings
from app.errors import CODES, ServiceError
from app.main import create_app
from app.observability.metrics import Metrics
from app.pixels import OutputFormat
from app.request import Img2ImgRequest
from app.routes import DIALECTS, img2img
from app.settings import Settings
from app.web.openapi import EDIT_ERRORS
from scripts.docs_pages.errors import classes
from tests.support.canned import PICTURE, canned
from tests.support.guards import fail_with
from tests.support.paths import ROOT

USED_BY_THE_SERVICE = {
    # Before and after the engine: by the decoder and the encoder.
    *("fit", "output_format", "quality")
}
OTHER_OPTIONS = {"num_inference_steps": "steps"}
"""Fields that the command line calls by another name."""

HIDDEN_ROUTES = {"/invocations": "/img2img", "/ping": "/health/ready", "/health": "/health/ready", "/docs": ""}
"""Routes that are not in the description, since they are other names of one that is."""


def sent_fields(call: Callable[[str], object]) -> set[str]:
    """The names of the parts of the form that a client sends."""
    with canned(PICTURE) as server:
        call(server.url)
    (asked,) = server.asked
    form = message_from_bytes(f"Content-Type: {asked.headers['Content-Type']}\r\n\r\n".encode() + asked.body)
    return {str(part.get_param("name", header="content-disposition")) for part in form.walk()} - {"None"}


def values(model: type[BaseModel]) -> dict[str, Any]:
    """A value for each field."""
    given = {"prompt": "x", "negative_prompt": "x", "seed": 1, "output_format": "webp", "quality": 50}
    fields = model.model_fields.items()
    return {name: given.get(name, getattr(field.default, "value", field.default)) for name, field in fields}


def by_client(model: type[BaseModel]) -> Callable[[str], object]:
    def call(url: str) -> None:
        with Img2Img(url) as client:
            client.edit(b"file", **values(model))

    return call


def by_async_client(model: type[BaseModel]) -> Callable[[str], object]:
    async def edit(url: str) -> None:
        async with AsyncImg2Img(url) as client:
            await client.edit(b"file", **values(model))

    return lambda url: asyncio.run(edit(url))


def by_command(model: type[BaseModel], folder: Path) -> Callable[[str], object]:
    (folder / "in.png").write_bytes(b"file")
    options = []
    for name, value in values(model).items():
        option = {"output_format": "format"}.get(name, OTHER_OPTIONS.get(name, name)).replace("_", "-")
        options += [f"--{option}", str(value)]

    def call(url: str) -> None:
        output = ["--url", url, "-o", str(folder / "out.webp")]
        result = CliRunner().invoke(cli, ["edit", str(folder / "in.png"), *options, *output])
        if result.exit_code:
            raise TypeError(result.output)

    return call


def missing_fields(model: type[BaseModel], folder: Path) -> Iterator[str]:
    """Where a field of `/img2img` is missing."""
    clients = {
        "Img2Img.edit in app/client/sync_client.py": by_client(model),
        "AsyncImg2Img.edit in app/client/async_client.py": by_async_client(model),
        "the command `img2img edit` in app/cli/app.py": by_command(model, folder),
    }
    for place, call in clients.items():
        try:
            sent = sent_fields(call)
        except (TypeError, ValueError) as error:
            yield f"{place} does not take all fields: {error}"
            continue
        yield from (
            f"{place} takes the field '{name}', but does not send it."
            for name in model.model_fields
            if name not in sent
        )
    body = create_app(Settings(devices="cpu")).openapi()["paths"]["/img2img"]["post"]["requestBody"]["content"]
    form = body["multipart/form-data"]["schema"]["properties"]
    in_json = body["application/json"]["schema"]["properties"]["parameters"]["properties"]
    page = (ROOT / "docs/parameters.md").read_text()
    for name in model.model_fields:
        if name not in form or name not in in_json:
            yield f"The description of /img2img in app/routes/img2img.py has no field '{name}'."
        if name not in {*Job.__dataclass_fields__, *USED_BY_THE_SERVICE}:
            yield f"The field '{name}' does not reach the model: Job in app/engine/messages.py has none of that name."
        if f"| `{name}` |" not in page:
            yield f"docs/parameters.md has no row for the field '{name}': run scripts/docs."


def missing_settings(names: Iterable[str]) -> Iterator[str]:
    """Where a setting is missing."""
    page = (ROOT / "docs/configuration.md").read_text()
    compose = (ROOT / "docker-compose.yml").read_text()
    # What the image or the compose file decides.
    fixed = {"host", "port", "hub_cache", "compile_cache"}
    for name in names:
        variable = f"IMG2IMG_{name.upper()}"
        if f"| `{variable}` |" not in page:
            yield f"docs/configuration.md has no row for {variable}: run scripts/docs."
        if name not in fixed and f" {variable}:" not in compose:
            yield f"docker-compose.yml does not pass {variable} on: add it to the environment of x-service."


def missing_metrics(rendered: str) -> Iterator[str]:
    """Where a metric is missing, or has no series before the first event."""
    page = (ROOT / "docs/observability/metrics.md").read_text()
    for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", rendered, re.MULTILINE):
        if f"| `{name}` |" not in page:
            yield f"docs/observability/metrics.md has no row for {name}: run scripts/docs."
        # Routes and devices are not known beforehand.
        if kind == "counter" and name != "img2img_requests_total" and f"\n{name}" not in rendered:
            yield f"{name} has no series at the start: list its labels in Metrics of app/observability/metrics.py."


def missing_stages(names: Iterable[str], rendered: str) -> Iterator[str]:
    """Stages of an image without a series before the first event."""
    for name in names:
        if f'stage="{name}"' not in rendered:
            yield f"The stage '{name}' has no series at the start: add it to _STAGES in app/observability/metrics.py."


def missing_errors(found: Iterable[type[ServiceError]]) -> Iterator[str]:
    """Where an error is missing."""
    tree, page = str(error_module.__doc__), (ROOT / "docs/reference/errors.md").read_text()
    for error in found:
        if not re.search(rf"── {error.__name__} +{error.status}  {error.code}\n", tree):
            wanted = f"{error.__name__}, {error.status}, {error.code}"
            yield f"The tree in the docstring of app/errors.py does not have {wanted}."
        if f"| `{error.code}` |" not in page:
            yield f"docs/reference/errors.md has no row for {error.code}: run scripts/docs."
        if error.status not in HTTPStatus._value2member_map_:
            yield f"{error.__name__} in app/errors.py has the status {error.status}, which HTTP does not have."
        if error.status not in EDIT_ERRORS and error.status != HTTPStatus.METHOD_NOT_ALLOWED:
            yield f"EDIT_ERRORS in app/web/openapi.py does not describe the status {error.status} of {error.__name__}."
        if error.code not in CODES:
            yield f"CODES in app/errors.py has no {error.code}: its counter has no series at the start."


def missing_routes(routes: Iterable[Any], description: dict[str, Any]) -> Iterator[str]:
    """Where a route is missing."""
    for route in routes:
        if not isinstance(route, APIRoute):
            continue
        # The description leaves out how a parameter is matched.
        path = re.sub(r"\{(\w+):\w+\}", r"{\1}", route.path)
        if route.path in HIDDEN_ROUTES:
            continue
        for method in route.methods or ():
            if method.lower() not in description["paths"].get(path, {}):
                yield f"{method} {path} is not in /openapi.json: describe it, or list it in HIDDEN_ROUTES here."
            elif not description["paths"][path][method.lower()].get("description"):
                yield f"{method} {path} has no description: write a docstring for its function."


def served_routes() -> list[Any]:
    return [route for dialect in DIALECTS for route in dialect.router.routes]


class TestDeclaredOnce:
    def test_field_of_img2img_is_everywhere(self, tmp_path: Path) -> None:
        fail_with(missing_fields(Img2ImgRequest, tmp_path))

    def test_setting_is_everywhere(self) -> None:
        fail_with(missing_settings(Settings.model_fields))

    def test_metric_is_everywhere(self) -> None:
        fail_with(missing_metrics(Metrics().render().decode()))

    def test_stage_is_everywhere(self) -> None:
        stages = ["receive", "decode", "queue", *Timings.__dataclass_fields__, *OutputFormat, "sign"]
        fail_with(missing_stages(stages, Metrics().render().decode()))

    def test_error_is_everywhere(self) -> None:
        fail_with(missing_errors(classes()))

    def test_route_is_everywhere(self) -> None:
        fail_with(missing_routes(served_routes(), create_app(Settings(devices="cpu")).openapi()))


class TestForgotten:
    """Each place where something new was forgotten is named."""

    def test_new_field_of_img2img_is_named_with_each_place(self, tmp_path: Path) -> None:
        class WithColour(Img2ImgRequest):
            colour: str = Field("red")

        found = "\n".join(missing_fields(WithColour, tmp_path))
        places = (
            *("app/client/sync_client.py", "app/client/async_client.py", "app/cli/app.py", "app/routes/img2img.py"),
            *("app/engine/messages.py", "docs/parameters.md"),
        )
        fail_with(f"No sentence names {place}." for place in places if place not in found)
        assert len(found.splitlines()) >= len(places)

    def test_new_setting_is_named_with_each_place(self) -> None:
        assert [sentence.partition(" ")[0] for sentence in missing_settings(["colour"])] == [
            "docs/configuration.md",
            "docker-compose.yml",
        ]

    def test_new_metric_is_named_with_each_place(self) -> None:
        found = list(missing_metrics("# TYPE img2img_colours_total counter\n"))
        assert len(found) == 2
        assert "docs/observability/metrics.md" in found[0]
        assert "app/observability/metrics.py" in found[1]

    def test_new_stage_is_named_with_its_place(self) -> None:
        (sentence,) = missing_stages(["colour"], Metrics().render().decode())
        assert "'colour'" in sentence
        assert "_STAGES in app/observability/metrics.py" in sentence

    def test_new_error_is_named_with_each_place(self) -> None:
        class WrongColour(error_module.EngineError):
            """A colour."""

            status, code = 299, "wrong_colour"

        found = "\n".join(missing_errors([WrongColour]))
        for place in ("The tree", "docs/reference/errors.md", "HTTP does not have", "EDIT_ERRORS", "CODES"):
            assert place in found

    def test_new_route_is_named(self) -> None:
        route = APIRoute("/colour", lambda: None, methods=["GET"])
        assert list(missing_routes([route], create_app(Settings(devices="cpu")).openapi())) == [
            "GET /colour is not in /openapi.json: describe it, or list it in HIDDEN_ROUTES here."
        ]


@pytest.mark.parametrize("path", sorted(HIDDEN_ROUTES))
def test_hidden_route_is_served_and_another_name_of_a_described_one(path: str) -> None:
    endpoints = {route.path: route.endpoint for route in served_routes() if isinstance(route, APIRoute)}
    same = HIDDEN_ROUTES[path]
    assert path in endpoints
    assert not same or endpoints[path] is endpoints[same]


def test_native_dialect_comes_first_for_unknown_paths() -> None:
    assert DIALECTS[0] is img2img.DIALECT
