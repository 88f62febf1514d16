"""`POST /img2img`: a form, a raw picture, or Hugging Face's JSON in; a picture out."""

import base64
import binascii
import json
import sys
from collections.abc import AsyncGenerator, Iterable
from typing import Any
from urllib.parse import unquote_to_bytes

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from app.errors import InvalidImage, InvalidParameter, MalformedBody, NotAcceptable, UnsupportedMediaType
from app.request import IMAGE_SIZE, OutputFormat, parse_request
from app.routes.common import call_of, picture_response, unless_disconnected
from app.routes.schema import IMG2IMG_OPENAPI, IMG2IMG_RESPONSES, KEYS
from app.service import Service

router = APIRouter()

_MAX_TEXT_BYTES = 64 * 1024
_MAX_EPILOGUE = 1024
_CHARSETS = (b"utf-8", b"utf8", b"us-ascii")
_MAX_JSON_PARTS = 50_000
"""Two prompts of nothing but commas have fewer; base64 has none."""


# /invocations is where SageMaker sends what its callers send.
@router.post("/invocations", response_class=StreamingResponse, include_in_schema=False)
@router.post(
    "/img2img",
    summary="Redraw a picture as a prompt says",
    operation_id="img2img",
    tags=["pictures"],
    response_class=StreamingResponse,
    responses=IMG2IMG_RESPONSES,
    dependencies=KEYS,
    openapi_extra=IMG2IMG_OPENAPI,
)
async def img2img(request: Request) -> StreamingResponse:
    """Takes the picture as `multipart/form-data`, as a raw body, or as base64 in Hugging Face's JSON.

    The answer is the picture itself. `X-Seed` is what makes it again. A header `X-Request-Timeout` says for how many
    seconds you will wait.
    """
    call = call_of(request)
    upload, fields = await _read(request)
    asked = parse_request(fields)
    if asked.output_format is None:
        asked = asked.model_copy(update={"output_format": acceptable(request.headers.get("accept") or "*/*")})
    service: Service = request.app.state.service
    picture = await unless_disconnected(request, service.edit(upload, asked, call))
    return picture_response(picture)


async def _read(request: Request) -> tuple[bytes, dict[str, Any]]:
    """The picture's bytes and the fields, from whichever body this is; fields in the query are as good."""
    query = request.query_params.multi_items()
    try:
        unquote_to_bytes(request.scope["query_string"]).decode()
    except UnicodeDecodeError:
        raise InvalidParameter("The query is not in UTF-8. Encode its text as UTF-8 before you escape it.") from None
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type == "multipart/form-data":
        upload, fields = await _read_form(request)
        fields = _once([*query, *fields.items()])
        if "prompt" not in fields:
            raise InvalidParameter("Send a text field 'prompt'; it may be empty.", param="prompt")
        return upload, fields
    if media_type == "application/json":
        upload, fields = parse_hugging_face(await request.body())
        said = {name: value for name, value in fields.items() if value is not None}
        return upload, {"prompt": "", **_once([*query, *said.items()])}
    # Hugging Face's client names no type for bytes: what a picture is shows in its content anyway.
    if media_type.startswith("image/") or media_type in ("application/octet-stream", ""):
        return await request.body(), {"prompt": "", **_once(query)}
    raise UnsupportedMediaType(
        f"Content-Type {media_type[:64]} is not taken here. Send multipart/form-data with a file 'image' "
        "and a text 'prompt', or a raw image/png, image/jpeg or image/webp body, or application/json."
    )


_FORM_ADVICE = {
    "files": " Send one picture, as the part 'image': every part with a file name is a file.",
    "maximum size": " Send the picture as a file part named 'image', like curl's -F image=@photo.png.",
}


class _FormParser(MultiPartParser):
    """Starlette's, but nothing of an upload goes to the disk: the body's limit bounds it in memory as well."""

    spool_max_size = sys.maxsize

    def on_part_end(self) -> None:
        part = self._current_part
        _, options = parse_options_header(dict(part.item_headers).get(b"content-type", b""))
        if part.file is None and options.get(b"charset", b"utf-8").lower() not in _CHARSETS:
            raise MultiPartException(f"The charset of the part '{part.field_name[:64]}' must be utf-8.")
        # A picture that is sent as text is told so later, and better.
        if part.file is None and part.field_name != "image":
            try:
                part.data.decode(self._charset)
            except UnicodeDecodeError as error:
                # Starlette's would take it for Latin-1, and draw something else than was asked for.
                raise MultiPartException(f"The text of the part '{part.field_name[:64]}' is not in UTF-8.") from error
        super().on_part_end()


async def _read_form(request: Request) -> tuple[bytes, dict[str, str]]:
    body = await request.body()
    _, options = parse_options_header(request.headers["content-type"])
    if options.get(b"charset", b"utf-8").lower() not in _CHARSETS:
        raise MalformedBody("The form's charset must be utf-8: leave it out of the Content-Type.")
    # The parser takes what is there for the whole: a part that was cut off would just be missing.
    if b"--" + options.get(b"boundary", b"") + b"--" not in body[-_MAX_EPILOGUE:]:
        raise MalformedBody("The form's last boundary is missing: it was cut short on its way, or is no form.")
    parser = _FormParser(request.headers, _once_only(body), max_files=1, max_fields=20, max_part_size=_MAX_TEXT_BYTES)
    try:
        form = await parser.parse()
    except MultiPartException as error:
        advice = next((more for words, more in _FORM_ADVICE.items() if words in error.message), "")
        raise MalformedBody(f"The form cannot be read: {error.message}{advice}") from error
    try:
        parts = _once(form.multi_items())
        image = parts.pop("image", None)
        if not isinstance(image, UploadFile):
            raise InvalidParameter(
                "Send the picture as a file part named 'image', like curl's -F image=@photo.png.", param="image"
            )
        return await image.read(), parts
    finally:
        await form.close()


async def _once_only(body: bytes) -> AsyncGenerator[bytes, None]:
    yield body


def parse_hugging_face(data: bytes) -> tuple[bytes, dict[str, Any]]:
    """`{"inputs": base64, "parameters": {...}}`, as `InferenceClient.image_to_image` sends it.

    Raises:
        InvalidImage: the picture is no base64.
        InvalidParameter: it is JSON of another shape.
        MalformedBody: it is no JSON, or of so many parts that reading it would take much more memory than it has bytes.
    """
    if sum(map(data.count, (b",", b"[", b"{"))) > _MAX_JSON_PARTS:
        raise MalformedBody(
            f"The JSON has more than {_MAX_JSON_PARTS:,} commas and brackets. Send one picture and text."
        )
    try:
        body = json.loads(data, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise MalformedBody("The body is not valid JSON.") from error
    if not isinstance(body, dict) or not isinstance(body.get("inputs"), str):
        raise InvalidParameter('Send {"inputs": "<base64 of the picture>", "parameters": {…}}.', param="inputs")
    fields = {} if body.get("parameters") is None else body["parameters"]
    if not isinstance(fields, dict):
        raise InvalidParameter("'parameters' must be an object.", param="parameters")
    if others := sorted(set(body) - {"inputs", "parameters"}):
        raise InvalidParameter("'inputs' and 'parameters' are all that is read here.", param=others[0][:64])
    size = fields.pop("target_size", None)
    if size not in (None, {"width": IMAGE_SIZE, "height": IMAGE_SIZE}):
        raise InvalidParameter(f"Only pictures of {IMAGE_SIZE}x{IMAGE_SIZE} are made here.", param="target_size")
    return _decode_base64(body["inputs"]), fields


def _decode_base64(text: str) -> bytes:
    """Plain base64, or the same in a data URL."""
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        # Some encoders break it into lines.
        return base64.b64decode("".join(text.split()), validate=True)
    except (ValueError, binascii.Error) as error:
        raise InvalidImage("'inputs' is not base64.", param="inputs") from error


def _once(items: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Pairs to a dict; a field that comes twice is refused rather than half of it ignored."""
    fields: dict[str, Any] = {}
    for name, value in items:
        if name in fields:
            raise InvalidParameter(f"'{name[:64]}' was sent more than once.", param=name[:64])
        fields[name] = value
    return fields


def acceptable(accept: str) -> OutputFormat:
    """The first format that an `Accept` header likes best (RFC 9110, section 12.5.1); PNG if it does not mind.

    Raises:
        NotAcceptable: it admits none.
    """
    best, best_quality = None, 0.0
    for output_format in OutputFormat:
        quality = _quality(accept, output_format.media_type)
        if quality > best_quality:
            best, best_quality = output_format, quality
    if best is None:
        known = ", ".join(output_format.media_type for output_format in OutputFormat)
        raise NotAcceptable(f"The Accept header admits no format that is made here: {known}.", param="Accept")
    return best


def _quality(accept: str, media_type: str) -> float:
    """The weight of the most specific range of an `Accept` header that covers a media type; 0 if none does."""
    weights: dict[int, float] = {}
    for part in accept.split(","):
        pattern, *options = (piece.strip().lower() for piece in part.split(";"))
        specificity = {"*/*": 1, media_type.partition("/")[0] + "/*": 2, media_type: 3}.get(pattern, 0)
        weight = next((option[2:] for option in options if option.startswith("q=")), "1")
        try:
            weights[specificity] = max(0.0, min(1.0, float(weight)))
        except ValueError:
            weights[specificity] = 1.0
    weights.pop(0, None)
    return weights[max(weights)] if weights else 0.0
