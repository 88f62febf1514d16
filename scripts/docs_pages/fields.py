"""The fields of `POST /img2img` and of the dialects, and the response headers, from the OpenAPI document."""

from functools import cache
from typing import Any

from app.main import create_app
from app.request import Img2ImgRequest
from app.settings import Settings
from scripts.docs_pages.tables import default, required, table, values


@cache
def document() -> dict[str, Any]:
    """The OpenAPI document of an app with default settings."""
    return create_app(Settings.model_construct(**{n: f.default for n, f in Settings.model_fields.items()})).openapi()


def parameters() -> str:
    """A row for each field of `POST /img2img`."""
    schema = Img2ImgRequest.model_json_schema()
    image = "The image. It is the whole body in the raw form, and `inputs` in JSON."
    rows = [("`image`", "PNG, JPEG or WebP file", "required", image)]
    for name, field in schema["properties"].items():
        description = required(field.get("description"), f"The field '{name}' of Img2ImgRequest in app/request.py")
        absent = "required" if name in schema["required"] else default(field.get("default"))
        rows.append((f"`{name}`", values(field, schema.get("$defs", {})), absent, description))
    return table(("field", "values", "default", "meaning"), rows)


def response_headers() -> str:
    """A row for each header of an image from `POST /img2img`."""
    headers = document()["paths"]["/img2img"]["post"]["responses"]["200"]["headers"]
    where = "in app/web/openapi.py"
    rows = [
        (f"`{name}`", required(header.get("description"), f"The header '{name}' {where}"))
        for name, header in headers.items()
    ]
    return table(("header", "meaning"), rows)
