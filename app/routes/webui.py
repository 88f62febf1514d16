"""`/sdapi/v1/…`: the API of AUTOMATIC1111's web UI, as `webuiapi` and its like speak it, for image-to-image."""

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from app.errors import InvalidParameter
from app.infotext import parse_infotext
from app.request import (
    IMAGE_SIZE,
    MAX_SEED,
    MAX_STEPS,
    Fit,
    Img2ImgRequest,
    OutputFormat,
    parse_request,
    smallest_steps,
)
from app.routes.bodies import base64_text, decode_base64, read_json
from app.routes.common import call_of, of_app, unless_disconnected
from app.routes.webui_runs import Runs
from app.service import Picture, Service

# The web UI describes these itself.
router = APIRouter(prefix="/sdapi/v1", include_in_schema=False)

_TURBO_STEPS = 4
"""What SDXL-Turbo was distilled for. Such clients send 20 where nobody has said anything, and a scale of 7."""

_MAX_PICTURES = 10
_SAMPLER = "Euler a"
_FITS = {0: Fit.STRETCH, 1: Fit.CROP, 2: Fit.PAD}
_UNSUPPORTED = ("mask", "script_name", "styles", "tiling", "restore_faces", "subseed_strength", "refiner_checkpoint")
"""What would change the picture if it were honoured; clients send it empty."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a caller of the web UI's API asks for.

    Attributes:
        image: the uploaded file.
        requests: one for each picture, of seeds that follow each other.
        clamped: fields of which another value was taken than was sent, with both.
        model: the name that was given for it.
        send_images: whether the answer is to hold the pictures.
    """

    image: bytes
    requests: tuple[Img2ImgRequest, ...]
    clamped: dict[str, tuple[Any, Any]]
    model: str | None
    send_images: bool


def parse_webui(body: Mapping[str, Any]) -> Asked:
    """A body of `/img2img` to what is asked for. What has no name here is ignored, as the web UI does.

    Steps above what the model is for, guidance, and other samplers are brought down to it; `clamped` says so.

    Raises:
        InvalidParameter: a field that would change the picture cannot be honoured.
    """
    _refuse_unsupported(body)
    mode = body.get("resize_mode", 0)
    fit = _FITS.get(mode) if isinstance(mode, int) else None
    if fit is None:
        raise InvalidParameter("resize_mode can be 0 (stretch), 1 (crop) or 2 (fill) here.", param="resize_mode")
    count = _whole(body, "batch_size") * _whole(body, "n_iter")
    if count > _MAX_PICTURES:
        raise InvalidParameter(f"batch_size x n_iter can be {_MAX_PICTURES} at most.", param="batch_size")
    # All that is sent is checked, before less of it is done.
    sent = parse_request(
        {
            "prompt": body.get("prompt") or "",
            "negative_prompt": body.get("negative_prompt") or None,
            "strength": body.get("denoising_strength", 0.75),
            "num_inference_steps": MAX_STEPS,
            "guidance_scale": body.get("cfg_scale", 0),
            "seed": _seed(body.get("seed")),
            "fit": fit,
            "output_format": OutputFormat.PNG,
        }
    )
    steps = parse_request({"prompt": "", "strength": 1, "num_inference_steps": body.get("steps", _TURBO_STEPS)})
    run = max(min(steps.num_inference_steps, _TURBO_STEPS), smallest_steps(sent.strength) or MAX_STEPS)
    values: dict[str, tuple[Any, Any]] = {
        "steps": (steps.num_inference_steps, run),
        "cfg_scale": (sent.guidance_scale, min(sent.guidance_scale, 1.0)),
        "sampler_name": (body.get("sampler_name") or body.get("sampler_index") or _SAMPLER, _SAMPLER),
    }
    taken = sent.model_copy(update={"num_inference_steps": run, "guidance_scale": values["cfg_scale"][1]})
    requests = tuple(taken.model_copy(update={"seed": ((taken.seed or 0) + i) % (MAX_SEED + 1)}) for i in range(count))
    return Asked(
        image=_image(body),
        requests=requests,
        clamped={name: pair for name, pair in values.items() if pair[0] != pair[1]},
        model=str(_mapping(body, "override_settings").get("sd_model_checkpoint") or "") or None,
        send_images=body.get("send_images") is not False,
    )


def _refuse_unsupported(body: Mapping[str, Any]) -> None:
    for name in _UNSUPPORTED:
        if body.get(name) not in (None, "", "None", [], 0, False):
            raise InvalidParameter(f"{name} cannot be honoured here. Leave it out.", param=name)
    for script, arguments in _mapping(body, "alwayson_scripts").items():
        # Clients send extensions that are switched off along.
        sent = arguments.get("args") if isinstance(arguments, dict) else arguments
        if any(value not in (None, False) for value in (sent if isinstance(sent, list) else [sent])):
            raise InvalidParameter(f"alwayson_scripts: there is no '{script[:64]}' here.", param="alwayson_scripts")
    for name in ("width", "height"):
        if body.get(name, IMAGE_SIZE) != IMAGE_SIZE:
            raise InvalidParameter(f"{name} can only be {IMAGE_SIZE} here.", param=name)


def _image(body: Mapping[str, Any]) -> bytes:
    images = body.get("init_images")
    if not isinstance(images, list) or len(images) != 1 or not isinstance(images[0], str):
        raise InvalidParameter("Send one picture as base64: init_images=[…].", param="init_images")
    return decode_base64(images[0], "init_images")


def _seed(value: Any) -> Any:
    """-1 is a random one."""
    return secrets.randbelow(2**32) if value in (None, -1) else value


def _whole(body: Mapping[str, Any], name: str) -> int:
    value = body.get(name, 1)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InvalidParameter(f"{name} must be a whole number of at least 1.", param=name)
    return value


def _mapping(body: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = body.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidParameter(f"{name} must be an object.", param=name)
    return value


@router.post("/img2img", response_model=None)
async def img2img(request: Request) -> Response:
    """Pictures as base64, the parameters as they were taken, and the web UI's `info`, JSON in a text."""
    body = read_json(await request.body())
    asked = parse_webui(body)
    service: Service = request.app.state.service
    service.check_model(asked.model)
    steps = sum(one.steps_run for one in asked.requests)
    previews = frozenset(range(1, asked.requests[0].steps_run))
    with of_app(request, Runs).running(request.state.caller, steps) as run:
        watched = [
            service.watch(asked.image, one, call_of(request), previews, OutputFormat.PNG) for one in asked.requests
        ]
        pictures = await unless_disconnected(request, run.pictures(*watched))
    images = [base64_text(picture.data) for picture in pictures] if asked.send_images else []
    first = asked.requests[0]
    taken = {"steps": first.num_inference_steps, "cfg_scale": first.guidance_scale, "sampler_name": _SAMPLER}
    parameters = {**{name: value for name, value in body.items() if name != "init_images"}, **taken}
    info = _info(service.model_name, asked, pictures)
    headers = {"X-Clamped": ", ".join(asked.clamped)} if asked.clamped else {}
    answer = {"images": images, "parameters": parameters, "info": json.dumps(info)}
    # What the caller's own fields hold goes back as it came, be it what UTF-8 or strict JSON has no place for.
    return Response(json.dumps(answer), media_type="application/json", headers=headers)


def _info(model: str, asked: Asked, pictures: list[Picture]) -> dict[str, Any]:
    first, seeds = asked.requests[0], [picture.seed for picture in pictures]
    return {
        "prompt": first.prompt,
        "all_prompts": [first.prompt] * len(pictures),
        "negative_prompt": first.negative_prompt or "",
        "all_negative_prompts": [first.negative_prompt or ""] * len(pictures),
        "seed": seeds[0],
        "all_seeds": seeds,
        "width": IMAGE_SIZE,
        "height": IMAGE_SIZE,
        "sampler_name": _SAMPLER,
        "cfg_scale": first.guidance_scale,
        "steps": first.num_inference_steps,
        "batch_size": len(pictures),
        "sd_model_name": model,
        "denoising_strength": first.strength,
        "extra_generation_params": {},
        "index_of_first_image": 0,
        "infotexts": [picture.infotext for picture in pictures],
        "styles": [],
        "clamped": asked.clamped,
    }


@router.get("/progress")
async def progress(request: Request, skip_current_image: bool = False) -> dict[str, Any]:
    """Of the caller's own request, the one that runs longest."""
    runs = of_app(request, Runs).of(request.state.caller)
    run = runs[0] if runs else None
    preview = None if run is None or skip_current_image else run.preview
    return {
        "progress": run.progress if run else 0.0,
        "eta_relative": run.seconds_left if run else 0.0,
        "state": {
            "skipped": False,
            "interrupted": run.interrupted if run else False,
            "job": "img2img" if run else "",
            "job_count": len(runs),
            "job_timestamp": "",
            "job_no": 0,
            "sampling_step": run.done if run else 0,
            "sampling_steps": run.steps if run else 0,
        },
        "current_image": base64_text(preview) if preview else None,
        "textinfo": None,
    }


@router.post("/skip")
@router.post("/interrupt")
async def interrupt(request: Request) -> dict[str, Any]:
    """Ends what the caller has running: it is answered with 409."""
    for run in of_app(request, Runs).of(request.state.caller):
        run.interrupt()
    return {}


@router.post("/png-info")
async def png_info(request: Request) -> dict[str, Any]:
    """What a picture file says of how it was made."""
    body = read_json(await request.body())
    if not isinstance(body.get("image"), str):
        raise InvalidParameter('Send {"image": "<base64 of the picture>"}.', param="image")
    service: Service = request.app.state.service
    text = await service.infotext_of(decode_base64(body["image"], "image"), call_of(request))
    return {"info": text, "items": {"parameters": text} if text else {}, "parameters": parse_infotext(text)}


@router.get("/options")
async def options(request: Request) -> dict[str, Any]:
    """The one that there is."""
    service: Service = request.app.state.service
    return {"sd_model_checkpoint": service.model_name, "samples_format": "png"}


@router.post("/options")
async def set_options(request: Request) -> None:
    """Takes the model's own name; nothing else can be changed."""
    service: Service = request.app.state.service
    for name, value in read_json(await request.body()).items():
        if name != "sd_model_checkpoint":
            raise InvalidParameter(f"{name[:64]} cannot be changed while the service runs.", param=name[:64])
        service.check_model(str(value))


@router.get("/sd-models")
async def sd_models(request: Request) -> list[dict[str, Any]]:
    """The one model that is served."""
    service: Service = request.app.state.service
    name = service.model_name
    return [{"title": name, "model_name": name, "hash": None, "sha256": None, "filename": name, "config": None}]


@router.get("/samplers")
async def samplers() -> list[dict[str, Any]]:
    """SDXL-Turbo's."""
    return [{"name": _SAMPLER, "aliases": ["k_euler_a", "k_euler_ancestral"], "options": {}}]


@router.get("/schedulers")
async def schedulers() -> list[dict[str, Any]]:
    """As the sampler has it."""
    return [{"name": "automatic", "label": "Automatic", "aliases": None, "default_rho": -1, "need_inner_model": False}]


@router.get("/scripts")
async def scripts() -> dict[str, list[str]]:
    """None; clients ask for them before anything else."""
    return {"txt2img": [], "img2img": []}


@router.get("/loras")
@router.get("/upscalers")
@router.get("/sd-vae")
@router.get("/prompt-styles")
@router.get("/hypernetworks")
@router.get("/face-restorers")
@router.get("/latent-upscale-modes")
async def nothing() -> list[Any]:
    """Of these there are none."""
    return []


@router.get("/cmd-flags")
async def cmd_flags() -> dict[str, Any]:
    """None."""
    return {}
