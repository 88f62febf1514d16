"""Health and metrics, for whoever runs the service."""

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from app.service import Service

router = APIRouter(tags=["system"])


@router.get("/health/live", summary="Whether the process answers at all")
async def live() -> dict[str, str]:
    """Never waits for a model or a device: a probe that fails here means restart me."""
    return {"status": "live"}


# /health is where Hugging Face's endpoints ask, and /ping where SageMaker does.
@router.get("/ping", include_in_schema=False)
@router.get("/health", include_in_schema=False)
@router.get("/health/ready", summary="Whether a picture can be made now", responses={503: {"description": "Not yet."}})
async def ready(request: Request) -> JSONResponse:
    """200 once a worker has loaded the model and made a real picture with it; 503 before, and while none is there."""
    service: Service = request.app.state.service
    model = service.model
    body: dict[str, Any] = {"status": "ready", "model": model} if model else {"status": "starting"}
    return JSONResponse(body, 200 if model else 503, headers={} if model else {"Retry-After": "1"})


@router.get("/metrics", summary="Prometheus metrics", response_class=Response)
async def metrics(request: Request) -> Response:
    """All series in Prometheus' text format."""
    service: Service = request.app.state.service
    return Response(service.metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")
