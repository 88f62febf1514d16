"""`create_app(settings)` joins the parts. The app's lifespan starts and stops the engine."""

import os
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect

from app import __version__
from app.engine.engine import LOADER, Engine
from app.errors import (
    CLIENT_CLOSED_REQUEST,
    EngineStopped,
    InvalidParameter,
    MethodNotAllowed,
    RouteNotFound,
    ServiceError,
)
from app.field_errors import invalid_field
from app.imaging import c2pa
from app.imaging.c2pa import Signer
from app.observability import tracing
from app.observability.metrics import Metrics
from app.routes import DIALECTS
from app.service import Service
from app.settings import Settings
from app.watched_files import refreshing
from app.web.access import AccessControl
from app.web.api_keys import ApiKeys
from app.web.app_state import AppState, keep_app_state
from app.web.body_limits import BodyLimits
from app.web.dialects import Dialect, Dialects
from app.web.error_responses import ErrorResponses
from app.web.openapi import EXPOSED_HEADERS
from app.web.request_context import RequestContext


def end_process(failure: EngineStopped) -> None:
    """Shut the server down: a restart of the container may help where a new worker did not."""
    os.kill(os.getpid(), signal.SIGTERM)


@asynccontextmanager
async def open_service(
    settings: Settings,
    metrics: Metrics,
    loader: str = LOADER,
    on_failure: Callable[[EngineStopped], None] = end_process,
    signer: Signer | None = None,
) -> AsyncIterator[Service]:
    """A running `Service`: its engine starts on entering, and stops on leaving."""
    engine = Engine(settings, metrics, loader, on_failure)
    service = Service(settings, engine, metrics, signer)
    await engine.start()
    try:
        await service.start()
        async with refreshing(*([signer.refresh] if signer else [])):
            yield service
    finally:
        await engine.stop()
        service.close()


def create_app(
    settings: Settings | None = None,
    loader: str = LOADER,
    on_failure: Callable[[EngineStopped], None] = end_process,
    dialects: Sequence[Dialect] = DIALECTS,
) -> FastAPI:
    """The service as an ASGI app.

    Args:
        settings: read from the environment if None.
        loader: `module:function` that a worker calls to get its model.
        on_failure: called once if no worker can be kept running.
        dialects: the wire formats that it serves.

    Raises:
        Misconfigured: the API keys, the certificate for signing, or a path in the settings cannot be used.
    """
    settings = settings or Settings()
    metrics = Metrics()
    signer, keys = c2pa.signer(settings), ApiKeys(settings)
    served = Dialects(dialects, settings)
    errors = ErrorResponses(served, metrics)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service_of_app = open_service(settings, metrics, loader, on_failure, signer)
        refreshed = [keys.refresh] if settings.api_keys_file else []
        async with tracing.exporting(), refreshing(*refreshed), service_of_app as service:
            app.state.service = service
            yield

    app = FastAPI(
        title="SDXL-Turbo image-to-image",
        summary="An image and a prompt in, an image out.",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        telemetry=tracing.config(exclude=lambda scope: scope["path"] in served.quiet_paths),
    )
    origins = frozenset(filter(None, settings.cors_origins.split(",")))
    # A request passes the middleware in the opposite order.
    max_bytes, seconds = settings.max_body_bytes, settings.body_timeout_seconds
    app.add_middleware(BodyLimits, metrics=metrics, max_bytes=max_bytes, seconds=seconds)
    app.add_middleware(AccessControl, keys=keys, origins=origins, errors=errors, open_paths=served.open_paths)
    if origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=sorted(origins),
            allow_methods=["GET", "POST", "PUT"],
            # SDKs send many headers, and new ones with each release. A listed origin is trusted with the key.
            allow_headers=["*"],
            expose_headers=EXPOSED_HEADERS,
        )
    app.add_middleware(RequestContext, metrics=metrics, quiet=served.quiet_paths, counted_as=served.counted_as)
    _handle_errors(app, errors, served)
    keep_app_state(app, AppState(errors, served.states()))
    served.add_to(app)
    return app


def _handle_errors(app: FastAPI, errors: ErrorResponses, dialects: Dialects) -> None:
    """Answer every error in the shape of the path's dialect."""

    @app.exception_handler(ServiceError)
    async def service_error(request: Request, error: ServiceError) -> Response:
        return errors.response(error, request.scope)

    @app.exception_handler(404)
    async def not_found(request: Request, error: HTTPException) -> Response:
        message = f"{_described(request, error)} {_where_images_go(request, dialects)}"
        return errors.response(RouteNotFound(message), request.scope)

    @app.exception_handler(405)
    async def method_not_allowed(request: Request, error: HTTPException) -> Response:
        answered = error.headers or {}
        methods = " or ".join(sorted(answered.get("Allow", "another method").split(", ")))
        message = f"{_described(request, error)} Send {methods}. {_where_images_go(request, dialects)}"
        response = errors.response(MethodNotAllowed(message), request.scope)
        response.headers.update(answered)
        return response

    @app.exception_handler(RequestValidationError)
    async def invalid_parameter(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        name = str(first["loc"][-1])
        return errors.response(InvalidParameter(invalid_field(name, first), param=name), request.scope)

    @app.exception_handler(ClientDisconnect)
    async def client_disconnect(request: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=CLIENT_CLOSED_REQUEST)

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> Response:
        internal = ServiceError("Internal error. The log has more, under the request id.")
        return errors.response(internal, request.scope)


def _where_images_go(request: Request, dialects: Dialects) -> str:
    return f"An image and a prompt go to POST {dialects.edit_path(request.url.path)}."


def _described(request: Request, error: HTTPException) -> str:
    return f"{request.method} {request.url.path[:100]}: {error.detail}."
