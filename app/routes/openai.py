"""`/v1/images/edits`, `/v1/images/variations` and `/v1/models`: OpenAI's images API, as its own SDKs speak it."""

import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel

from app.edits import EditedImage, StepDone, Upload
from app.errors import InvalidParameter, ServiceError
from app.pixels import IMAGE_SIZE, OutputFormat
from app.request import Img2ImgRequest, in_a_row, parse_request
from app.routes.dependencies import service_of
from app.service import Service
from app.web.bodies import base64_text, data_url, whole
from app.web.dialects import Dialect
from app.web.forms import read_form
from app.web.requests import gather_or_cancel, picture_headers, reject_query_fields, request_info, unless_disconnected
from app.web.sse import Event, event_stream

# OpenAI describes these itself.
router = APIRouter(prefix="/v1", include_in_schema=False, dependencies=[Depends(reject_query_fields)])

_SIZE = f"{IMAGE_SIZE}x{IMAGE_SIZE}"
_MAX_PICTURES = 10
_MAX_PARTIAL_IMAGES = 3
_MAX_FILES = 17
"""Sixteen pictures and a mask, as OpenAI takes them: it can be said of each why it is not taken here."""

_IMAGE = ("image", "image[]", "image[0]")
"""What SDKs call a picture: alone, or in a list."""

_MASK = ("mask", "mask_image")
"""Other servers of this API have the second name."""

_ONE_PICTURE = "Send one picture, as the file 'image'."

_FIELDS = (
    *("image", "model", "n", "size", "background", "response_format", "output_compression"),
    *("stream", "partial_images"),
)
"""What is taken besides the fields that all dialects have."""

_HINTS = ("user", "quality", "input_fidelity", "moderation")
"""What says how, to another model or to nobody: it changes nothing here, and is no mistake."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a caller of OpenAI's API asks for.

    Attributes:
        image: the uploaded file.
        requests: one for each picture, of seeds that follow each other.
        model: the name that was given for it.
        url: whether pictures come as data: URLs, instead of plain base64.
        stream: whether they come as events.
        partial_images: how many previews come before.
    """

    image: Upload
    requests: tuple[Img2ImgRequest, ...]
    model: str | None
    url: bool
    stream: bool
    partial_images: int


def parse_edit(files: Mapping[str, bytes], fields: Mapping[str, str]) -> Asked:
    """The parts of a form to what is asked for.

    Raises:
        InvalidParameter: names the part that cannot be honoured, and says what can.
    """
    left = {name: value for name, value in fields.items() if name not in _HINTS}
    image = _image(files, left)
    count = whole(left.pop("n", 1), "n", 1, _MAX_PICTURES)
    partial_images = whole(left.pop("partial_images", 0), "partial_images", 0, _MAX_PARTIAL_IMAGES)
    stream = _choice(left, "stream", "false", ("false", "true")) == "true"
    if stream and count > 1:
        raise InvalidParameter("A stream has one picture: send n=1, or no stream.", param="n")
    if partial_images and not stream:
        raise InvalidParameter("partial_images come with stream=true only.", param="partial_images")
    _choice(left, "size", "auto", ("auto", _SIZE))
    _choice(left, "background", "auto", ("auto", "opaque"))
    url = _choice(left, "response_format", "b64_json", ("b64_json", "url")) == "url"
    if stream and url:
        raise InvalidParameter("A stream has no URLs: leave response_format out, or stream.", param="response_format")
    model, compressed = left.pop("model", None), "output_compression" in left
    compression = whole(left.pop("output_compression", 100), "output_compression", 0, 100)
    request = parse_request({"prompt": "", "output_format": OutputFormat.PNG, **left}, _FIELDS)
    if request.output_format is OutputFormat.PNG:
        # SDKs may send 100, which takes nothing away from it.
        if compression < 100:
            raise InvalidParameter(
                "A PNG has no output_compression: leave it out, or send output_format=webp or jpeg.",
                param="output_compression",
            )
    elif compressed:
        request = request.model_copy(update={"quality": max(1, compression)})
    return Asked(Upload(image, count), in_a_row(request, count), model, url, stream, partial_images)


def _image(files: Mapping[str, bytes], fields: Mapping[str, str]) -> bytes:
    for name in _MASK:
        if name in files or name in fields:
            raise InvalidParameter("A mask cannot be honoured: the whole picture is redrawn. Leave it out.", param=name)
    if "url" in fields:
        raise InvalidParameter("Nothing is fetched from an address: send the picture as the file 'image'.", param="url")
    if others := sorted(name for name in files if name.partition("[")[0] != "image"):
        raise InvalidParameter(f"The file '{others[0][:64]}' cannot be used. Leave it out.", param=others[0][:64])
    pictures = [name for name in _IMAGE if name in files]
    if len(pictures) != 1 or len(files) != 1:
        raise InvalidParameter(_ONE_PICTURE, param="image")
    return files[pictures[0]]


def _choice(fields: dict[str, str], name: str, default: str, choices: tuple[str, ...]) -> str:
    """Takes a field out of the others."""
    value = fields.pop(name, default)
    if value not in choices:
        raise InvalidParameter(f"{name} can be {' or '.join(choices)} here, and nothing else.", param=name)
    return value


@router.post("/images/edits", response_model=None)
async def edits(request: Request) -> Response:
    """A form with `image` and `prompt`; `strength`, `seed` and the other fields of `/img2img` are taken as well."""
    return await _answer(request, prompt_needed=True)


@router.post("/images/variations", response_model=None)
async def variations(request: Request) -> Response:
    """The same without a prompt."""
    return await _answer(request, prompt_needed=False)


async def _answer(request: Request, *, prompt_needed: bool) -> Response:
    try:
        files, fields = await read_form(request, _MAX_FILES)
    except InvalidParameter as error:
        if error.param not in _IMAGE:
            raise
        # A list of pictures comes as parts that all have one name, which only the SDK knows.
        raise InvalidParameter(_ONE_PICTURE, param="image") from error
    if prompt_needed and "prompt" not in fields:
        raise InvalidParameter("Send a text field 'prompt'; it may be empty.", param="prompt")
    asked = parse_edit(files, fields)
    files.clear()
    service = service_of(request)
    service.check_model(asked.model)
    service.check_count(len(asked.requests), "n")
    if asked.stream:
        return await event_stream(request, _events(service, request, asked))
    work = (service.edit(asked.image, one, request_info(request)) for one in asked.requests)
    pictures = await unless_disconnected(request, gather_or_cancel(*work))
    return JSONResponse(
        {
            "created": int(time.time()),
            "data": [_datum(picture, url=asked.url) for picture in pictures],
            **_facts(asked),
            "usage": _usage(),
        },
        headers=picture_headers(*pictures),
    )


async def _events(service: Service, request: Request, asked: Asked) -> AsyncGenerator[Event, None]:
    (one,) = asked.requests
    previews = spread(one.steps_run, asked.partial_images)
    output_format = one.output_format or OutputFormat.PNG
    index = 0
    async with aclosing(service.watch(asked.image, one, request_info(request), previews, output_format)) as watched:
        async for seen in watched:
            match seen:
                case StepDone(preview=bytes(preview)):
                    body = {"b64_json": base64_text(preview), "partial_image_index": index}
                    yield _event("image_edit.partial_image", asked, body)
                    index += 1
                case EditedImage():
                    told = {"seed": seen.seed, "tokens_cut": seen.tokens_cut, "usage": _usage()}
                    yield _event("image_edit.completed", asked, {"b64_json": base64_text(seen.data), **told}, last=True)
                case _:
                    pass


def spread(steps_run: int, count: int) -> frozenset[int]:
    """After which steps `count` previews are shown, evenly; after all but the last if there are no more."""
    steps = steps_run - 1
    count = min(count, steps)
    return frozenset(round((i + 1) * steps_run / (count + 1)) for i in range(count))


def _event(name: str, asked: Asked, body: Mapping[str, Any], *, last: bool = False) -> Event:
    return Event(name, {"type": name, "created_at": int(time.time()), **_facts(asked), **body}, last)


def _facts(asked: Asked) -> dict[str, str]:
    output_format = asked.requests[0].output_format or OutputFormat.PNG
    return {"background": "opaque", "output_format": output_format.value, "quality": "auto", "size": _SIZE}


def _usage() -> dict[str, Any]:
    """Nothing is counted in tokens here; the SDK's type has no other word for that."""
    details = {"image_tokens": 0, "text_tokens": 0}
    return {"input_tokens": 0, "input_tokens_details": details, "output_tokens": 0, "total_tokens": 0}


def _datum(picture: EditedImage, *, url: bool) -> dict[str, Any]:
    if url:
        return {"url": data_url(picture.data, picture.output_format), "seed": picture.seed}
    return {"b64_json": base64_text(picture.data), "seed": picture.seed}


@router.get("/models")
async def models(request: Request) -> dict[str, Any]:
    """The one model that is served."""
    service = service_of(request)
    return {"object": "list", "data": [_model(service, service.model_name)]}


@router.get("/models/{name:path}")
async def model(request: Request, name: str) -> dict[str, Any]:
    """By its name, or one that requests may give for it."""
    service = service_of(request)
    service.check_model(name)
    return _model(service, name)


def _model(service: Service, name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": service.started, "owned_by": "img2img"}


class OpenAIErrorDetail(BaseModel):
    """What is wrong."""

    message: str
    type: str
    param: str | None
    code: str


class OpenAIError(BaseModel):
    """An error."""

    error: OpenAIErrorDetail


def _render_error(error: ServiceError, request_id: str) -> tuple[int, OpenAIError]:
    # All invalid requests have status 400: OpenAI's SDKs have a class for that one.
    status = 400 if error.status in (406, 415, 422) else error.status
    kind = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}.get(status)
    return status, OpenAIError(
        error=OpenAIErrorDetail(
            message=error.message,
            type=kind or ("server_error" if status >= 500 else "invalid_request_error"),
            param=error.param,
            code="invalid_api_key" if status == 401 else error.code,
        )
    )


DIALECT = Dialect(router=router, prefixes=("/v1/",), edit_path="/v1/images/edits", render_error=_render_error)
