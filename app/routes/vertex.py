"""Vertex AI's predictions, at the path that it chooses."""

from contextlib import AbstractContextManager
from typing import Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse

from app.edits import EditedImage, RequestInfo, Upload
from app.errors import InvalidParameter
from app.pixels import OutputFormat
from app.request import Img2ImgRequest, parse_request
from app.routes.dependencies import service_of
from app.service import Service
from app.web.bodies import base64_text, decode_base64, prefix_param, read_body, read_json
from app.web.dialects import Dialect, SettingRoute
from app.web.requests import gather_or_cancel, picture_headers, reject_query_fields, request_info, unless_disconnected

_MAX_INSTANCES = 16


async def predict(request: Request) -> JSONResponse:
    """Takes `{"instances": [...], "parameters": {...}}`."""
    asked = parse_instances(read_json(await read_body(request)))
    service = service_of(request)
    service.check_count(len(asked), "instances")
    work = (_edit(service, index, image, one, request_info(request)) for index, (image, one) in enumerate(asked))
    pictures = await unless_disconnected(request, gather_or_cancel(*work))
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


def _instance_of(index: int) -> AbstractContextManager[None]:
    """Has errors of fields name the instance, counted from 0 as in JSON."""
    where = f"instances[{index}]"
    return prefix_param(where, f"{where}: ")


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


DIALECT = Dialect(
    # Its only route is at the path of a setting.
    router=APIRouter(),
    setting_routes=(
        SettingRoute(
            "predict_route",
            "POST",
            predict,
            options={"include_in_schema": False, "dependencies": [Depends(reject_query_fields)]},
        ),
    ),
)
