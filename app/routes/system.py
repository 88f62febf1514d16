"""Health, metrics and the description of the API, for operators."""

from fastapi import APIRouter, Request, Response
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, JSONResponse

from app.routes.dependencies import service_of
from app.web.dialects import Dialect, SettingRoute
from app.web.openapi import KEYS, error_responses
from app.web.problems import Problem

router = APIRouter(tags=["system"])

_CDN = "https://cdn.jsdelivr.net"
_DOCS_POLICY = (
    f"default-src 'none'; script-src 'unsafe-inline' {_CDN}; style-src 'unsafe-inline' {_CDN}; "
    "img-src data: https://fastapi.tiangolo.com; connect-src 'self'; frame-ancestors 'none'"
)


@router.get("/health/live", summary="Whether the process answers at all")
async def live() -> dict[str, str]:
    """Does not depend on the model or a device: if this fails, restart the process."""
    return {"status": "live"}


# Hugging Face's endpoints ask /health, and SageMaker asks /ping.
@router.get("/ping", include_in_schema=False)
@router.get("/health", include_in_schema=False)
@router.get("/health/ready", summary="Whether an image can be made now", responses={503: {"description": "Not yet."}})
async def ready(request: Request) -> JSONResponse:
    """200 when a worker has loaded the model and edited an image with it.

    503 before that, while no worker is ready, and while the service shuts down. A worker that was unloaded because it
    was idle counts as ready.
    """
    service = service_of(request)
    if service.status != "ready":
        return JSONResponse({"status": service.status}, 503, headers={"Retry-After": "1"})
    return JSONResponse({"status": "ready", "model": service.model})


@router.get(
    "/metrics",
    summary="Prometheus metrics",
    response_class=Response,
    responses=error_responses(Problem, (401,)),
    dependencies=KEYS,
)
async def metrics(request: Request) -> Response:
    """All series in Prometheus' text format."""
    service = service_of(request)
    return Response(service.render_metrics(), media_type="text/plain; version=0.0.4; charset=utf-8")


@router.get("/docs", include_in_schema=False)
async def docs(request: Request) -> HTMLResponse:
    """The interactive description. The page loads its scripts and styles from a public CDN."""
    page = get_swagger_ui_html(openapi_url=request.app.openapi_url, title=request.app.title)
    page.headers["Content-Security-Policy"] = _DOCS_POLICY
    return page


DIALECT = Dialect(
    router=router,
    open_paths=("/health", "/health/live", "/health/ready", "/ping"),
    quiet_paths=("/metrics",),
    setting_routes=(
        SettingRoute(
            "health_route",
            "GET",
            ready,
            open=True,
            counted_as="/health/ready",
            options={"include_in_schema": False},
        ),
    ),
)
