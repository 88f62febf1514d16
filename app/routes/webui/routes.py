"""`/sdapi/v1/…`: the image-to-image API of AUTOMATIC1111's web UI, for clients like `webuiapi`."""

import json
from datetime import UTC, datetime
from functools import partial
from typing import Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from app.edits import EditedImage
from app.errors import InvalidParameter, ServiceError
from app.infotext import parse_infotext
from app.pixels import OutputFormat
from app.routes.dependencies import service_of
from app.routes.webui.fields import EditRequest, aliases, parse_webui
from app.routes.webui.models import (
    WebUIAnswer,
    WebUIError,
    WebUIFields,
    WebUIModel,
    WebUIOptions,
    WebUIPngInfo,
    WebUIPngInfoFields,
    WebUIProgress,
    WebUISampler,
    WebUISamplerInfo,
    WebUIState,
)
from app.routes.webui.runs import Runs
from app.service import Service
from app.web.app_state import app_singleton
from app.web.base64_files import base64_text, decode_base64
from app.web.dialects import Dialect
from app.web.disconnect import unless_disconnected
from app.web.json_body import read_json
from app.web.openapi import KEYS, error_responses, image_headers, json_body, object_schema
from app.web.request_state import request_state
from app.web.requests import reject_query_fields, request_info
from app.web.responses import json_of_images

router = APIRouter(
    prefix="/sdapi/v1",
    tags=["Web UI"],
    dependencies=[Depends(reject_query_fields), *KEYS],
    responses=error_responses(WebUIError, (401, 403, 422, 503)),
)

_ERRORS = error_responses(WebUIError, (400, 401, 403, 404, 408, 409, 413, 415, 422, 429, 500, 503))


@router.post(
    "/img2img",
    summary="Edit an image",
    operation_id="webui_img2img",
    response_model=None,
    responses={200: {"model": WebUIAnswer, "description": "The images.", "headers": image_headers()}, **_ERRORS},
    openapi_extra=json_body(object_schema(WebUISampler, WebUIFields)),
)
async def img2img(request: Request) -> Response:
    """Images as base64, the fields with the values that were taken, and the web UI's `info`, JSON in a text."""
    service = service_of(request)
    asked, sent = await read_json(request, partial(_parse, sampler=service.sampler))
    service.check_model(asked.model)
    service.check_count(len(asked.requests), "batch_size")
    steps = sum(one.steps_run for one in asked.requests)
    previews = frozenset(range(1, asked.requests[0].steps_run))
    with app_singleton(request, Runs).running(request_state(request.scope).caller, steps) as run:
        watched = [
            service.watch(asked.image, one, request_info(request), previews, OutputFormat.PNG) for one in asked.requests
        ]
        images = await unless_disconnected(request, run.images(*watched))
    info = _info(service.model_name, request.app.version, asked, images)
    answer = await json_of_images(partial(_answer, {**sent, **asked.taken}, info, asked, images), images)
    if asked.clamped:
        answer.headers["X-Clamped"] = ", ".join(asked.clamped)
    return answer


def _parse(body: dict[str, Any], sampler: str) -> tuple[EditRequest, dict[str, Any]]:
    """What is asked for, and the fields that go back with the answer."""
    asked = parse_webui(body, sampler)
    return asked, {name: value for name, value in body.items() if value is not None and name != "init_images"}


def _answer(parameters: dict[str, Any], info: dict[str, Any], asked: EditRequest, images: list[EditedImage]) -> str:
    encoded = [base64_text(image.data) for image in images] if asked.send_images else []
    # Not by pydantic: fields go back as they came, even if UTF-8 or strict JSON cannot hold them.
    return json.dumps({"images": encoded, "parameters": parameters, "info": json.dumps(info)})


def _info(model: str, version: str, asked: EditRequest, images: list[EditedImage]) -> dict[str, Any]:
    first, seeds = asked.requests[0], [image.seed for image in images]
    return {
        "prompt": first.prompt,
        "all_prompts": [first.prompt] * len(images),
        "negative_prompt": first.negative_prompt or "",
        "all_negative_prompts": [first.negative_prompt or ""] * len(images),
        "seed": seeds[0],
        "all_seeds": seeds,
        "width": images[0].width,
        "height": images[0].height,
        "sampler_name": asked.sampler,
        "cfg_scale": first.guidance_scale,
        "steps": first.num_inference_steps,
        "batch_size": asked.taken["batch_size"],
        "sd_model_name": model,
        "denoising_strength": first.strength,
        "subseed": -1,
        "subseed_strength": 0,
        "all_subseeds": [-1] * len(images),
        "seed_resize_from_w": -1,
        "seed_resize_from_h": -1,
        "restore_faces": False,
        "face_restoration_model": None,
        "sd_model_hash": None,
        "sd_vae_name": None,
        "sd_vae_hash": None,
        "clip_skip": 1,
        "is_using_inpainting_conditioning": False,
        "job_timestamp": datetime.now(UTC).strftime("%Y%m%d%H%M%S"),
        "version": f"img2img {version}",
        "extra_generation_params": {},
        "index_of_first_image": 0,
        "infotexts": [image.infotext for image in images],
        "styles": [],
        "clamped": asked.clamped,
    }


@router.get("/progress")
async def progress(request: Request, skip_current_image: bool = False) -> WebUIProgress:
    """The progress of the client's oldest running request."""
    runs = app_singleton(request, Runs).of(request_state(request.scope).caller)
    run = runs[0] if runs else None
    preview = None if run is None or skip_current_image else run.preview
    return WebUIProgress(
        progress=run.progress if run else 0.0,
        eta_relative=run.seconds_left if run else 0.0,
        state=WebUIState(
            interrupted=run.interrupted if run else False,
            job="img2img" if run else "",
            job_count=len(runs),
            sampling_step=run.done if run else 0,
            sampling_steps=run.steps if run else 0,
        ),
        current_image=base64_text(preview) if preview else None,
    )


@router.post("/skip")
@router.post("/interrupt")
async def interrupt(request: Request) -> dict[str, Any]:
    """Ends the running requests of the client; their answers have the status 409."""
    for run in app_singleton(request, Runs).of(request_state(request.scope).caller):
        run.interrupt()
    return {}


@router.post("/png-info", responses=_ERRORS, openapi_extra=json_body(object_schema(WebUIPngInfoFields)))
async def png_info(request: Request) -> WebUIPngInfo:
    """What an image file says of how it was made."""
    file = await read_json(request, _file)
    text = await service_of(request).infotext_of(file, request_info(request))
    return WebUIPngInfo(info=text, items={"parameters": text} if text else {}, parameters=parse_infotext(text))


def _file(body: dict[str, Any]) -> bytes:
    if not isinstance(body.get("image"), str):
        raise InvalidParameter('Send {"image": "<base64 of the image>"}.', param="image")
    return decode_base64(body["image"], "image")


@router.get("/options")
async def options(request: Request) -> WebUIOptions:
    """The options and their values. None can be changed."""
    return _options(service_of(request))


@router.post("/options", responses=_ERRORS, openapi_extra=json_body({"type": "object"}))
async def set_options(request: Request) -> None:
    """Takes the current values, which clients send back, and names of the model."""
    service = service_of(request)
    there = _options(service).model_dump()
    for name, value in (await read_json(request, dict)).items():
        if value is None or (name in there and value == there[name]):
            continue
        if name != "sd_model_checkpoint":
            raise InvalidParameter(f"{name[:64]} cannot be changed while the service runs.", param=name[:64])
        service.check_model(str(value))


def _options(service: Service) -> WebUIOptions:
    return WebUIOptions(sd_model_checkpoint=service.model_name)


@router.get("/sd-models")
async def sd_models(request: Request) -> list[WebUIModel]:
    """The model that is served."""
    service = service_of(request)
    name = service.model_name
    return [WebUIModel(title=name, model_name=name, filename=name)]


@router.get("/samplers")
async def samplers(request: Request) -> list[WebUISamplerInfo]:
    """The model's sampler."""
    service = service_of(request)
    return [WebUISamplerInfo(name=service.sampler, aliases=list(aliases(service.sampler)))]


@router.get("/schedulers")
async def schedulers() -> list[dict[str, Any]]:
    """The schedule of the sampler."""
    return [{"name": "automatic", "label": "Automatic", "aliases": None, "default_rho": -1, "need_inner_model": False}]


@router.get("/scripts")
async def scripts() -> dict[str, list[str]]:
    """None. Clients ask for them first."""
    return {"txt2img": [], "img2img": []}


@router.get("/loras")
@router.get("/upscalers")
@router.get("/sd-vae")
@router.get("/prompt-styles")
@router.get("/hypernetworks")
@router.get("/face-restorers")
@router.get("/latent-upscale-modes")
@router.get("/realesrgan-models")
@router.get("/script-info")
@router.get("/extensions")
async def nothing() -> list[Any]:
    """Not supported; always empty."""
    return []


@router.get("/embeddings")
async def embeddings() -> dict[str, Any]:
    """None."""
    return {"loaded": {}, "skipped": {}}


@router.get("/memory")
async def memory() -> dict[str, Any]:
    """Not available, in the web UI's own form."""
    return {"ram": {"error": "GET /metrics has it"}, "cuda": {"error": "GET /metrics has it"}}


@router.post("/refresh-checkpoints")
@router.post("/refresh-embeddings")
@router.post("/refresh-loras")
@router.post("/refresh-vae")
async def refresh() -> None:
    """Has no effect."""


@router.get("/cmd-flags")
async def cmd_flags() -> dict[str, Any]:
    """None."""
    return {}


def _render_error(error: ServiceError, request_id: str) -> tuple[int, WebUIError]:
    return error.status, WebUIError(error=error.code, detail=error.message, body="", errors=error.message)


DIALECT = Dialect(
    router=router,
    prefixes=("/sdapi/",),
    edit_path="/sdapi/v1/img2img",
    render_error=_render_error,
    quiet_paths=("/sdapi/v1/progress",),
    state=(Runs,),
)
