"""`/predictions`: the HTTP API of a container that Cog built, as Replicate and others run it."""

import asyncio
import re
import secrets
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from app.edits import RequestInfo, Upload
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
from app.pixels import OutputFormat
from app.request import Img2ImgRequest, parse_request
from app.routes.dependencies import service_of
from app.service import Service
from app.web.app_state import app_singleton, app_state
from app.web.bodies import data_url, decode_base64, is_data_url, prefix_param, read_body, read_json
from app.web.dialects import Dialect
from app.web.error_responses import ErrorResponses
from app.web.negotiation import prefers
from app.web.request_state import request_state
from app.web.requests import picture_headers, reject_query_fields, request_info, unless_disconnected
from app.web.sse import EVENTS

# Cog describes these itself.
router = APIRouter(include_in_schema=False, dependencies=[Depends(reject_query_fields)])

_NEVER_SENT = ("webhook", "webhook_events_filter", "output_file_prefix")
"""What would have the service send something to an address that a caller names: it never does."""

_NO_EFFECT = ("created_at", "started_at", "context", "version", "status", "logs", "urls")
"""What whoever hands a prediction on to a container says of it besides."""

_ID = re.compile(r"[\w.-]{1,128}", re.ASCII)

Prediction = dict[str, Any]
Outcome = tuple[Prediction, dict[str, str]]
"""With what headers say of the picture."""


@dataclass
class _Running:
    """One that was begun, and how many wait for it."""

    task: "asyncio.Task[Outcome]"
    waiting: int = 0


class Predictions:
    """Those that run, by caller and id."""

    def __init__(self) -> None:
        self._running: dict[tuple[str, str], _Running] = {}

    def find(self, caller: str, name: str) -> "asyncio.Task[Outcome] | None":
        """The one that runs under this name."""
        running = self._running.get((caller, name))
        return running.task if running else None

    @contextmanager
    def waiting(
        self, caller: str, name: str, begin: Callable[[], Coroutine[Any, Any, Outcome]]
    ) -> "Iterator[asyncio.Task[Outcome]]":
        """Wait for the one that runs under this name, or for a new one. It goes on as long as somebody does."""
        key = caller, name
        # No other request may come between: it would begin one more, or end this one.
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


@router.post("/predictions")
async def create(request: Request) -> JSONResponse:
    """A picture of `{"input": {...}}`; of two requests with one `id` at once, both get the same."""
    return await _answer(request, None)


@router.put("/predictions/{name}")
async def create_once(request: Request, name: str) -> JSONResponse:
    """The same, with the id in the path."""
    return await _answer(request, name)


async def _answer(request: Request, path_name: str | None) -> JSONResponse:
    if prefers(request.headers.get("accept", ""), EVENTS, ("application/json",)):
        raise NotAcceptable("Predictions come whole: for events ask POST /img2img.", param="Accept")
    call, body = request_info(request), read_json(await read_body(request))
    name = _name(body.get("id"), path_name)
    image, asked = parse_prediction(body)
    # It holds the image as text.
    del body
    predictions, service, errors = app_singleton(request, Predictions), service_of(request), app_state(request).errors
    # Whoever begins it has his time from the service, and is told at once if that is too short.
    seconds = None
    if predictions.find(call.caller, name):
        seconds = call.timeout
        # The prediction that runs has its own upload: this one is not decoded.
        image.take()
    with predictions.waiting(call.caller, name, lambda: _predict(service, errors, image, asked, call, name)) as task:
        prediction, headers = await unless_disconnected(request, _outcome(task, name, seconds))
    return JSONResponse(prediction, headers=headers)


def _name(sent: Any, path_name: str | None) -> str:
    name = (path_name or secrets.token_hex(16)) if sent is None else sent
    if not isinstance(name, str) or not _ID.fullmatch(name):
        raise InvalidParameter("id may have 1 to 128 letters, digits, dots, dashes and underscores.", param="id")
    if path_name not in (None, name):
        raise InvalidParameter("The id in the body is another one than that in the path. Leave it out.", param="id")
    return name


async def _outcome(task: "asyncio.Task[Outcome]", name: str, seconds: float | None) -> Outcome:
    """What comes of it. Raises `DeadlineExceeded` if that takes longer than so many seconds."""
    await asyncio.wait({task}, timeout=seconds)
    if not task.done():
        raise DeadlineExceeded(f"The prediction was not done within {seconds:g} s. Allow more time.", retry_after=5)
    return (_canceled(name), {}) if task.cancelled() else task.result()


async def _predict(
    service: Service, errors: ErrorResponses, image: Upload, asked: Img2ImgRequest, call: RequestInfo, name: str
) -> Outcome:
    created = datetime.now(UTC)
    try:
        picture = await service.edit(image, asked, call)
    except EngineError as error:
        errors.count(error)
        return {"id": name, "status": "failed", "output": None, "error": error.message, **_moments(created)}, {}
    prediction = {
        "id": name,
        "status": "succeeded",
        "output": data_url(picture.data, picture.output_format),
        "error": None,
        "logs": f"Using seed: {picture.seed}\n",
        **_moments(created),
    }
    return prediction, picture_headers(picture)


def _canceled(name: str) -> Prediction:
    return {"id": name, "status": "canceled", "output": None, "error": None, "logs": ""}


def _moments(created: datetime) -> dict[str, Any]:
    completed = datetime.now(UTC)
    moments = {"created_at": created, "started_at": created, "completed_at": completed}
    seconds = (completed - created).total_seconds()
    return {**{name: moment.isoformat() for name, moment in moments.items()}, "metrics": {"predict_time": seconds}}


def parse_prediction(body: Mapping[str, Any]) -> tuple[Upload, Img2ImgRequest]:
    """The picture, and what to make of it.

    Raises:
        InvalidParameter: it is JSON of another shape, or a field cannot be honoured.
        InvalidImage: the picture is no base64.
    """
    for name in _NEVER_SENT:
        if body.get(name) is not None:
            raise InvalidParameter(f"{name} cannot be honoured: nothing is sent to addresses here.", param=name)
    if others := sorted(set(body) - {"id", "input", *_NEVER_SENT, *_NO_EFFECT}):
        raise InvalidParameter(
            f"There is no '{others[0][:64]}' beside 'input'. What the picture is to be made of goes into that.",
            param=others[0][:64],
        )
    fields = body.get("input")
    if not isinstance(fields, dict):
        raise InvalidParameter('Send {"input": {"image": "data:…", "prompt": "…"}}.', param="input")
    fields = {"prompt": "", "output_format": OutputFormat.PNG, **fields}
    image = fields.pop("image", None)
    with prefix_param("input"):
        # Base64 has no colon.
        if not isinstance(image, str) or (":" in image[:16] and not is_data_url(image)):
            raise InvalidParameter("Send the image as a data: URL: no other address is read here.", param="image")
        return Upload(decode_base64(image, "image")), parse_request(fields, ("image",))


@router.post("/predictions/{name}/cancel")
async def cancel(request: Request, name: str) -> dict[str, Any]:
    """Ends a prediction of the caller's own."""
    task = app_singleton(request, Predictions).find(request_state(request.scope).caller, name)
    if task is None:
        raise PredictionNotFound("No prediction of yours runs under this id.", param="id")
    task.cancel()
    return {}


@router.get("/health-check")
async def health_check(request: Request) -> dict[str, Any]:
    """Always 200; the `status` says whether a picture can be made now."""
    service = service_of(request)
    status = {"ready": "READY", "starting": "STARTING", "draining": "DEFUNCT", "unsigned": "DEFUNCT"}[service.status]
    started = datetime.fromtimestamp(service.started, UTC).isoformat()
    setup = {"started_at": started, "status": "starting" if status == "STARTING" else "succeeded", "logs": ""}
    return {"status": status, "setup": setup, "version": {"img2img": request.app.version}}


class CogInputError(BaseModel):
    """A field of the input that cannot be used."""

    loc: list[str]
    msg: str
    type: str


class CogError(BaseModel):
    """An error: a list of what is wrong with the input, or a sentence."""

    detail: str | list[CogInputError]


def _render_error(error: ServiceError, request_id: str) -> tuple[int, CogError]:
    if error.status == 422:
        where = (error.param or "input").split(".", 1)
        return 422, CogError(detail=[CogInputError(loc=["body", *where], msg=error.message, type=error.code)])
    # Cog's own answer where all places are taken is 409.
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
