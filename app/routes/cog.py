"""`/predictions`: the HTTP API of a container that Cog built, as Replicate and others run it."""

import asyncio
import re
import secrets
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from app.errors import EngineError, InvalidParameter, NotAcceptable, PredictionNotFound
from app.request import Img2ImgRequest, OutputFormat, parse_request
from app.routes.bodies import data_url, decode_base64, read_json
from app.routes.common import call_of, of_app, unless_disconnected
from app.routes.events import EVENTS
from app.service import Call, Service

# Cog describes these itself.
router = APIRouter(include_in_schema=False)

_NEVER_SENT = ("webhook", "webhook_events_filter", "output_file_prefix")
"""What would have the service send something to an address that a caller names: it never does."""

_ID = re.compile(r"[\w.-]{1,128}", re.ASCII)

Prediction = dict[str, Any]


class Predictions:
    """Those that run, by caller and id, with how many wait for each."""

    def __init__(self) -> None:
        self._running: dict[tuple[str, str], asyncio.Task[Prediction]] = {}
        self._waiting: dict[tuple[str, str], int] = {}

    def find(self, caller: str, name: str) -> "asyncio.Task[Prediction] | None":
        """The one that runs under this name."""
        return self._running.get((caller, name))

    async def result(self, caller: str, name: str, task: "asyncio.Task[Prediction]") -> Prediction:
        """What comes of it. It goes on as long as somebody waits for it."""
        key = caller, name
        self._running[key] = task
        self._waiting[key] = self._waiting.get(key, 0) + 1
        try:
            await asyncio.wait({task})
            return _canceled(name) if task.cancelled() else task.result()
        finally:
            self._waiting[key] -= 1
            if not self._waiting[key]:
                del self._waiting[key], self._running[key]
                task.cancel()


@router.post("/predictions")
async def create(request: Request) -> JSONResponse:
    """A picture of `{"input": {...}}`; of two requests with one `id` at once, both get the same."""
    return await _answer(request, None)


@router.put("/predictions/{name}")
async def create_once(request: Request, name: str) -> JSONResponse:
    """The same, with the id in the path."""
    return await _answer(request, name)


async def _answer(request: Request, name: str | None) -> JSONResponse:
    if EVENTS in request.headers.get("accept", "").lower():
        raise NotAcceptable("Predictions come whole: for events ask POST /img2img.", param="Accept")
    body = read_json(await request.body())
    name = name or body.get("id") or secrets.token_hex(16)
    if not isinstance(name, str) or not _ID.fullmatch(name):
        raise InvalidParameter("id may have 1 to 128 letters, digits, dots, dashes and underscores.", param="id")
    predictions, caller = of_app(request, Predictions), request.state.caller
    task = predictions.find(caller, name)
    if task is None:
        image, asked = parse_prediction(body)
        service: Service = request.app.state.service
        task = asyncio.create_task(_predict(service, image, asked, call_of(request), name))
    return JSONResponse(await unless_disconnected(request, predictions.result(caller, name, task)))


async def _predict(service: Service, image: bytes, asked: Img2ImgRequest, call: Call, name: str) -> Prediction:
    created = datetime.now(UTC)
    try:
        picture = await service.edit(image, asked, call)
    except EngineError as error:
        service.metrics.refuse(error.code)
        return {"id": name, "status": "failed", "output": None, "error": error.message, **_moments(created)}
    return {
        "id": name,
        "status": "succeeded",
        "output": data_url(picture.data, picture.output_format),
        "error": None,
        "logs": f"Using seed: {picture.seed}\n",
        **_moments(created),
    }


def _canceled(name: str) -> Prediction:
    return {"id": name, "status": "canceled", "output": None, "error": None, "logs": ""}


def _moments(created: datetime) -> dict[str, Any]:
    completed = datetime.now(UTC)
    moments = {"created_at": created, "started_at": created, "completed_at": completed}
    seconds = (completed - created).total_seconds()
    return {**{name: moment.isoformat() for name, moment in moments.items()}, "metrics": {"predict_time": seconds}}


def parse_prediction(body: Mapping[str, Any]) -> tuple[bytes, Img2ImgRequest]:
    """The picture, and what to make of it.

    Raises:
        InvalidParameter: it is JSON of another shape, or a field cannot be honoured.
        InvalidImage: the picture is no base64.
    """
    for name in _NEVER_SENT:
        if body.get(name) is not None:
            raise InvalidParameter(f"{name} cannot be honoured: nothing is sent to addresses here.", param=name)
    fields = body.get("input")
    if not isinstance(fields, dict):
        raise InvalidParameter('Send {"input": {"image": "data:…", "prompt": "…"}}.', param="input")
    fields = {"prompt": "", "output_format": OutputFormat.PNG, **fields}
    image = fields.pop("image", None)
    if not isinstance(image, str) or image.partition(":")[0] in ("http", "https", "s3", "gs", "az"):
        raise InvalidParameter("Send the image as a data: URL: no other address is read here.", param="image")
    return decode_base64(image, "image"), parse_request(fields)


@router.post("/predictions/{name}/cancel")
async def cancel(request: Request, name: str) -> dict[str, Any]:
    """Ends a prediction of the caller's own."""
    task = of_app(request, Predictions).find(request.state.caller, name)
    if task is None:
        raise PredictionNotFound("No prediction of yours runs under this id.", param="id")
    task.cancel()
    return {}


@router.get("/health-check")
async def health_check(request: Request) -> dict[str, Any]:
    """Always 200; the `status` says whether a picture can be made now."""
    service: Service = request.app.state.service
    status = {"ready": "READY", "starting": "STARTING", "draining": "DEFUNCT", "unsigned": "DEFUNCT"}[service.status]
    started = datetime.fromtimestamp(service.started, UTC).isoformat()
    setup = {"started_at": started, "status": "starting" if status == "STARTING" else "succeeded", "logs": ""}
    return {"status": status, "setup": setup, "version": {"img2img": request.app.version}}
