"""What inference platforms ask a container for: KServe's health and metadata, Vertex AI's predictions."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse

from app.edits import EditedImage, RequestInfo, Upload
from app.errors import InvalidParameter, ServiceError
from app.pixels import OutputFormat
from app.request import Img2ImgRequest, parse_request
from app.service import Service
from app.web.bodies import base64_text, decode_base64, read_body, read_json, within
from app.web.requests import call_of, nothing_in_the_query, picture_headers, together, unless_disconnected

# The platforms describe these themselves.
router = APIRouter(include_in_schema=False, dependencies=[Depends(nothing_in_the_query)])

_MAX_INSTANCES = 16


@router.get("/v2")
async def server(request: Request) -> dict[str, Any]:
    """KServe's metadata of a server."""
    return {"name": "img2img", "version": request.app.version, "extensions": []}


@router.get("/v2/health/live")
async def live() -> dict[str, bool]:
    """As `/health/live`."""
    return {"live": True}


@router.get("/v2/health/ready")
async def ready(request: Request) -> JSONResponse:
    """As `/health/ready`."""
    service: Service = request.app.state.service
    is_ready = service.status == "ready"
    return JSONResponse({"ready": is_ready}, 200 if is_ready else 503)


@router.get("/v2/models/{name}/ready")
async def model_ready(request: Request, name: str) -> JSONResponse:
    """Whether the model, which is the only one, can make pictures."""
    service: Service = request.app.state.service
    service.check_model(name)
    is_ready = service.status == "ready"
    return JSONResponse({"name": name, "ready": is_ready}, 200 if is_ready else 503)


@router.get("/v2/models/{name}")
async def model(request: Request, name: str) -> dict[str, Any]:
    """KServe's metadata of a model. It takes no tensors: pictures go to `/img2img`."""
    service: Service = request.app.state.service
    service.check_model(name)
    return {"name": name, "versions": [], "platform": "diffusers", "inputs": [], "outputs": []}


async def predict(request: Request) -> JSONResponse:
    """Vertex AI's `{"instances": [...], "parameters": {...}}`, at the path that it chose."""
    # Its path is not the router's, which has this for all others.
    await nothing_in_the_query(request)
    asked = parse_instances(read_json(await read_body(request)))
    service: Service = request.app.state.service
    service.check_count(len(asked), "instances")
    work = (_edit(service, index, image, one, call_of(request)) for index, (image, one) in enumerate(asked))
    pictures = await unless_disconnected(request, together(*work))
    predictions = [_prediction(picture) for picture in pictures]
    return JSONResponse({"predictions": predictions}, headers=picture_headers(*pictures))


async def _edit(service: Service, index: int, image: Upload, asked: Img2ImgRequest, call: RequestInfo) -> EditedImage:
    with _instance_of(index):
        return await service.edit(image, asked, call)


def parse_instances(body: dict[str, Any]) -> list[tuple[Upload, Img2ImgRequest]]:
    """The picture and what to make of it, of each instance; what `parameters` say holds for all that say nothing else.

    Raises:
        InvalidParameter: it is JSON of another shape, or a field cannot be used.
        InvalidImage: a picture is no base64.
    """
    if others := sorted(set(body) - {"instances", "parameters"}):
        raise InvalidParameter("'instances' and 'parameters' are all that is read here.", param=others[0][:64])
    instances = body.get("instances")
    shared = {} if body.get("parameters") is None else body["parameters"]
    if not isinstance(instances, list) or not 1 <= len(instances) <= _MAX_INSTANCES or not isinstance(shared, dict):
        raise InvalidParameter(
            f'Send {{"instances": [{{"image": "<base64>", "prompt": "…"}}], "parameters": {{…}}}}, with at most '
            f"{_MAX_INSTANCES} instances.",
            param="instances",
        )
    parsed = []
    for index, one in enumerate(instances):
        if not isinstance(one, dict):
            where = f"instances[{index}]"
            raise InvalidParameter(f'{where} must be an object: {{"image": "<base64>", …}}.', param=where)
        with _instance_of(index):
            parsed.append(_instance(one, shared))
    return parsed


@contextmanager
def _instance_of(index: int) -> Iterator[None]:
    """Says of what is wrong with an instance which one it is, counted from 0 as in JSON."""
    where = f"instances[{index}]"
    with within(where):
        try:
            yield
        except ServiceError as error:
            if error.param:
                error.message = f"{where}: {error.message}"
            raise


def _instance(instance: dict[str, Any], shared: dict[str, Any]) -> tuple[Upload, Img2ImgRequest]:
    fields = {"prompt": "", "output_format": OutputFormat.PNG, **shared, **instance}
    image = fields.pop("image", None)
    if isinstance(image, dict):
        # As Google's own models have it, and as TensorFlow's do.
        image = image.get("bytesBase64Encoded", image.get("b64"))
    if not isinstance(image, str):
        raise InvalidParameter('It needs an image: base64, or {"bytesBase64Encoded": "<base64>"}.', param="image")
    return Upload(decode_base64(image, "image")), parse_request(fields, ("image",))


def _prediction(picture: EditedImage) -> dict[str, Any]:
    return {
        "bytesBase64Encoded": base64_text(picture.data),
        "mimeType": picture.output_format.media_type,
        "seed": picture.seed,
    }
