"""Parts of the OpenAPI description. Routes read their bodies themselves, so FastAPI cannot derive these parts."""

from collections.abc import Container, Mapping
from typing import Any

from fastapi import Security
from fastapi.security import APIKeyHeader, HTTPBearer
from pydantic import BaseModel

from app.pixels import OutputFormat
from app.web.problems import PROBLEM_TYPE, Problem

Responses = dict[int | str, dict[str, Any]]

IMAGE_HEADERS = {
    "X-Seed": "The seed that makes this image again.",
    "X-Steps-Run": "UNet evaluations: int(num_inference_steps x strength).",
    "X-Start-Timestep": "The timestep (noise level) that the run started from, 0 to 999.",
    "X-Request-Id": "The request's id in the log.",
    "X-Prompt-Tokens-Cut": "Only if the prompt was longer than CLIP's 77 tokens: how many were cut.",
    "Server-Timing": "Milliseconds of decode, queue, encode_prompt, encode_image, denoise, vae, the output format, and "
    "sign if images are signed.",
}
"""Headers of an answer with an image, and what they mean."""

EXPOSED_HEADERS = (
    *IMAGE_HEADERS,
    *("Content-Disposition", "Retry-After", "X-Error-Message", "X-Should-Retry"),
    # Of other dialects.
    *("X-Clamped", "Seed", "Finish-Reason"),
)
"""Headers that a page of a listed origin may read."""

KEYS = [
    Security(HTTPBearer(auto_error=False, description="If the service has API keys.")),
    Security(APIKeyHeader(name="X-API-Key", auto_error=False, description="The same.")),
]
"""Dependencies that describe the API keys; `app.web.access` checks them, before routing."""

EDIT_ERRORS = {
    400: "The body is not what its Content-Type says.",
    401: "An API key is needed, or another one.",
    403: "A page of this origin may not use the service.",
    404: "There is no such path or model.",
    406: "The Accept header admits no format that is made here.",
    408: "The body did not arrive in time.",
    409: "The request was interrupted, or the queue is full, as the dialect has it.",
    413: "The body or the image is too large.",
    415: "This Content-Type or image format is not supported.",
    422: "A field or the image cannot be used.",
    429: "You have more than your share of the queue; `Retry-After` says when to come back.",
    500: "The image could not be made.",
    503: "Too much is going on; `Retry-After` says when to come back.",
}
"""Errors of a route that makes images, and what they mean."""

NO_EFFECT = "Accepted for compatibility; no effect."
"""Describes a field that changes nothing."""


def error_responses(model: type[BaseModel], statuses: Container[int] = tuple(EDIT_ERRORS)) -> Responses:
    """Answers to errors in the shape of a dialect."""
    chosen = {status: text for status, text in EDIT_ERRORS.items() if status in statuses}
    if model is Problem:
        content = {PROBLEM_TYPE: {"schema": Problem.model_json_schema()}}
        return {status: {"description": text, "content": content} for status, text in chosen.items()}
    return {status: {"description": text, "model": model} for status, text in chosen.items()}


def image_response(description: str, content: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A 200 with an image in any of the output formats.

    Args:
        description: of the answer.
        content: further media types, each with its content.
    """
    image = {"schema": {"type": "string", "format": "binary"}}
    return {
        "description": description,
        "content": {**{one.media_type: image for one in OutputFormat}, **(content or {})},
        "headers": image_headers(),
    }


def image_headers() -> dict[str, Any]:
    """The headers of an answer with an image, described."""
    return {name: {"description": text, "schema": {"type": "string"}} for name, text in IMAGE_HEADERS.items()}


def form_body(*models: type[BaseModel], without: Container[str] = ()) -> dict[str, Any]:
    """A `multipart/form-data` body with the fields of several models, for a route's `openapi_extra`."""
    return body({"multipart/form-data": {"schema": object_schema(*models, without=without)}})


def json_body(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON body, for a route's `openapi_extra`."""
    return body({"application/json": {"schema": schema}})


def body(content: Mapping[str, Any]) -> dict[str, Any]:
    """A body of one of several media types, for a route's `openapi_extra`."""
    return {"requestBody": {"required": True, "content": content}}


def object_schema(*models: type[BaseModel], without: Container[str] = (), **replaced: Any) -> dict[str, Any]:
    """One object with the fields of several models.

    Args:
        models: of two fields with one name the later one counts.
        without: names that are left out.
        replaced: schemas that take the place of those of fields, each with the field's description.
    """
    properties: dict[str, Any] = {}
    required: dict[str, bool] = {}
    for model in models:
        schema = model.model_json_schema()
        for name, field in schema["properties"].items():
            properties[name] = _inline(field, schema.get("$defs", {}))
            required[name] = name in schema.get("required", ())
    for name, schema in replaced.items():
        properties[name] = {"description": properties[name].get("description", ""), **schema}
    properties = {name: field for name, field in properties.items() if name not in without}
    return {
        "type": "object",
        "required": [name for name in properties if required[name]],
        "properties": properties,
    }


_BOUNDS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}


def _inline(schema: Any, definitions: Mapping[str, Any]) -> Any:
    """A schema without references and null, which forms do not have, and with bounds as JSON Schema names them."""
    if isinstance(schema, list):
        return [_inline(one, definitions) for one in schema]
    if not isinstance(schema, dict):
        return schema
    # A field's own description is better than that of its type.
    merged = dict(schema)
    if reference := merged.pop("$ref", "").rpartition("/")[2]:
        merged = {**definitions[reference], **merged}
    options = [option for option in merged.get("anyOf", ()) if option.get("type") != "null"]
    if len(options) == 1:
        del merged["anyOf"]
        merged = {**_inline(options[0], definitions), **merged}
    if merged.get("default", ...) is None:
        del merged["default"]
    if isinstance(merged.get("title"), str):
        del merged["title"]
    if merged.get("le", merged.get("maximum", 0)) > 2**53:
        # The description has bounds as floating-point numbers, of which the next larger one is a power of 2.
        merged["exclusiveMaximum"] = merged.pop("le", merged.pop("maximum", 0)) + 1
    # pydantic leaves its own names of bounds where a validator comes first.
    return {_BOUNDS.get(name, name): _inline(value, definitions) for name, value in merged.items()}
