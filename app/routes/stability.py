"""`POST /v2beta/stable-image/generate/sd3`: Stability AI's REST API, with `mode=image-to-image`."""

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response
from pydantic import BaseModel, Field

from app.edits import EditedImage, Upload
from app.errors import InvalidParameter, ServiceError
from app.pixels import OutputFormat
from app.request import MAX_SEED, Img2ImgRequest, parse_request
from app.routes.dependencies import service_of
from app.web.base64_files import base64_text
from app.web.dialects import Dialect
from app.web.disconnect import unless_disconnected
from app.web.fields import choices, names
from app.web.forms import AS_FILE, read_form
from app.web.negotiation import IMAGE_TYPES, prefers
from app.web.openapi import KEYS, error_responses, form_body, image_response
from app.web.requests import reject_query_fields, request_info
from app.web.responses import image_file_response, json_of_images

router = APIRouter(
    prefix="/v2beta/stable-image", tags=["Stability AI"], dependencies=[Depends(reject_query_fields), *KEYS]
)


class Sd3Fields(BaseModel):
    """Fields of a form in addition to those of `/img2img`."""

    image: bytes = Field(description="A PNG, JPEG or WebP file.")
    mode: Literal["image-to-image"] = Field(description="The only mode that is served.")
    model: str | None = Field(None, description="The model's name, or one that the service takes for it.")
    cfg_scale: float = Field(0.0, ge=0, le=20, description="The same as `guidance_scale`; send one of them.")


class Sd3Defaults(BaseModel):
    """Fields of `/img2img` that mean something else here."""

    seed: int = Field(0, ge=0, le=MAX_SEED, description="The same seed gives the same image; 0 is a random one.")
    output_format: OutputFormat = Field(OutputFormat.PNG, description="`png`, `webp` or `jpeg`.")


class Sd3Answer(BaseModel):
    """The image in JSON, if `Accept` asks for `application/json`."""

    image: str = Field(description="The file as base64.")
    finish_reason: Literal["SUCCESS"] = "SUCCESS"
    seed: int = Field(description="The seed that makes the image again.")


class Sd3Error(BaseModel):
    """An error."""

    id: str = Field(description="The id that the log knows the request by.")
    name: str = Field(examples=["invalid_parameter"])
    errors: list[str] = Field(description="What is wrong, and what to do.")


_FIELDS = names(Sd3Fields)
_UNSUPPORTED = ("style_preset", "aspect_ratio")


@router.post(
    "/generate/sd3",
    summary="Edit an image",
    operation_id="stability_sd3",
    response_model=None,
    responses={
        200: {**image_response("The image."), "model": Sd3Answer},
        **error_responses(Sd3Error, (400, 401, 403, 404, 408, 413, 415, 422, 429, 500, 503)),
    },
    openapi_extra=form_body(Img2ImgRequest, Sd3Defaults, Sd3Fields),
)
async def sd3(request: Request) -> Response:
    """A form in; the image itself out, or JSON that holds it, as `Accept` says."""
    files, fields = await read_form(request)
    if "image" not in files:
        raise InvalidParameter(AS_FILE, param="image")
    asked, model = parse_sd3(fields)
    service = service_of(request)
    service.check_model(model)
    image = await unless_disconnected(request, service.edit(Upload(files.pop("image")), asked, request_info(request)))
    answer: Response = image_file_response(image)
    if prefers(request.headers.get("accept", ""), "application/json", IMAGE_TYPES):
        media_type = f"application/json; type={image.output_format.media_type}"
        answer = await json_of_images(partial(_in_json, image), [image], media_type)
        answer.headers["Cache-Control"] = "no-store"
    answer.headers["Seed"] = str(image.seed)
    answer.headers["Finish-Reason"] = "SUCCESS"
    return answer


def parse_sd3(fields: Mapping[str, str]) -> tuple[Img2ImgRequest, str | None]:
    """The texts of a form to what is asked for, and the model's name in it.

    `strength` has the direction of diffusers' there too: 1 keeps nothing of the image. A `seed` of 0 is a random one.

    Raises:
        InvalidParameter: names the field that cannot be honoured.
    """
    left: dict[str, Any] = {"output_format": Sd3Defaults().output_format, **fields}
    mode = left.pop("mode", "text-to-image")
    if mode not in (modes := choices(Sd3Fields, "mode")):
        raise InvalidParameter(f"Only mode={modes[0]} is served here.", param="mode")
    for name in _UNSUPPORTED:
        if name in left:
            raise InvalidParameter(f"{name} cannot be honoured here. Leave it out.", param=name)
    if "prompt" not in left:
        raise InvalidParameter("Send a text field 'prompt'.", param="prompt")
    if left.get("seed") == "0":
        del left["seed"]
    model = left.pop("model", None)
    if "cfg_scale" not in left:
        return parse_request(left, _FIELDS), model
    if "guidance_scale" in left:
        raise InvalidParameter(
            "cfg_scale was sent twice: guidance_scale is the same. Leave one out.", param="cfg_scale"
        )
    left["guidance_scale"] = left.pop("cfg_scale")
    return parse_request(left, _FIELDS, {"guidance_scale": "cfg_scale"}), model


def _in_json(image: EditedImage) -> str:
    return Sd3Answer(image=base64_text(image.data), seed=image.seed).model_dump_json()


def _render_error(error: ServiceError, request_id: str) -> tuple[int, Sd3Error]:
    return error.status, Sd3Error(id=request_id, name=error.code, errors=[error.message])


DIALECT = Dialect(
    router=router,
    prefixes=("/v2beta/",),
    edit_path="/v2beta/stable-image/generate/sd3",
    render_error=_render_error,
)
