"""Bodies of JSON and base64, read with limits."""

import base64
import binascii
import json
from typing import Any

from fastapi import Request

from app.errors import InvalidImage, MalformedBody
from app.pixels import OutputFormat
from app.web.fields import unique

_MAX_JSON_PARTS = 50_000
"""Two prompts of nothing but commas have fewer; base64 has none."""

_BASE64 = "Send the bytes of the picture as base64, or as a URL like data:image/png;base64,…"


async def read_body(request: Request) -> bytes:
    """The whole body, which the request does not keep: whoever has read it decides how long it is held.

    Raises:
        ClientDisconnect: the client has gone.
    """
    return b"".join([chunk async for chunk in request.stream()])


def read_json(data: bytes) -> dict[str, Any]:
    """A JSON object.

    Raises:
        InvalidParameter: it is JSON of another kind, or names something twice.
        MalformedBody: it is no JSON, or of so many parts that reading it would take much more memory than it has bytes.
    """
    if sum(map(data.count, (b",", b"[", b"{"))) > _MAX_JSON_PARTS:
        raise MalformedBody(
            f"The JSON has more than {_MAX_JSON_PARTS:,} commas and brackets. Send one picture and text."
        )
    try:
        body = json.loads(data, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise MalformedBody("The body is not valid JSON.") from error
    if not isinstance(body, dict):
        raise MalformedBody("The body must be a JSON object: {…}.")
    return body


def decode_base64(text: str, param: str) -> bytes:
    """Plain base64, in lines or not, or the same in a data URL. Raises `InvalidImage` if it is neither."""
    if is_data_url(text):
        head, comma, text = text.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            raise InvalidImage(f"'{param}' is a data: URL without ';base64,'. {_BASE64}", param=param)
    try:
        # Some encoders break it into lines.
        return base64.b64decode("".join(text.split()), validate=True)
    except (ValueError, binascii.Error) as error:
        raise InvalidImage(f"'{param}' is not base64. {_BASE64}", param=param) from error


def is_data_url(text: str) -> bool:
    """Whether it begins like one."""
    return text[:5].lower() == "data:"


def base64_text(data: bytes) -> str:
    """Bytes as base64."""
    return base64.b64encode(data).decode("ascii")


def data_url(data: bytes, output_format: OutputFormat) -> str:
    """A file as a URL that holds it."""
    return f"data:{output_format.media_type};base64,{base64_text(data)}"
