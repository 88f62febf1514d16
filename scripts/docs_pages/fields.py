"""The fields of `POST /img2img` and of the dialects, and the response headers, from the OpenAPI document."""

from collections.abc import Iterator
from functools import cache
from typing import Any

from app.main import create_app
from app.request import Img2ImgRequest
from app.settings import Settings
from scripts.docs_pages.tables import Schema, default, required, resolve, table, values

HEAD = ("field", "values", "default", "meaning")
VERTEX_PATH = "/predict"


@cache
def document() -> dict[str, Any]:
    """The OpenAPI document of an app with default settings, whatever the environment says, and Vertex AI's route."""
    defaults = {name: field.default for name, field in Settings.model_fields.items()}
    return create_app(Settings.model_construct(**{**defaults, "predict_route": VERTEX_PATH})).openapi()


def parameters() -> str:
    """A row for each field of `POST /img2img`."""
    image = "The image. It is the whole body in the raw form, and `inputs` in JSON."
    schema = Img2ImgRequest.model_json_schema()
    rows = _rows(schema, schema.get("$defs", {}), "the class Img2ImgRequest in app/request.py")
    return table(HEAD, [("`image`", "PNG, JPEG or WebP file", "required", image), *rows])


def dialect(path: str, media_type: str) -> str:
    """A row for each field of a dialect that is not one of `/img2img`, or has another meaning.

    Args:
        path: where the dialect takes images.
        media_type: of the body.
    """
    schema, definitions = _body(path, media_type), document()["components"]["schemas"]
    native = _body("/img2img", "multipart/form-data")["properties"]
    own = {name: field for name, field in schema["properties"].items() if name == "image" or field != native.get(name)}
    where = f"the model of the body of POST {path} in app/routes"
    return table(HEAD, _rows({**schema, "properties": own}, definitions, where))


def _body(path: str, media_type: str) -> Schema:
    schema = document()["paths"][path]["post"]["requestBody"]["content"][media_type]["schema"]
    return resolve(schema, document()["components"]["schemas"])


def _rows(schema: Schema, definitions: Schema, where: str) -> Iterator[tuple[str, str, str, str]]:
    for name, field in schema["properties"].items():
        description = required(resolve(field, definitions).get("description"), f"The field '{name}' of {where}")
        absent = "required" if name in schema.get("required", ()) else default(field.get("default"))
        yield f"`{name}`", values(field, definitions), absent, description


def response_headers() -> str:
    """A row for each header of an image from `POST /img2img`."""
    headers = document()["paths"]["/img2img"]["post"]["responses"]["200"]["headers"]
    rows = [
        (f"`{name}`", required(header.get("description"), f"The header '{name}' in app/web/openapi.py"))
        for name, header in headers.items()
    ]
    return table(("header", "meaning"), rows)
