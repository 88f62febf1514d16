"""`create_app(settings)`: the one place where the parts are joined. The lifespan starts and stops the engine."""

import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.routing import Match

from app import __version__
from app.engine.engine import LOADER, Engine
from app.errors import CLIENT_CLOSED_REQUEST, EngineStopped, InvalidParameter, Misconfigured, ServiceError
from app.imaging import c2pa
from app.imaging.c2pa import Signer
from app.observability import tracing
from app.observability.metrics import Metrics
from app.routes import cog, img2img, kserve, openai, stability, system
from app.routes.webui import routes
from app.service import Service
from app.settings import Settings
from app.web.access import OPEN_PATHS, Gate
from app.web.api_keys import Keys
from app.web.openapi import EXPOSED_HEADERS
from app.web.problems import refusal, where_pictures_go
from app.web.request_context import BodyLimits, RequestContext

_ROOMS = (img2img, openai, routes, stability, cog, kserve, system)


def end_process(failure: EngineStopped) -> None:
    """End the server in good order: a restart policy, and the fresh start it gives, cure what a new worker cannot."""
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
        yield service
    finally:
        await engine.stop()
        service.close()


def create_app(
    settings: Settings | None = None,
    loader: str = LOADER,
    on_failure: Callable[[EngineStopped], None] = end_process,
) -> FastAPI:
    """The whole service as an ASGI app.

    Args:
        settings: read from the environment if None.
        loader: `module:function` that a worker calls to get its model.
        on_failure: called once if no worker can be kept running.

    Raises:
        Misconfigured: the API keys, the certificate that is to sign, or a path that is to be served cannot be used.
    """
    settings = settings or Settings()
    metrics = Metrics()
    signer = c2pa.signer(settings)
    open_paths = OPEN_PATHS | ({settings.health_route} if settings.health_route else set())
    quiet = open_paths | {"/metrics", "/sdapi/v1/progress"}

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with tracing.exporting(), open_service(settings, metrics, loader, on_failure, signer) as service:
            app.state.service = service
            yield

    app = FastAPI(
        title="SDXL-Turbo image-to-image",
        summary="A picture and a prompt in, a picture out.",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        telemetry=tracing.config(exclude=lambda scope: scope["path"] in quiet),
    )
    origins = frozenset(filter(None, settings.cors_origins.split(",")))
    # The last one added is the first that a request meets.
    max_bytes, seconds = settings.max_body_bytes, settings.body_timeout_seconds
    app.add_middleware(BodyLimits, metrics=metrics, max_bytes=max_bytes, seconds=seconds)
    own_paths = frozenset((settings.health_route, settings.predict_route))
    app.add_middleware(
        Gate, keys=Keys(settings), origins=origins, metrics=metrics, open_paths=open_paths, own_paths=own_paths
    )
    if origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=sorted(origins),
            allow_methods=["GET", "POST", "PUT"],
            # SDKs say much of themselves, and more with each release; an origin that is listed is trusted with the key.
            allow_headers=["*"],
            expose_headers=EXPOSED_HEADERS,
        )
    app.add_middleware(RequestContext, metrics=metrics, quiet=quiet, health_route=settings.health_route)
    _handle_errors(app, metrics, own_paths)
    app.state.metrics = metrics
    app.state.kept = {}
    _add_named_routes(app, settings)
    for room in _ROOMS:
        app.include_router(room.router)
    return app


def _add_named_routes(app: FastAPI, settings: Settings) -> None:
    """The paths that a platform chose. Raises `Misconfigured` if one of them is something else already."""
    taken = [*app.routes, *(route for room in _ROOMS for route in room.router.routes)]
    for name, method, endpoint in (("health", "GET", system.ready), ("predict", "POST", kserve.predict)):
        path = getattr(settings, f"{name}_route")
        scope = {"type": "http", "path": path, "method": method, "headers": []}
        there = [r for r in taken if getattr(r, "path", "") == path or r.matches(scope)[0] is Match.FULL]
        if not path or any(getattr(route, "endpoint", None) is endpoint for route in there):
            continue
        if there or (name == "predict" and path == settings.health_route):
            raise Misconfigured(f"IMG2IMG_{name.upper()}_ROUTE: {path} is the path of something else. Choose another.")
        app.add_api_route(path, endpoint, methods=[method], include_in_schema=False)


def _handle_errors(app: FastAPI, metrics: Metrics, own_paths: frozenset[str]) -> None:
    """Every error becomes a problem document, or what the path's dialect has for it."""

    def answer(request: Request, error: ServiceError) -> Response:
        metrics.refuse(error.code)
        return refusal(error, request.state.request_id, request.url.path, own_paths)

    @app.exception_handler(ServiceError)
    async def expected(request: Request, error: ServiceError) -> Response:
        return answer(request, error)

    @app.exception_handler(HTTPException)
    async def from_framework(request: Request, error: HTTPException) -> Response:
        path = request.url.path
        hint = f" {where_pictures_go(path)}" if error.status_code == 404 else ""
        other = ServiceError(f"{request.method} {path[:100]}: {error.detail}.{hint}")
        other.status, other.code = error.status_code, str(error.detail).lower().replace(" ", "_")
        response = answer(request, other)
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(RequestValidationError)
    async def of_a_route(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        name = str(first["loc"][-1])
        return answer(request, InvalidParameter(f"{name}: {first['msg']}.", param=name))

    @app.exception_handler(ClientDisconnect)
    async def nobody_there(request: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=CLIENT_CLOSED_REQUEST)

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> Response:
        return answer(request, ServiceError("Internal error. The log has more, under the request id."))
