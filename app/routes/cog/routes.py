"""`/predictions`: the HTTP API of a container that Cog built, as Replicate and others run it."""

import asyncio
import re
import secrets
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, Literal

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from app.edits import EditedImage, RequestInfo, Upload
from app.errors import (
    DeadlineExceeded,
    EngineError,
    InvalidParameter,
    NotAcceptable,
    PredictionNotFound,
    QueueFull,
    ServiceError,
    TooManyRequests,
)
from app.request import Img2ImgRequest, parse_request
from app.routes.cog.models import (
    ID,
    CogBody,
    CogError,
    CogHealth,
    CogHints,
    CogInput,
    CogInputError,
    CogMetrics,
    CogPrediction,
    CogSetup,
    CogTimes,
)
from app.routes.dependencies import service_of
from app.service import Service
from app.web.app_state import app_singleton, app_state
from app.web.base64_files import data_url, decode_base64, is_data_url
from app.web.dialects import Dialect
from app.web.disconnect import unless_disconnected
from app.web.error_responses import ErrorResponses
from app.web.fields import default, names, prefix_param
from app.web.json_body import read_json
from app.web.negotiation import prefers
from app.web.offload import offload
from app.web.openapi import KEYS, Responses, error_responses, image_headers, json_body, object_schema
from app.web.request_state import request_state
from app.web.requests import reject_query_fields, request_info
from app.web.responses import bytes_response, headers_of_images
from app.web.sse import EVENTS

router = APIRouter(tags=["Cog"], dependencies=[Depends(reject_query_fields)])

_NEVER_SENT = ("webhook", "webhook_events_filter", "output_file_prefix")
"""These ask the service to send something to an address in the request: they are refused."""

_NO_EFFECT = names(CogHints)

_BODY = json_body(object_schema(CogBody, CogHints, input=object_schema(Img2ImgRequest, CogInput)))
_RESPONSES: Responses = {
    200: {"model": CogPrediction, "description": "The prediction.", "headers": image_headers()},
    **error_responses(CogError, (400, 401, 403, 406, 408, 409, 413, 415, 422, 500, 503)),
}

_HEALTH: dict[str, Literal["READY", "STARTING", "DEFUNCT"]] = {
    "ready": "READY",
    "starting": "STARTING",
    "draining": "DEFUNCT",
    "unsigned": "DEFUNCT",
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a prediction ends with: the answer as JSON, and its headers."""

    json: bytes
    headers: Mapping[str, str]


@dataclass
class _Running:
    """A running prediction, and the number of requests that wait for it."""

    task: "asyncio.Task[Outcome]"
    waiting: int = 0


class Predictions:
    """The running predictions, by client and id."""

    def __init__(self) -> None:
        self._running: dict[tuple[str, str], _Running] = {}

    def find(self, caller: str, name: str) -> "asyncio.Task[Outcome] | None":
        """The running prediction with this id."""
        running = self._running.get((caller, name))
        return running.task if running else None

    @contextmanager
    def waiting(
        self, caller: str, name: str, begin: Callable[[], Coroutine[Any, Any, Outcome]]
    ) -> "Iterator[asyncio.Task[Outcome]]":
        """The running prediction with this id, or a new one. It is cancelled when no request waits for it any more."""
        key = caller, name
        # No await from here to the count: another request would start one more, or cancel this one.
        if self.find(caller, name) is None:
            self._running[key] = _Running(asyncio.create_task(begin()))
        running = self._running[key]
        running.waiting += 1
        try:
            yield running.task
        finally:
            running.waiting -= 1
            if not running.waiting:
                del self._running[key]
                running.task.cancel()


@router.post(
    "/predictions",
    summary="Edit an image",
    operation_id="cog_create",
    response_model=None,
    responses=_RESPONSES,
    openapi_extra=_BODY,
    dependencies=KEYS,
)
async def create(request: Request) -> Response:
    """Takes `{"input": {...}}`. Two requests with one `id` at the same time get the same prediction."""
    return await _answer(request, None)


@router.put(
    "/predictions/{name}",
    summary="Edit an image, once for all requests with one id",
    operation_id="cog_create_with_id",
    response_model=None,
    responses=_RESPONSES,
    openapi_extra=_BODY,
    dependencies=KEYS,
)
async def create_once(request: Request, name: str) -> Response:
    """The same, with the id in the path."""
    return await _answer(request, name)


async def _answer(request: Request, path_name: str | None) -> Response:
    if prefers(request.headers.get("accept", ""), EVENTS, ("application/json",)):
        raise NotAcceptable("Predictions are not sent as events: for events use POST /img2img.", param="Accept")
    call = request_info(request)
    name, image, asked = await read_json(request, partial(_parse, path_name=path_name))
    predictions, service, errors = app_singleton(request, Predictions), service_of(request), app_state(request).errors
    # A prediction has the timeout of the request that starts it.
    seconds = None
    if predictions.find(call.caller, name):
        seconds = call.timeout
        # The running prediction has its own upload.
        image.take()
    with predictions.waiting(call.caller, name, lambda: _predict(service, errors, image, asked, call, name)) as task:
        outcome = await unless_disconnected(request, _outcome(task, name, seconds))
    return bytes_response(outcome.json, "application/json", outcome.headers)


def _parse(body: dict[str, Any], path_name: str | None) -> tuple[str, Upload, Img2ImgRequest]:
    return _name(body.get("id"), path_name), *parse_prediction(body)


def _name(sent: Any, path_name: str | None) -> str:
    name = (path_name or secrets.token_hex(16)) if sent is None else sent
    if not isinstance(name, str) or not re.fullmatch(ID, name):
        raise InvalidParameter("id may have 1 to 128 letters, digits, dots, dashes and underscores.", param="id")
    if path_name not in (None, name):
        raise InvalidParameter("The id in the body is another one than that in the path. Leave it out.", param="id")
    return name


async def _outcome(task: "asyncio.Task[Outcome]", name: str, seconds: float | None) -> Outcome:
    """The outcome of a prediction. Raises `DeadlineExceeded` after so many seconds."""
    await asyncio.wait({task}, timeout=seconds)
    if not task.done():
        raise DeadlineExceeded(f"The prediction was not done within {seconds:g} s. Allow more time.", retry_after=5)
    if task.cancelled():
        return Outcome(_json(CogPrediction(id=name, status="canceled")), {})
    return task.result()


async def _predict(
    service: Service, errors: ErrorResponses, upload: Upload, asked: Img2ImgRequest, call: RequestInfo, name: str
) -> Outcome:
    created = datetime.now(UTC)
    try:
        image = await service.edit(upload, asked, call)
    except EngineError as error:
        errors.count(error)
        failed = CogPrediction(id=name, status="failed", error=error.message, **_times(created))
        return Outcome(_json(failed, without="logs"), {})
    render = partial(_succeeded, image, name, created)
    return Outcome(await offload(len(image.data), render), headers_of_images(image))


def _succeeded(image: EditedImage, name: str, created: datetime) -> bytes:
    return _json(
        CogPrediction(
            id=name,
            status="succeeded",
            output=data_url(image.data, image.output_format),
            logs=f"Using seed: {image.seed}\n",
            **_times(created),
        )
    )


def _json(prediction: CogPrediction, *, without: str = "") -> bytes:
    # A cancelled prediction has no times.
    absent = {name for name in names(CogTimes) if getattr(prediction, name) is None}
    return prediction.model_dump_json(exclude=absent | {without}).encode()


def _times(created: datetime) -> dict[str, Any]:
    completed = datetime.now(UTC)
    metrics = CogMetrics(predict_time=(completed - created).total_seconds())
    return {
        "created_at": created.isoformat(),
        "started_at": created.isoformat(),
        "completed_at": completed.isoformat(),
        "metrics": metrics,
    }


def parse_prediction(body: Mapping[str, Any]) -> tuple[Upload, Img2ImgRequest]:
    """The image and the request of a prediction.

    Raises:
        InvalidParameter: it is JSON of another shape, or a field cannot be honoured.
        InvalidImage: the image is not base64.
    """
    for name in _NEVER_SENT:
        if body.get(name) is not None:
            raise InvalidParameter(f"{name} cannot be honoured: nothing is sent to addresses here.", param=name)
    if others := sorted(set(body) - {*names(CogBody), *_NEVER_SENT, *_NO_EFFECT}):
        raise InvalidParameter(
            f"There is no '{others[0][:64]}' beside 'input'. What the image is to be made of goes into that.",
            param=others[0][:64],
        )
    fields = body.get("input")
    if not isinstance(fields, dict):
        raise InvalidParameter('Send {"input": {"image": "data:…", "prompt": "…"}}.', param="input")
    defaults = {name: default(CogInput, name) for name in ("prompt", "output_format")}
    fields = {**defaults, **fields}
    image = fields.pop("image", None)
    with prefix_param("input"):
        # Base64 has no colon.
        if not isinstance(image, str) or (":" in image[:16] and not is_data_url(image)):
            raise InvalidParameter("Send the image as a data: URL: no other address is read here.", param="image")
        return Upload(decode_base64(image, "image")), parse_request(fields, ("image",))


@router.post(
    "/predictions/{name}/cancel",
    summary="Cancel a prediction",
    responses=error_responses(CogError, (401, 403, 404, 422)),
    dependencies=KEYS,
)
async def cancel(request: Request, name: str) -> dict[str, Any]:
    """Cancels a prediction of the client."""
    task = app_singleton(request, Predictions).find(request_state(request.scope).caller, name)
    if task is None:
        raise PredictionNotFound("No prediction of yours runs under this id.", param="id")
    task.cancel()
    return {}


@router.get("/health-check", summary="The state of the service")
async def health_check(request: Request) -> CogHealth:
    """Always 200; the `status` says whether an image can be made now."""
    service = service_of(request)
    status = _HEALTH[service.status]
    started = datetime.fromtimestamp(service.started, UTC).isoformat()
    setup = CogSetup(started_at=started, status="starting" if status == "STARTING" else "succeeded")
    return CogHealth(status=status, setup=setup, version={"img2img": request.app.version})


def _render_error(error: ServiceError, request_id: str) -> tuple[int, CogError]:
    if error.status == 422:
        where = (error.param or "input").split(".", 1)
        return 422, CogError(detail=[CogInputError(loc=["body", *where], msg=error.message, type=error.code)])
    # Cog itself answers with 409 when it is busy.
    status = 409 if isinstance(error, QueueFull | TooManyRequests) else error.status
    return status, CogError(detail=error.message)


DIALECT = Dialect(
    router=router,
    prefixes=("/predictions",),
    edit_path="/predictions",
    render_error=_render_error,
    open_paths=("/health-check",),
    state=(Predictions,),
)
