"""What every dialect shares: cancelling for a caller who left, and a picture as an HTTP answer."""

import asyncio
import math
import re
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from app.errors import InvalidParameter
from app.service import Call, Picture

T = TypeVar("T")

_CHUNK = 256 * 1024
_SECONDS = re.compile(r"[0-9]{1,12}(\.[0-9]{0,12})?|\.[0-9]{1,12}", re.ASCII)


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


async def together(*work: Coroutine[Any, Any, T]) -> list[T]:
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


def of_app(request: Request, kind: Callable[[], T]) -> T:
    """The app's one object of a class, made when it is first asked for."""
    kept: dict[Any, T] = request.app.state.kept
    return kept.setdefault(kind, kind())


def call_of(request: Request) -> Call:
    """Whose request it is, and how long the caller will wait: `X-Request-Timeout`, in seconds.

    Raises:
        InvalidParameter: that is no number above 0.
    """
    sent = request.headers.get("x-request-timeout")
    timeout = None
    if sent is not None:
        timeout = float(sent) if _SECONDS.fullmatch(sent) else 0.0
        if not 0 < timeout < math.inf:
            raise InvalidParameter(
                "X-Request-Timeout must be a number of seconds above 0, like 2.5.", param="X-Request-Timeout"
            )
    return Call(request.state.request_id, request.state.caller, timeout)


class _Streamed(StreamingResponse):
    """Without a task that waits for the caller to go: what is streamed is there already, and ends by itself."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.stream_response(send)


def picture_response(picture: Picture) -> StreamingResponse:
    """The picture's bytes, in chunks so that a slow reader holds the connection and not the server's memory."""
    headers = {
        "Content-Length": str(len(picture.data)),
        "Content-Disposition": f'inline; filename="{picture.filename}"',
        "Cache-Control": "no-store",
        "X-Seed": str(picture.seed),
        "X-Steps-Run": str(picture.steps_run),
        "X-Start-Timestep": f"{picture.start_timestep:g}",
        "Server-Timing": ", ".join(f"{stage};dur={seconds * 1000:.1f}" for stage, seconds in picture.seconds.items()),
    }
    if picture.tokens_cut:
        headers["X-Prompt-Tokens-Cut"] = str(picture.tokens_cut)
    return _Streamed(_chunks(picture.data), headers=headers, media_type=picture.output_format.media_type)


async def _chunks(data: bytes) -> AsyncIterator[memoryview]:
    view = memoryview(data)
    for start in range(0, len(view), _CHUNK):
        yield view[start : start + _CHUNK]
