"""`/v2/…`: health and metadata, as KServe's Open Inference Protocol has them."""

from typing import Any, Literal

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, Field

from app.errors import ServiceError
from app.routes.dependencies import service_of
from app.web.dialects import Dialect
from app.web.openapi import KEYS, Responses, error_responses
from app.web.requests import reject_query_fields

router = APIRouter(tags=["KServe"], dependencies=[Depends(reject_query_fields)])


class KServeServer(BaseModel):
    """Metadata of the server."""

    name: Literal["img2img"] = "img2img"
    version: str
    extensions: list[str] = []


class KServeLive(BaseModel):
    """Whether the process answers."""

    live: Literal[True] = True


class KServeReady(BaseModel):
    """Whether an image can be made now."""

    ready: bool


class KServeModelReady(KServeReady):
    """Whether the model can make an image now."""

    name: str


class KServeModelMetadata(BaseModel):
    """Metadata of the model. It takes no tensors."""

    name: str
    versions: list[str] = []
    platform: Literal["diffusers"] = "diffusers"
    inputs: list[Any] = []
    outputs: list[Any] = []


class KServeError(BaseModel):
    """An error."""

    error: str = Field(description="What is wrong, and what to do.")


_ERRORS = error_responses(KServeError, (401, 404, 422, 503))
_NOT_YET: Responses = {503: {"model": KServeReady, "description": "Not yet."}}


@router.get("/v2", summary="Metadata of the server", dependencies=KEYS, responses=error_responses(KServeError, (401,)))
async def server(request: Request) -> KServeServer:
    """Its name and its version."""
    return KServeServer(version=request.app.version)


@router.get("/v2/health/live", summary="Whether the process answers at all")
async def live() -> KServeLive:
    """As `/health/live`."""
    return KServeLive()


@router.get("/v2/health/ready", summary="Whether an image can be made now", responses=_NOT_YET)
async def ready(request: Request, response: Response) -> KServeReady:
    """As `/health/ready`."""
    is_ready = service_of(request).status == "ready"
    response.status_code = 200 if is_ready else 503
    return KServeReady(ready=is_ready)


@router.get(
    "/v2/models/{name}/ready",
    summary="Whether the model can make an image now",
    dependencies=KEYS,
    responses={**_ERRORS, 503: {"model": KServeModelReady | KServeError, "description": "Not yet."}},
)
async def model_ready(request: Request, response: Response, name: str) -> KServeModelReady:
    """Of the model, which is the only one."""
    service = service_of(request)
    service.check_model(name, in_path=True)
    is_ready = service.status == "ready"
    response.status_code = 200 if is_ready else 503
    return KServeModelReady(name=name, ready=is_ready)


@router.get("/v2/models/{name}", summary="Metadata of the model", dependencies=KEYS, responses=_ERRORS)
async def model(request: Request, name: str) -> KServeModelMetadata:
    """It takes no tensors: images go to `/img2img`."""
    service_of(request).check_model(name, in_path=True)
    return KServeModelMetadata(name=name)


def _render_error(error: ServiceError, request_id: str) -> tuple[int, KServeError]:
    return error.status, KServeError(error=error.message)


DIALECT = Dialect(
    router=router,
    prefixes=("/v2/",),
    render_error=_render_error,
    open_paths=("/v2/health/live", "/v2/health/ready"),
)
