"""`POST /img2img`: a form, a raw image, or Hugging Face's JSON in; an image out."""

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any, Literal
from urllib.parse import unquote_to_bytes

from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse
from pydantic import BaseModel, Field

from app.edits import Queued, RequestInfo, StepDone, Upload
from app.errors import InvalidParameter, UnsupportedMediaType
from app.pixels import IMAGE_SIZE, OutputFormat
from app.request import MAX_PROMPT_LENGTH, Img2ImgRequest, parse_request
from app.routes.dependencies import service_of
from app.service import Service
from app.web.base64_files import data_url, decode_base64
from app.web.bodies import read_body
from app.web.dialects import Dialect
from app.web.disconnect import unless_disconnected
from app.web.fields import boolean, mapping, names, unique
from app.web.forms import AS_FILE, read_form
from app.web.json_body import read_json
from app.web.negotiation import IMAGE_TYPES, best_format, prefers
from app.web.openapi import KEYS, body, error_responses, image_response, object_schema
from app.web.problems import Problem
from app.web.requests import request_info
from app.web.responses import image_file_response
from app.web.sse import EVENTS, Event, event_stream

router = APIRouter()


class UploadFields(BaseModel):
    """The upload of a form."""

    image: bytes = Field(description="The image: PNG, JPEG or WebP, of any size.")


class TargetSize(BaseModel):
    """A size in pixels."""

    width: Literal[512]
    height: Literal[512]


class HuggingFaceParameters(BaseModel):
    """The fields of Hugging Face's `parameters` that are not those of a form."""

    prompt: str = Field("", max_length=MAX_PROMPT_LENGTH, description=Img2ImgRequest.model_fields["prompt"].description)
    target_size: TargetSize | None = Field(None, description="The size of the answer; there is only one.")


class HuggingFaceBody(BaseModel):
    """The JSON body of Hugging Face's `InferenceClient.image_to_image`."""

    inputs: str = Field(description="The image as base64.", json_schema_extra={"format": "byte"})
    parameters: dict[str, Any] | None = Field(None, description="The fields.")


_PARAMETERS = object_schema(Img2ImgRequest, HuggingFaceParameters)

_BODY = body(
    {
        "multipart/form-data": {"schema": object_schema(UploadFields, Img2ImgRequest)},
        "image/*": {
            "schema": {"type": "string", "format": "binary", "description": "The image. Fields go into the query."}
        },
        "application/json": {"schema": object_schema(HuggingFaceBody, parameters=_PARAMETERS)},
    }
)

_EVENTS = {EVENTS: {"schema": {"type": "string", "description": "Events, if `Accept` asks for them."}}}

_RAW = ("application/octet-stream", "application/x-image", "")
"""Generic media types of an image; the second is SageMaker's own."""


# SageMaker sends its requests to /invocations.
@router.post("/invocations", response_class=StreamingResponse, include_in_schema=False)
@router.post(
    "/img2img",
    summary="Redraw an image as a prompt says",
    operation_id="img2img",
    tags=["images"],
    response_class=StreamingResponse,
    responses={
        200: image_response(f"The image, {IMAGE_SIZE}x{IMAGE_SIZE}.", _EVENTS),
        **error_responses(Problem, (400, 401, 403, 406, 408, 413, 415, 422, 429, 500, 503)),
    },
    dependencies=KEYS,
    openapi_extra=_BODY,
)
async def img2img(request: Request) -> Response:
    """Takes the image as `multipart/form-data`, as a raw body, or as base64 in Hugging Face's JSON.

    The response is the image itself; the seed in `X-Seed` makes it again. The request header `X-Request-Timeout` is the
    number of seconds that you will wait. With `Accept: text/event-stream` the response is events: `waiting` with the
    number of requests `ahead`, `step` with `step` and `steps`, and `picture`. With `X-Previews: 1` each step but the
    last has a second `step` event, with a `preview` as a data: URL.
    """
    call = request_info(request)
    upload, fields, other_names = await _read(request)
    asked = parse_request(fields, other_names)
    service = service_of(request)
    accept = request.headers.get("accept") or "*/*"
    as_events = prefers(accept, EVENTS, IMAGE_TYPES)
    if asked.output_format is None:
        # An event may hold an image even if the header admits none.
        best = best_format(f"{accept}, */*;q=0.001" if as_events else accept)
        asked = asked.model_copy(update={"output_format": best})
    if as_events:
        previews = boolean(request.headers.get("x-previews", "0"), "X-Previews")
        return await event_stream(request, _events(service, upload, asked, call, previews))
    image = await unless_disconnected(request, service.edit(upload, asked, call))
    return image_file_response(image)


async def _events(
    service: Service, upload: Upload, asked: Img2ImgRequest, call: RequestInfo, previews: bool
) -> AsyncGenerator[Event, None]:
    wanted = frozenset(range(1, asked.steps_run)) if previews else frozenset()
    async with aclosing(service.watch(upload, asked, call, wanted)) as watched:
        async for seen in watched:
            match seen:
                case Queued():
                    yield Event("waiting", {"ahead": seen.ahead})
                case StepDone():
                    preview = {"preview": data_url(seen.preview.data, OutputFormat.JPEG)} if seen.preview else {}
                    yield Event("step", {"step": seen.step, "steps": seen.steps, **preview})
                case _:
                    body = {
                        "image": data_url(seen.data, seen.output_format),
                        "seed": seen.seed,
                        "steps_run": seen.steps_run,
                        "start_timestep": seen.start_timestep,
                        "tokens_cut": seen.tokens_cut,
                        "seconds": seen.seconds,
                    }
                    yield Event("picture", body, last=True)


async def _read(request: Request) -> tuple[Upload, dict[str, Any], tuple[str, ...]]:
    """The image, the fields and the names of further fields of a body of any kind. Fields may be in the query too."""
    query = request.query_params.multi_items()
    try:
        unquote_to_bytes(request.scope["query_string"]).decode()
    except UnicodeDecodeError:
        raise InvalidParameter("The query is not in UTF-8. Encode its text as UTF-8 before you escape it.") from None
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type == "multipart/form-data":
        files, parts = await read_form(request)
        if "image" not in files:
            raise InvalidParameter(AS_FILE, param="image")
        upload, fields = Upload(files["image"]), unique([*query, *parts.items()])
        if "prompt" not in fields:
            raise InvalidParameter("Send a text field 'prompt'; it may be empty.", param="prompt")
        return upload, fields, names(UploadFields)
    if media_type == "application/json":
        image, fields = await read_json(request, parse_hugging_face)
        present = {name: value for name, value in fields.items() if value is not None}
        return Upload(image), {"prompt": "", **unique([*query, *present.items()])}, ("target_size",)
    # Hugging Face's client sends bytes without a type.
    if media_type.startswith("image/") or media_type in _RAW:
        return Upload(await read_body(request)), {"prompt": "", **unique(query)}, ()
    raise UnsupportedMediaType(
        f"Content-Type {media_type[:64]} is not taken here. Send multipart/form-data with a file 'image' "
        "and a text 'prompt', or a raw image/png, image/jpeg or image/webp body, or application/json."
    )


def parse_hugging_face(body: Mapping[str, Any]) -> tuple[bytes, dict[str, Any]]:
    """`{"inputs": base64, "parameters": {...}}`, as `InferenceClient.image_to_image` sends it.

    Raises:
        InvalidImage: the image is not base64.
        InvalidParameter: it is JSON of another shape.
    """
    if not isinstance(body.get("inputs"), str):
        raise InvalidParameter('Send {"inputs": "<base64 of the image>", "parameters": {…}}.', param="inputs")
    fields = mapping(body, "parameters")
    if others := sorted(set(body) - set(HuggingFaceBody.model_fields)):
        raise InvalidParameter("'inputs' and 'parameters' are all that is read here.", param=others[0][:64])
    size = fields.pop("target_size", None)
    if size not in (None, {"width": IMAGE_SIZE, "height": IMAGE_SIZE}):
        raise InvalidParameter(f"Only images of {IMAGE_SIZE}x{IMAGE_SIZE} are made here.", param="target_size")
    return decode_base64(body["inputs"], "inputs"), fields


DIALECT = Dialect(router=router, edit_path="/img2img")
