"""Vertex AI's predictions, at the path that it chooses."""

from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from annotated_types import MaxLen
from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response
from pydantic import BaseModel, Field

from app.edits import EditedImage, RequestInfo, Upload
from app.errors import InvalidParameter
from app.pixels import OutputFormat
from app.request import MAX_PROMPT_LENGTH, Img2ImgRequest, parse_request
from app.routes.dependencies import service_of
from app.service import Service
from app.web.base64_files import base64_text, decode_base64
from app.web.dialects import Dialect, SettingRoute
from app.web.disconnect import gather_or_cancel, unless_disconnected
from app.web.fields import default, names, prefix_param
from app.web.json_body import read_json
from app.web.openapi import KEYS, error_responses, image_headers, json_body, object_schema
from app.web.problems import Problem
from app.web.requests import reject_query_fields, request_info
from app.web.responses import json_of_images


class VertexEncodedImage(BaseModel):
    """An image in an object, under either name."""

    bytesBase64Encoded: str | None = Field(None, description="The file as base64.")  # noqa: N815
    b64: str | None = Field(None, description="The same, as TensorFlow has it.")


class VertexInstanceFields(BaseModel):
    """Fields of an instance in addition to those of `/img2img`, and those with another default."""

    image: str | VertexEncodedImage = Field(
        description="A PNG, JPEG or WebP file as base64, or an object that holds it."
    )
    prompt: str = Field("", max_length=MAX_PROMPT_LENGTH, description="What the image should become.")
    output_format: OutputFormat = Field(OutputFormat.PNG, description="`png`, `webp` or `jpeg`.")


class VertexInstances(BaseModel):
    """The body."""

    instances: list[dict[str, Any]] = Field(min_length=1, max_length=16, description="One for each image.")
    parameters: dict[str, Any] | None = Field(None, description="Fields of all instances that do not have their own.")


class VertexPrediction(BaseModel):
    """An image."""

    bytesBase64Encoded: str = Field(description="The file as base64.")  # noqa: N815
    mimeType: str = Field(examples=["image/png"])  # noqa: N815
    seed: int = Field(description="The seed that makes the image again.")


class VertexPredictions(BaseModel):
    """The answer: a prediction for each instance, in their order."""

    predictions: list[VertexPrediction]


_IMAGE_NAMES = names(VertexEncodedImage)
_INSTANCE = object_schema(Img2ImgRequest, VertexInstanceFields)
_PARAMETERS = object_schema(Img2ImgRequest, VertexInstanceFields, without=("image",))
_MAX_INSTANCES = next(
    one.max_length for one in VertexInstances.model_fields["instances"].metadata if isinstance(one, MaxLen)
)
_BODY = object_schema(
    VertexInstances,
    instances={"type": "array", "minItems": 1, "maxItems": _MAX_INSTANCES, "items": _INSTANCE},
    parameters={**_PARAMETERS, "required": []},
)


async def predict(request: Request) -> Response:
    """Takes `{"instances": [...], "parameters": {...}}`."""
    asked = await read_json(request, parse_instances)
    service = service_of(request)
    service.check_count(len(asked), "instances")
    work = (_edit(service, index, image, one, request_info(request)) for index, (image, one) in enumerate(asked))
    images = await unless_disconnected(request, gather_or_cancel(*work))
    return await json_of_images(partial(_predictions, images), images)


async def _edit(service: Service, index: int, image: Upload, asked: Img2ImgRequest, call: RequestInfo) -> EditedImage:
    with _instance_of(index):
        return await service.edit(image, asked, call)


def parse_instances(body: dict[str, Any]) -> list[tuple[Upload, Img2ImgRequest]]:
    """The image and the request of each instance. `parameters` are the defaults of all instances.

    Raises:
        InvalidParameter: it is JSON of another shape, or a field cannot be used.
        InvalidImage: an image is not base64.
    """
    if others := sorted(set(body) - set(VertexInstances.model_fields)):
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
    """Name the instance in the errors of its fields, counted from 0 as in JSON."""
    where = f"instances[{index}]"
    return prefix_param(where, f"{where}: ")


def _instance(instance: dict[str, Any], shared: dict[str, Any]) -> tuple[Upload, Img2ImgRequest]:
    defaults = {name: default(VertexInstanceFields, name) for name in ("prompt", "output_format")}
    fields = {**defaults, **shared, **instance}
    image = fields.pop("image", None)
    if isinstance(image, dict):
        # The names of Google's models and of TensorFlow's.
        image = next((image[name] for name in _IMAGE_NAMES if name in image), None)
    if not isinstance(image, str):
        raise InvalidParameter('It needs an image: base64, or {"bytesBase64Encoded": "<base64>"}.', param="image")
    return Upload(decode_base64(image, "image")), parse_request(fields, ("image",))


def _predictions(images: list[EditedImage]) -> str:
    predictions = [
        VertexPrediction(
            bytesBase64Encoded=base64_text(image.data), mimeType=image.output_format.media_type, seed=image.seed
        )
        for image in images
    ]
    return VertexPredictions(predictions=predictions).model_dump_json()


DIALECT = Dialect(
    # Its only route is at the path of a setting.
    router=APIRouter(),
    setting_routes=(
        SettingRoute(
            "predict_route",
            "POST",
            predict,
            options={
                "summary": "Edit images",
                "operation_id": "vertex_predict",
                "tags": ["Vertex AI"],
                "dependencies": [Depends(reject_query_fields), *KEYS],
                "responses": {
                    200: {"model": VertexPredictions, "description": "The images.", "headers": image_headers()},
                    **error_responses(Problem, (400, 401, 403, 408, 413, 415, 422, 429, 500, 503)),
                },
                "openapi_extra": json_body(_BODY),
            },
        ),
    ),
)
