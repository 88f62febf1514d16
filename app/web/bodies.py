"""Bodies that dialects have in common, read within limits: JSON, base64, and fields of any kind."""

import base64
import binascii
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from fastapi import Request
from pydantic import TypeAdapter, ValidationError

from app.errors import InvalidImage, InvalidParameter, MalformedBody, ServiceError
from app.pixels import OutputFormat
from app.request import Integer

_MAX_JSON_PARTS = 50_000
"""Two prompts of nothing but commas have fewer; base64 has none."""

_INTEGER: TypeAdapter[int] = TypeAdapter(Integer)
_SWITCH: TypeAdapter[bool] = TypeAdapter(bool)
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
        body = json.loads(data, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise MalformedBody("The body is not valid JSON.") from error
    if not isinstance(body, dict):
        raise MalformedBody("The body must be a JSON object: {…}.")
    return body


def mapping(body: Mapping[str, Any], name: str) -> dict[str, Any]:
    """An object within a JSON object; an empty one if it is not there, or null. Raises `InvalidParameter`."""
    value = body.get(name)
    if not isinstance(value, dict | None):
        raise InvalidParameter(f"{name} must be an object.", param=name)
    return value or {}


def whole(value: Any, name: str, least: int, most: int | None = None) -> int:
    """A whole number, as JSON or text. Raises `InvalidParameter` if it is none, or out of its bounds."""
    try:
        number = _INTEGER.validate_python(value)
    except ValidationError:
        number = least - 1
    if number < least or (most is not None and number > most):
        bounds = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise InvalidParameter(f"{name} must be a whole number {bounds}.", param=name)
    return number


@contextmanager
def prefix_param(where: str, message_prefix: str = "") -> Iterator[None]:
    """Turns the error of a field into that of a field inside another one: `input.seed`."""
    try:
        yield
    except ServiceError as error:
        if error.param is None:
            raise
        raise error.at(where, message_prefix) from error


def switch(value: Any, name: str) -> bool:
    """Yes or no, as JSON or text. Raises `InvalidParameter` if it is neither."""
    try:
        return _SWITCH.validate_python(value)
    except ValidationError:
        raise InvalidParameter(f"{name} must be true or false.", param=name) from None


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


def once(items: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Pairs to a dict; a field that comes twice is refused rather than half of it ignored."""
    fields: dict[str, Any] = {}
    for name, value in items:
        if name in fields:
            raise InvalidParameter(f"'{name[:64]}' was sent more than once.", param=name[:64])
        fields[name] = value
    return fields
