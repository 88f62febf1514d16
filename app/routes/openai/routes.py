"""`/v1/images/edits`, `/v1/images/variations` and `/v1/models`: OpenAI's images API, as its own SDKs speak it."""

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from typing import Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from app.edits import EditedImage, EncodedPreview, StepDone
from app.errors import InvalidParameter, ServiceError
from app.request import Img2ImgRequest
from app.routes.dependencies import service_of
from app.routes.openai.fields import IMAGE, ONE_IMAGE, EditRequest, parse_edit
from app.routes.openai.models import (
    EditFields,
    Hints,
    OpenAICompleted,
    OpenAIError,
    OpenAIErrorDetail,
    OpenAIImage,
    OpenAIImages,
    OpenAIModel,
    OpenAIModelList,
    OpenAIPartialImage,
    OptionalPrompt,
    OutputFields,
)
from app.service import Service
from app.web.base64_files import base64_text, data_url
from app.web.dialects import Dialect
from app.web.disconnect import gather_or_cancel, unless_disconnected
from app.web.forms import read_form
from app.web.openapi import KEYS, error_responses, form_body, image_headers
from app.web.requests import reject_query_fields, request_info
from app.web.responses import json_of_images
from app.web.sse import EVENTS, Event, event_stream

router = APIRouter(prefix="/v1", tags=["OpenAI"], dependencies=[Depends(reject_query_fields), *KEYS])

_MAX_FILES = 17
"""Sixteen images and a mask, as OpenAI takes them: the error says of each why it is not taken here."""

_IMAGES: dict[str, Any] = {
    "description": "The images.",
    "model": OpenAIImages,
    "headers": image_headers(),
    "content": {EVENTS: {"schema": {"type": "string", "description": "Events, if `stream` is true."}}},
}
_ERRORS = error_responses(OpenAIError, (400, 401, 403, 404, 408, 413, 429, 500, 503))


@router.post(
    "/images/edits",
    summary="Edit an image",
    operation_id="openai_edits",
    response_model=None,
    responses={200: _IMAGES, **_ERRORS},
    openapi_extra=form_body(Img2ImgRequest, OutputFields, EditFields, Hints),
)
async def edits(request: Request) -> Response:
    """A form with `image` and `prompt`; `strength`, `seed` and the other fields of `/img2img` are taken as well."""
    return await _answer(request, prompt_needed=True)


@router.post(
    "/images/variations",
    summary="Edit an image without a prompt",
    operation_id="openai_variations",
    response_model=None,
    responses={200: _IMAGES, **_ERRORS},
    openapi_extra=form_body(Img2ImgRequest, OutputFields, OptionalPrompt, EditFields, Hints),
)
async def variations(request: Request) -> Response:
    """The same without a prompt."""
    return await _answer(request, prompt_needed=False)


async def _answer(request: Request, *, prompt_needed: bool) -> Response:
    try:
        files, fields = await read_form(request, _MAX_FILES)
    except InvalidParameter as error:
        if error.param not in IMAGE:
            raise
        # A list of images comes as parts that all have one name, which only the SDK knows.
        raise InvalidParameter(ONE_IMAGE, param="image") from error
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
    images = await unless_disconnected(request, gather_or_cancel(*work))
    return await json_of_images(partial(_images, asked, images), images)


def _images(asked: EditRequest, images: list[EditedImage]) -> str:
    return OpenAIImages(
        created=int(time.time()),
        data=[_datum(image, url=asked.url) for image in images],
        output_format=asked.output_format,
        size=images[0].size,
    ).model_dump_json(exclude_none=True)


async def _events(service: Service, request: Request, asked: EditRequest) -> AsyncGenerator[Event, None]:
    (one,) = asked.requests
    previews = spread(one.steps_run, asked.partial_images)
    output_format = asked.output_format
    index = 0
    async with aclosing(service.watch(asked.image, one, request_info(request), previews, output_format)) as watched:
        async for seen in watched:
            match seen:
                case StepDone(preview=EncodedPreview(data=data, size=size)):
                    yield _event(
                        OpenAIPartialImage(
                            created_at=int(time.time()),
                            output_format=output_format,
                            size=size,
                            b64_json=base64_text(data),
                            partial_image_index=index,
                        )
                    )
                    index += 1
                case EditedImage():
                    completed = OpenAICompleted(
                        created_at=int(time.time()),
                        output_format=output_format,
                        size=seen.size,
                        b64_json=base64_text(seen.data),
                        seed=seen.seed,
                        tokens_cut=seen.tokens_cut,
                    )
                    yield _event(completed, last=True)
                case _:
                    pass


def spread(steps_run: int, count: int) -> frozenset[int]:
    """After which steps `count` previews are shown, evenly; after all but the last if there are no more."""
    steps = steps_run - 1
    count = min(count, steps)
    return frozenset(round((i + 1) * steps_run / (count + 1)) for i in range(count))


def _event(event: OpenAIPartialImage | OpenAICompleted, *, last: bool = False) -> Event:
    return Event(event.type, event.model_dump(mode="json"), last)


def _datum(image: EditedImage, *, url: bool) -> OpenAIImage:
    if url:
        return OpenAIImage(url=data_url(image.data, image.output_format), seed=image.seed)
    return OpenAIImage(b64_json=base64_text(image.data), seed=image.seed)


@router.get("/models", summary="List the models", responses=error_responses(OpenAIError, (401,)))
async def models(request: Request) -> OpenAIModelList:
    """The one model that is served."""
    service = service_of(request)
    return OpenAIModelList(data=[OpenAIModel(id=service.model_name, created=service.started)])


@router.get(
    "/models/{name:path}",
    summary="A model",
    responses={"4XX": {"model": OpenAIError, "description": "There is no such model."}},
)
async def model(request: Request, name: str) -> OpenAIModel:
    """By its name, or one that requests may give for it."""
    service = service_of(request)
    service.check_model(name, in_path=True)
    return OpenAIModel(id=name, created=service.started)


def _render_error(error: ServiceError, request_id: str) -> tuple[int, OpenAIError]:
    # All invalid requests have status 400: OpenAI's SDKs have a class for that one.
    status = 400 if error.status in (406, 415, 422) else error.status
    kind = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}.get(status)
    detail = OpenAIErrorDetail(
        message=error.message,
        type=kind or ("server_error" if status >= 500 else "invalid_request_error"),
        param=error.param,
        code="invalid_api_key" if status == 401 else error.code,
    )
    return status, OpenAIError(error=detail)


DIALECT = Dialect(router=router, prefixes=("/v1/",), edit_path="/v1/images/edits", render_error=_render_error)
