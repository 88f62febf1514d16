"""What every dialect shares: cancelling for a caller who left, how long he waits, and a picture as an HTTP answer."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from typing import Annotated, Any, TypeVar

from fastapi import Request
from fastapi.responses import Response, StreamingResponse
from pydantic import Field, TypeAdapter, ValidationError
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from app.edits import EditedImage, RequestInfo
from app.errors import InvalidParameter
from app.request import Img2ImgRequest, Number
from app.web.offload import offload
from app.web.request_state import request_state

T = TypeVar("T")

_CHUNK = 256 * 1024
_SECONDS: TypeAdapter[float] = TypeAdapter(Annotated[Number, Field(gt=0, allow_inf_nan=False)])


async def unless_disconnected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Await `work`, but cancel it when the caller goes. The request's body must have been read before.

    Raises:
        ClientDisconnect: the caller has gone; there is nobody to answer.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        gone.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait({task})


async def gather_or_cancel(*work: Coroutine[Any, Any, T]) -> list[T]:
    """All results, or the first error; then the others are cancelled."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def _disconnected(request: Request) -> None:
    # Behind a body that was read, there is nothing else to come.
    await request.receive()


def request_info(request: Request) -> RequestInfo:
    """The id and the client of a request, and how long the client will wait: `X-Request-Timeout`, in seconds.

    Raises:
        InvalidParameter: that is no finite decimal number above 0.
    """
    sent = request.headers.get("x-request-timeout")
    timeout = None
    if sent is not None:
        try:
            timeout = _SECONDS.validate_python(sent)
        except ValidationError:
            raise InvalidParameter(
                "X-Request-Timeout must be a number of seconds above 0, like 2.5.", param="X-Request-Timeout"
            ) from None
    state = request_state(request.scope)
    return RequestInfo(state.request_id, state.caller, timeout)


async def reject_query_fields(request: Request) -> None:
    """A dependency of routes that read their fields from the body. A coroutine, since FastAPI runs others in a thread.

    Raises:
        InvalidParameter: a field is in the query. Other names are ignored: some clients add a version.
    """
    for name in request.query_params:
        if name in Img2ImgRequest.model_fields:
            raise InvalidParameter(f"'{name}' is read from the body here, not from the query.", param=name)


class _Streamed(StreamingResponse):
    """Without a task that waits for the caller to go: what is streamed is there already, and ends by itself."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.stream_response(send)


def picture_response(picture: EditedImage) -> Response:
    """The file of an image."""
    headers = {
        "Content-Disposition": f'inline; filename="{picture.filename}"',
        "Cache-Control": "no-store",
        **picture_headers(picture),
    }
    return bytes_response(picture.data, picture.output_format.media_type, headers)


async def json_of_images(
    render: Callable[[], str], images: Sequence[EditedImage], media_type: str = "application/json"
) -> Response:
    """JSON that holds images, with their headers. `render` may run on a thread."""
    content = await offload(sum(len(image.data) for image in images), lambda: render().encode())
    return bytes_response(content, media_type, picture_headers(*images))


def bytes_response(data: bytes, media_type: str, headers: Mapping[str, str]) -> Response:
    """An answer in chunks: a slow reader holds the connection and no copy of the data, and no chunk takes long."""
    return _Streamed(_chunks(data), headers={"Content-Length": str(len(data)), **headers}, media_type=media_type)


def picture_headers(*pictures: EditedImage) -> dict[str, str]:
    """What headers say of a picture; of several, what all have in common, and the most tokens that were cut."""
    told = [_facts(picture) for picture in pictures]
    common = dict(set(told[0].items()).intersection(*(facts.items() for facts in told)))
    if cut := max(picture.tokens_cut for picture in pictures):
        common["X-Prompt-Tokens-Cut"] = str(cut)
    return common


def _facts(picture: EditedImage) -> dict[str, str]:
    return {
        "X-Seed": str(picture.seed),
        "X-Steps-Run": str(picture.steps_run),
        "X-Start-Timestep": f"{picture.start_timestep:g}",
        "Server-Timing": ", ".join(f"{stage};dur={seconds * 1000:.1f}" for stage, seconds in picture.seconds.items()),
    }


async def _chunks(data: bytes) -> AsyncIterator[memoryview]:
    view = memoryview(data)
    for start in range(0, len(view), _CHUNK):
        yield view[start : start + _CHUNK]
