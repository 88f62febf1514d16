"""The description of each dialect's body, held against the parser that reads it."""

import base64
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from app.errors import InvalidParameter, ServiceError
from app.main import create_app
from app.request import parse_request
from app.routes.cog.routes import parse_prediction
from app.routes.img2img import parse_hugging_face
from app.routes.openai.fields import parse_edit
from app.routes.stability import parse_sd3
from app.routes.vertex import parse_instances
from app.routes.webui.fields import parse_webui
from app.settings import Settings

Fields = dict[str, Any]
TEXT = base64.b64encode(b"file").decode()


def text(fields: Mapping[str, Any]) -> dict[str, str]:
    """Fields as a form has them."""
    return {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in fields.items()}


def hugging_face(fields: Fields) -> None:
    _, parsed = parse_hugging_face({"inputs": TEXT, "parameters": fields})
    parse_request({"prompt": "", **parsed})


PARSERS: dict[str, tuple[str, tuple[str, ...], Callable[[Fields], object]]] = {
    "native form": ("/img2img", (), lambda fields: parse_request(text({"prompt": "", **fields}))),
    "hugging face": ("/img2img", ("parameters",), hugging_face),
    "openai": ("/v1/images/edits", (), lambda fields: parse_edit({"image": b"file"}, text(fields))),
    "stability": (
        "/v2beta/stable-image/generate/sd3",
        (),
        lambda fields: parse_sd3(text({"prompt": "", "mode": "image-to-image", **fields})),
    ),
    "webui": (
        "/sdapi/v1/img2img",
        (),
        lambda fields: parse_webui({"init_images": [TEXT], **fields}, "Euler a"),
    ),
    "cog": ("/predictions", ("input",), lambda fields: parse_prediction({"input": {"image": TEXT, **fields}})),
    "vertex": (
        "/vertex",
        ("instances",),
        lambda fields: parse_instances({"instances": [{"image": TEXT, **fields}]}),
    ),
    "vertex parameters": (
        "/vertex",
        ("parameters",),
        lambda fields: parse_instances({"instances": [{"image": TEXT}], "parameters": fields}),
    ),
}
"""The path, where in its body the fields are, and the parser of a dialect."""

FILES = ("image", "init_images")
NEEDS: dict[str, Fields] = {
    "partial_images": {"stream": "true"},
    "output_compression": {"output_format": "webp"},
    # At least one step has to be run.
    "num_inference_steps": {"strength": 1},
    "strength": {"num_inference_steps": 50},
}
"""What a field has an effect with."""


@pytest.fixture(scope="module")
def description() -> dict[str, Any]:
    return create_app(Settings(devices="cpu", predict_route="/vertex")).openapi()


def properties(description: dict[str, Any], dialect: str) -> dict[str, dict[str, Any]]:
    """The fields in the description, but for the file."""
    path, place, _ = PARSERS[dialect]
    content = description["paths"][path]["post"]["requestBody"]["content"]
    schema = content["application/json" if "application/json" in content and place else next(iter(content))]["schema"]
    for name in place:
        schema = schema["properties"][name]
        schema = schema.get("items", schema)
    return {name: field for name, field in schema["properties"].items() if name not in FILES}


def accepts(dialect: str, name: str, value: Any) -> bool:
    """Whether a parser takes a value. One that refuses it names the field."""
    parser = PARSERS[dialect][2]
    try:
        parser({**NEEDS.get(name, {}), name: value})
    except ServiceError as error:
        if name not in str(error.param):
            raise
        return False
    return True


@pytest.mark.parametrize("dialect", PARSERS)
def test_described_field_takes_its_default_and_each_choice(description: dict[str, Any], dialect: str) -> None:
    for name, field in properties(description, dialect).items():
        assert field.get("description"), f"{dialect}: the field {name} has no description"
        values = [field[key] for key in ("default", "const") if key in field] + field.get("enum", [])
        assert all(accepts(dialect, name, value) for value in values), (dialect, name, values)


@pytest.mark.parametrize("dialect", PARSERS)
def test_described_field_has_the_bounds_of_the_parser(description: dict[str, Any], dialect: str) -> None:
    for name, field in properties(description, dialect).items():
        step = 1 if field.get("type") == "integer" else 1e-9
        for key, beyond in (("minimum", -step), ("maximum", step)):
            if key in field:
                bound = int(field[key]) if step == 1 else field[key]
                assert accepts(dialect, name, bound), f"{dialect}: {name} does not take its {key}, {bound}"
                assert not accepts(dialect, name, bound + beyond), f"{dialect}: {name} takes {bound + beyond}"
        for key in ("exclusiveMinimum", "exclusiveMaximum"):
            if key in field:
                bound = int(field[key]) if step == 1 else field[key]
                assert not accepts(dialect, name, bound), f"{dialect}: {name} takes {bound}"
        if "maxLength" in field:
            assert accepts(dialect, name, "x" * field["maxLength"])
            assert not accepts(dialect, name, "x" * (field["maxLength"] + 1))


@pytest.mark.parametrize("dialect", PARSERS)
def test_choice_that_is_not_described_is_refused(description: dict[str, Any], dialect: str) -> None:
    for name, field in properties(description, dialect).items():
        if "enum" in field or "const" in field:
            assert not accepts(dialect, name, "another"), f"{dialect}: {name} takes a value that is not described"


@pytest.mark.parametrize("dialect", sorted(set(PARSERS) - {"webui"}))
def test_field_that_is_not_described_is_refused(description: dict[str, Any], dialect: str) -> None:
    assert "undescribed" not in properties(description, dialect)
    with pytest.raises(InvalidParameter, match="There is no field 'undescribed'"):
        PARSERS[dialect][2]({"undescribed": "1"})


@pytest.mark.parametrize("dialect", sorted(set(PARSERS) - {"webui"}))
def test_described_fields_are_those_of_the_native_route_and_the_dialects_own(
    description: dict[str, Any], dialect: str
) -> None:
    assert set(properties(description, "native form")) <= set(properties(description, dialect))
