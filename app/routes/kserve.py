"""`/v2/…`: health and metadata, as KServe's Open Inference Protocol has them."""

from typing import Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from app.errors import ServiceError
from app.routes.dependencies import service_of
from app.web.dialects import Dialect
from app.web.requests import reject_query_fields

router = APIRouter(include_in_schema=False, dependencies=[Depends(reject_query_fields)])


class KServeError(BaseModel):
    """An error."""

    error: str


def _render_error(error: ServiceError, request_id: str) -> tuple[int, KServeError]:
    return error.status, KServeError(error=error.message)


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
    service = service_of(request)
    is_ready = service.status == "ready"
    return JSONResponse({"ready": is_ready}, 200 if is_ready else 503)


@router.get("/v2/models/{name}/ready")
async def model_ready(request: Request, name: str) -> JSONResponse:
    """Whether the model, which is the only one, can make pictures."""
    service = service_of(request)
    service.check_model(name)
    is_ready = service.status == "ready"
    return JSONResponse({"name": name, "ready": is_ready}, 200 if is_ready else 503)


@router.get("/v2/models/{name}")
async def model(request: Request, name: str) -> dict[str, Any]:
    """KServe's metadata of a model. It takes no tensors: pictures go to `/img2img`."""
    service = service_of(request)
    service.check_model(name)
    return {"name": name, "versions": [], "platform": "diffusers", "inputs": [], "outputs": []}


DIALECT = Dialect(
    router=router,
    prefixes=("/v2/",),
    render_error=_render_error,
    open_paths=("/v2/health/live", "/v2/health/ready"),
)
