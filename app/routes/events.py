"""Server-sent events: how a request goes, as it goes."""

import json
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from fastapi.responses import StreamingResponse
from fastapi.sse import format_sse_event

from app.errors import ServiceError
from app.refusals import error_body
from app.routes.common import unless_disconnected
from app.service import Service

EVENTS = "text/event-stream"


@dataclass(frozen=True, slots=True)
class Event:
    """A name, and what is sent as JSON."""

    name: str
    body: dict[str, Any]


async def event_stream(request: Request, events: AsyncGenerator[Event, None]) -> StreamingResponse:
    """An answer of events. What is refused before the first one is refused as ever; an error after it is an event too.

    Raises:
        ServiceError: the request was refused before anything has come.
    """
    first = await unless_disconnected(request, _first(events))
    body = _lines(request, first, events)
    return StreamingResponse(body, media_type=EVENTS, headers={"Cache-Control": "no-store"})


async def _first(events: AsyncGenerator[Event, None]) -> Event:
    return await anext(events)


async def _lines(request: Request, first: Event, events: AsyncGenerator[Event, None]) -> AsyncIterator[bytes]:
    try:
        yield _line(first)
        async for event in events:
            yield _line(event)
    except ServiceError as error:
        service: Service = request.app.state.service
        service.metrics.refuse(error.code)
        _, body = error_body(error, request.state.request_id, request.url.path)
        yield _line(Event("error", body))
    finally:
        await events.aclose()


def _line(event: Event) -> bytes:
    return format_sse_event(event=event.name, data_str=json.dumps(event.body))
