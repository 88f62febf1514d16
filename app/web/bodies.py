"""Bodies that dialects have in common, read within limits: forms with pictures, JSON, base64."""

import base64
import binascii
import json
import sys
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from fastapi import Request
from pydantic import TypeAdapter, ValidationError
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from app.errors import InvalidImage, InvalidParameter, MalformedBody, ServiceError, UnsupportedMediaType
from app.pixels import OutputFormat
from app.request import Integer

_MAX_TEXT_BYTES = 64 * 1024
_MAX_EPILOGUE = 1024
_MAX_FIELDS = 40
_CHARSETS = (b"utf-8", b"utf8", b"us-ascii")
_MAX_JSON_PARTS = 50_000
"""Two prompts of nothing but commas have fewer; base64 has none."""

_ONE_FILE = "Send one picture, as the part 'image': every part with a file name is a file."
AS_FILE = "Send the picture as a file part named 'image', like curl's -F image=@photo.png."
_INTEGER: TypeAdapter[int] = TypeAdapter(Integer)
_SWITCH: TypeAdapter[bool] = TypeAdapter(bool)
_BASE64 = "Send the bytes of the picture as base64, or as a URL like data:image/png;base64,…"


class _FormParser(MultiPartParser):
    """Starlette's, but nothing of an upload goes to the disk: the body's limit bounds it in memory as well."""

    spool_max_size = sys.maxsize

    @property
    def part_name(self) -> str:
        """Of the part that is being read."""
        return self._current_part.field_name[:64]

    def on_part_end(self) -> None:
        part = self._current_part
        _, options = parse_options_header(dict(part.item_headers).get(b"content-type", b""))
        if part.file is None and options.get(b"charset", b"utf-8").lower() not in _CHARSETS:
            raise MultiPartException(f"The charset of the part '{self.part_name}' must be utf-8.")
        # A picture that is sent as text is told so later, and better.
        if part.file is None and part.field_name != "image":
            try:
                part.data.decode(self._charset)
            except UnicodeDecodeError as error:
                # Starlette's would take it for Latin-1, and draw something else than was asked for.
                raise MultiPartException(f"The text of the part '{self.part_name}' is not in UTF-8.") from error
        super().on_part_end()


async def read_form(request: Request, max_files: int = 1) -> tuple[dict[str, bytes], dict[str, str]]:
    """The files and the text fields of a form, by their names.

    Raises:
        InvalidParameter: a name comes twice.
        MalformedBody: it is no form, is cut short, or holds what is not in UTF-8.
        UnsupportedMediaType: it does not say that it is a form.
    """
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise UnsupportedMediaType(f"Send multipart/form-data. {AS_FILE}")
    body = await request.body()
    _, options = parse_options_header(request.headers["content-type"])
    if options.get(b"charset", b"utf-8").lower() not in _CHARSETS:
        raise MalformedBody("The form's charset must be utf-8: leave it out of the Content-Type.")
    # The parser takes what is there for the whole: a part that was cut off would just be missing.
    if b"--" + options.get(b"boundary", b"") + b"--" not in body[-_MAX_EPILOGUE:]:
        raise MalformedBody("The form's last boundary is missing: it was cut short on its way, or is no form.")
    parser = _FormParser(
        request.headers, _once_only(body), max_files=max_files, max_fields=_MAX_FIELDS, max_part_size=_MAX_TEXT_BYTES
    )
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise _unreadable(error.message, parser.part_name) from error
    try:
        parts = once(form.multi_items())
        files = {name: await part.read() for name, part in parts.items() if isinstance(part, UploadFile)}
    finally:
        await form.close()
    return files, {name: part for name, part in parts.items() if name not in files}


def _unreadable(reason: str, part: str) -> MalformedBody:
    if "maximum size" not in reason:
        advice = f" {_ONE_FILE}" if "files" in reason else ""
        return MalformedBody(f"The form cannot be read: {reason}{advice}")
    limit = f"The text of the part '{part}' is longer than the {_MAX_TEXT_BYTES // 1024} KiB that a text part may have."
    return MalformedBody(f"{limit} {AS_FILE if part == 'image' else 'Send a shorter one.'}", param=part)


async def _once_only(body: bytes) -> AsyncGenerator[bytes, None]:
    yield body


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
def within(where: str) -> Iterator[None]:
    """Says of what is wrong with a field where in the body it stands: `input.seed`."""
    try:
        yield
    except ServiceError as error:
        if error.param:
            error.param = f"{where}.{error.param}"
        raise


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
