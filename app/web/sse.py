"""Server-sent events."""

import asyncio
import json
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from fastapi.responses import StreamingResponse
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event

from app.errors import CLIENT_CLOSED_REQUEST, ServiceError
from app.web.app_state import app_state
from app.web.disconnect import unless_disconnected
from app.web.request_state import request_state

EVENTS = "text/event-stream"

HEADERS = {
    "Cache-Control": "no-store",
    # As in FastAPI's own event streams: otherwise nginx may buffer the events.
    "X-Accel-Buffering": "no",
}

KEEPALIVE_SECONDS = 15.0
"""After so long without an event a comment is sent, as the HTML standard advises: proxies close idle connections."""


@dataclass(frozen=True, slots=True)
class Event:
    """An event with a JSON body. The last one holds the result."""

    name: str
    body: dict[str, Any]
    last: bool = False


async def event_stream(request: Request, events: AsyncGenerator[Event, None]) -> StreamingResponse:
    """A stream of events. An error before the first event has its own status; a later one is an event.

    Raises:
        ServiceError: the request was refused before the first event.
    """
    first = await unless_disconnected(request, _next(events))
    body = _lines(request, first, events)
    return StreamingResponse(body, media_type=EVENTS, headers=HEADERS)


async def _next(events: AsyncGenerator[Event, None]) -> Event | None:
    try:
        return await anext(events)
    except StopAsyncIteration:
        return None


async def _lines(
    request: Request, first: Event | None, events: AsyncGenerator[Event, None]
) -> AsyncGenerator[bytes, None]:
    event, coming, state = first, None, request_state(request.scope)
    state.outcome = CLIENT_CLOSED_REQUEST
    try:
        while event:
            yield _line(event)
            if event.last:
                state.outcome = 200
            coming = asyncio.create_task(_next(events))
            while not (await asyncio.wait({coming}, timeout=KEEPALIVE_SECONDS))[0]:
                yield KEEPALIVE_COMMENT
            event = coming.result()
    except ServiceError as error:
        state.outcome, body = app_state(request).errors.event(error, request.scope)
        yield _line(Event("error", body))
    except Exception:
        # The stream is cut off.
        state.outcome = 500
        raise
    finally:
        if coming and not coming.done():
            coming.cancel()
            await asyncio.wait({coming})
        await events.aclose()


def _line(event: Event) -> bytes:
    return format_sse_event(event=event.name, data_str=json.dumps(event.body))
