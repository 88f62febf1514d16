"""What `/openapi.json` says of `POST /img2img`: FastAPI cannot see the fields of a body that the route reads itself."""

from typing import Any

from fastapi import Security
from fastapi.security import APIKeyHeader, HTTPBearer

from app.pixels import OutputFormat
from app.request import Img2ImgRequest
from app.web.problems import PROBLEM_TYPE, Problem


def _body() -> dict[str, Any]:
    """The three kinds of body that the route takes."""
    fields = Img2ImgRequest.model_json_schema(ref_template="#/components/schemas/{model}")
    fields.pop("$defs", None)
    properties = {name: _inline(schema) for name, schema in fields["properties"].items()}
    image = {"type": "string", "format": "binary", "description": "The picture: PNG, JPEG or WebP, of any size."}
    base64_image = {"type": "string", "format": "byte", "description": "The same as base64."}
    return {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["image", "prompt"],
                    "properties": {"image": image, **properties},
                }
            },
            "image/*": {"schema": {**image, "description": image["description"] + " The fields go into the query."}},
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["inputs"],
                    "properties": {
                        "inputs": base64_image,
                        "parameters": {"type": "object", "properties": properties},
                    },
                }
            },
        },
    }


def _inline(schema: dict[str, Any]) -> dict[str, Any]:
    """A field's schema without `anyOf … null` and without references: forms know neither."""
    options = [option for option in schema.pop("anyOf", []) if option.get("type") != "null"]
    merged = {**schema, **(options[0] if options else {})}
    reference = merged.pop("$ref", "").rpartition("/")[2]
    enum = {"Fit": ["stretch", "crop", "pad"], "OutputFormat": list(OutputFormat)}.get(reference)
    return {**merged, "type": "string", "enum": enum} if enum else merged


_PICTURE = {"schema": {"type": "string", "format": "binary"}}

_HEADERS = {
    "X-Seed": "The seed that makes this picture again.",
    "X-Steps-Run": "UNet evaluations: int(num_inference_steps x strength).",
    "X-Start-Timestep": "The noise level that the run started from, 0 to 999.",
    "X-Request-Id": "The id that the log knows this request by.",
    "X-Prompt-Tokens-Cut": "Only if the prompt was longer than CLIP's 77 tokens: how many were not read.",
    "Server-Timing": "Milliseconds of decode, queue, encode_prompt, encode_image, denoise, vae, the output format, and "
    "sign if pictures are signed.",
}

EXPOSED_HEADERS = (
    *_HEADERS,
    *("Content-Disposition", "Retry-After", "X-Error-Message", "X-Should-Retry"),
    # Of other dialects.
    *("X-Clamped", "Seed", "Finish-Reason"),
)
"""What a page of a listed origin may read of an answer."""

KEYS = [
    Security(HTTPBearer(auto_error=False, description="Where the service asks for a key.")),
    Security(APIKeyHeader(name="X-API-Key", auto_error=False, description="The same.")),
]
"""Dependencies that say so in the description; it is `app.web.access` that asks, before any route."""

IMG2IMG_OPENAPI: dict[str, Any] = {"requestBody": _body()}

_PROBLEM = {PROBLEM_TYPE: {"schema": Problem.model_json_schema()}}
_NO_KEY = "An API key is needed, or another one."

METRICS_RESPONSES: dict[int | str, dict[str, Any]] = {401: {"description": _NO_KEY, "content": _PROBLEM}}

_ERRORS = {
    400: "The body is not what its Content-Type says.",
    401: _NO_KEY,
    403: "A page of this origin may not use the service.",
    406: "The Accept header admits no format that is made here.",
    408: "The body did not arrive in time.",
    413: "The body or the picture is too large.",
    415: "Neither this Content-Type nor this picture format is taken.",
    422: "A field or the picture cannot be used.",
    429: "You have more than your share of the queue; `Retry-After` says when to come back.",
    500: "The picture could not be made.",
    503: "Too much is going on; `Retry-After` says when to come back.",
}

IMG2IMG_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": f"The picture, {512}x{512}.",
        "content": {
            **{output_format.media_type: _PICTURE for output_format in OutputFormat},
            "text/event-stream": {"schema": {"type": "string", "description": "Events, if `Accept` asks for them."}},
        },
        "headers": {name: {"description": text, "schema": {"type": "string"}} for name, text in _HEADERS.items()},
    },
    **{status: {"description": text, "content": _PROBLEM} for status, text in _ERRORS.items()},
}
