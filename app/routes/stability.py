"""`POST /v2beta/stable-image/generate/sd3`: Stability AI's REST API, with `mode=image-to-image`."""

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel

from app.edits import EditedImage, Upload
from app.errors import InvalidParameter, ServiceError
from app.pixels import OutputFormat
from app.request import Img2ImgRequest, parse_request
from app.routes.dependencies import service_of
from app.web.bodies import base64_text
from app.web.dialects import Dialect
from app.web.forms import AS_FILE, read_form
from app.web.negotiation import PICTURES, prefers
from app.web.requests import picture_headers, picture_response, reject_query_fields, request_info, unless_disconnected

# Stability AI describes this itself.
router = APIRouter(prefix="/v2beta/stable-image", include_in_schema=False, dependencies=[Depends(reject_query_fields)])

_MODE = "image-to-image"
_FIELDS = ("image", "mode", "model", "cfg_scale")
_UNSUPPORTED = ("style_preset", "aspect_ratio")


@router.post("/generate/sd3", response_model=None)
async def sd3(request: Request) -> Response:
    """A form in; the picture itself out, or JSON that holds it, as `Accept` says."""
    files, fields = await read_form(request)
    if "image" not in files:
        raise InvalidParameter(AS_FILE, param="image")
    asked, model = parse_sd3(fields)
    service = service_of(request)
    service.check_model(model)
    picture = await unless_disconnected(request, service.edit(Upload(files.pop("image")), asked, request_info(request)))
    as_json = prefers(request.headers.get("accept", ""), "application/json", PICTURES)
    answer = _in_json(picture) if as_json else picture_response(picture)
    answer.headers["Seed"] = str(picture.seed)
    answer.headers["Finish-Reason"] = "SUCCESS"
    return answer


def parse_sd3(fields: Mapping[str, str]) -> tuple[Img2ImgRequest, str | None]:
    """The texts of a form to what is asked for, and the name that was given for the model.

    `strength` has the direction of diffusers' there too: 1 keeps nothing of the picture. A `seed` of 0 is a random one.

    Raises:
        InvalidParameter: names the field that cannot be honoured.
    """
    left: dict[str, Any] = {"output_format": OutputFormat.PNG, **fields}
    mode = left.pop("mode", "text-to-image")
    if mode != _MODE:
        raise InvalidParameter(f"Only mode={_MODE} is served here.", param="mode")
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


def _in_json(picture: EditedImage) -> JSONResponse:
    body = {"image": base64_text(picture.data), "finish_reason": "SUCCESS", "seed": picture.seed}
    media_type = f"application/json; type={picture.output_format.media_type}"
    return JSONResponse(
        body, headers={"Content-Type": media_type, "Cache-Control": "no-store", **picture_headers(picture)}
    )


class StabilityError(BaseModel):
    """An error."""

    id: str
    name: str
    errors: list[str]


def _render_error(error: ServiceError, request_id: str) -> tuple[int, StabilityError]:
    return error.status, StabilityError(id=request_id, name=error.code, errors=[error.message])


DIALECT = Dialect(
    router=router,
    prefixes=("/v2beta/",),
    edit_path="/v2beta/stable-image/generate/sd3",
    render_error=_render_error,
)
