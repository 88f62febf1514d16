"""The limits of a request's body: its size, and the time that it takes to arrive. Pure ASGI."""

import asyncio
import time

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import BodyTimeout, BodyTooLarge, ShuttingDown, UnsupportedMediaType
from app.observability import tracing
from app.observability.logs import add_log_fields
from app.observability.metrics import Metrics


class BodyLimits:
    """Refuses a body that is too large, or that does not arrive in time.

    The error is raised where the route reads the body, so that it is answered in the shape of the dialect. (FastAPI's
    `max_body_size` has shapes of its own.)
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, max_bytes: int, seconds: float) -> None:
        self.app = app
        self.metrics = metrics
        self.max_bytes = max_bytes
        self.seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        encoding = headers.get("content-encoding", "").strip().lower()
        declared = headers.get("content-length", "")
        expected = int(declared) if declared.isdecimal() else 0
        deadline = asyncio.get_running_loop().time() + self.seconds
        start, received, complete = time.time(), 0, False

        async def receive_in_time() -> Message:
            nonlocal received, complete
            if complete:
                return await receive()
            if encoding not in ("", "identity"):
                raise UnsupportedMediaType("A body with a Content-Encoding is not taken. Send it as it is.")
            if expected > self.max_bytes:
                raise _too_large(self.max_bytes)
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                self._record(start, received)
                raise BodyTimeout(
                    f"The request body was not complete after {self.seconds:g} s. Send it faster, or send less."
                ) from None
            except asyncio.CancelledError:
                # The process ends while the body arrives.
                raise ShuttingDown("The service has shut down. Send the request again.") from None
            complete = message["type"] != "http.request" or not message.get("more_body", False)
            received += len(message.get("body", b""))
            if received > self.max_bytes:
                self._record(start, received)
                raise _too_large(self.max_bytes)
            if complete and received and message["type"] == "http.request":
                self._record(start, received)
            return message

        await self.app(scope, receive_in_time, send)

    def _record(self, start: float, received: int) -> None:
        """Add the size and the time of a body to the metrics, the spans and the request's log line."""
        now = time.time()
        seconds = now - start
        self.metrics.stage_seconds.labels("receive").observe(seconds)
        tracing.record_finished_spans(now, {"receive": seconds})
        add_log_fields(received_bytes=received, receive_milliseconds=round(seconds * 1000, 1))


def _too_large(max_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(
        f"The request body is larger than {max_bytes:,} bytes. Send a smaller image, or raise IMG2IMG_MAX_BODY_BYTES."
    )
