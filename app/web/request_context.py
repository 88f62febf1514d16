"""What happens to every request before routing: its id, its metrics, and the limits of its body. Pure ASGI.

Not `BaseHTTPMiddleware`: behind that, a route cannot see its caller go.
"""

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Mapping
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import BodyTimeout, BodyTooLarge, ShuttingDown, UnsupportedMediaType
from app.observability import tracing
from app.observability.logs import facts, note
from app.observability.metrics import Metrics
from app.web.problems import SECURITY_HEADERS
from app.web.request_state import begin_request

logger = logging.getLogger(__name__)

# Nothing else may come in: the id goes into log lines and back out in a header.
_REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{1,128}", re.ASCII)


class RequestContext:
    """Gives every request an id, echoed in `X-Request-Id`, and counts it by route and status. Sets security headers.

    Args:
        app: what lies behind.
        metrics: where requests are counted.
        quiet: paths that probes ask for every few seconds: logged at debug level, and not counted as in flight.
        counted_as: the route that stands for another one in metrics and log lines.
    """

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        quiet: frozenset[str] = frozenset(),
        counted_as: Mapping[str, str] | None = None,
    ) -> None:
        self.app = app
        self.metrics = metrics
        self.quiet = quiet
        self.counted_as = counted_as or {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        method = scope["method"][:16]
        if method == "HEAD":
            # As GET, to everything in here: the server leaves the body out, by a scope of its own.
            scope = {**scope, "method": "GET"}
        headers = Headers(scope=scope)
        sent = headers.get("x-request-id", "")
        request_id = sent if _REQUEST_ID.fullmatch(sent) else secrets.token_hex(16)
        state = begin_request(scope, request_id)
        start, status = time.perf_counter(), 500
        told: dict[str, Any] = {"request_id": request_id, "method": method}
        if trace_id := tracing.begin(headers, request_id, query=bool(scope["query_string"])):
            told["trace_id"] = trace_id
        before = facts.set(told)
        probe = scope["path"] in self.quiet
        self.metrics.in_flight.inc(not probe)

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = request_id
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        finally:
            seconds = time.perf_counter() - start
            # The route's own template, never the path that was asked for: that could be anything, without end.
            route = getattr(scope.get("route"), "path", "unmatched")
            route = self.counted_as.get(route, route)
            status = status if state.outcome is None else state.outcome
            self.metrics.requests.labels(route, str(status)).inc()
            self.metrics.request_seconds.labels(route, "success" if status < 400 else "error").observe(seconds)
            self.metrics.in_flight.dec(not probe)
            facts.reset(before)
            level = logging.DEBUG if probe else logging.WARNING if status >= 500 else logging.INFO
            told |= {"route": route, "status": status, "milliseconds": round(seconds * 1000, 1)}
            if state.caller.startswith("key "):
                told["key"] = state.caller.removeprefix("key ")
            words = "%(method)s %(route)s %(status)d %(milliseconds).1f ms id=%(request_id)s"
            logger.log(level, words, told, extra={"facts": told})


class BodyLimits:
    """Refuses a body that is larger than it may be, and gives up on one that does not arrive in time.

    Both show when the route reads the body, so that one handler answers them as it answers everything else. (FastAPI's
    `max_body_size` answers a declared length in plain text and an undeclared one in JSON, whatever the app's handlers.)
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
                self._note(start, received)
                raise BodyTimeout(
                    f"The request body was not complete after {self.seconds:g} s. Send it faster, or send less."
                ) from None
            except asyncio.CancelledError:
                # What runs is done, the process is about to end, and the body is still on its way.
                raise ShuttingDown("The service has shut down. Send the request again.") from None
            complete = message["type"] != "http.request" or not message.get("more_body", False)
            received += len(message.get("body", b""))
            if received > self.max_bytes:
                self._note(start, received)
                raise _too_large(self.max_bytes)
            if complete and received and message["type"] == "http.request":
                self._note(start, received)
            return message

        await self.app(scope, receive_in_time, send)

    def _note(self, start: float, received: int) -> None:
        """A body is complete, or given up: its metric, its span and the log line of its request say so."""
        now = time.time()
        seconds = now - start
        self.metrics.stage_seconds.labels("receive").observe(seconds)
        tracing.lay_out(now, {"receive": seconds})
        note(received_bytes=received, receive_milliseconds=round(seconds * 1000, 1))


def _too_large(max_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(
        f"The request body is larger than {max_bytes:,} bytes. Send a smaller picture, or raise IMG2IMG_MAX_BODY_BYTES."
    )
