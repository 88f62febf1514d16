"""The id, the log line and the metrics of every request. Pure ASGI.

Not `BaseHTTPMiddleware`: behind that, a route does not notice that its client disconnects.
"""

import logging
import re
import secrets
import time
from collections.abc import Mapping
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.observability import tracing
from app.observability.logs import log_fields
from app.observability.metrics import Metrics
from app.web.problems import SECURITY_HEADERS
from app.web.request_state import begin_request

logger = logging.getLogger(__name__)

# Nothing else is taken: the id goes into log lines and into a header of the answer.
_REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{1,128}", re.ASCII)


class RequestContext:
    """Gives every request an id, echoed in `X-Request-Id`, and counts it by route and status. Sets security headers.

    Args:
        app: the next ASGI app.
        metrics: counts the requests.
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
            # The app answers as to GET; the server, which has its own scope, leaves the body out.
            scope = {**scope, "method": "GET"}
        headers = Headers(scope=scope)
        sent = headers.get("x-request-id", "")
        request_id = sent if _REQUEST_ID.fullmatch(sent) else secrets.token_hex(16)
        state = begin_request(scope, request_id)
        start, status = time.perf_counter(), 500
        fields: dict[str, Any] = {"request_id": request_id, "method": method}
        if trace_id := tracing.begin(headers, request_id, query=bool(scope["query_string"])):
            fields["trace_id"] = trace_id
        before = log_fields.set(fields)
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
            # The route's template and not the path, which clients choose: the number of series has to have a bound.
            route = getattr(scope.get("route"), "path", "unmatched")
            route = self.counted_as.get(route, route)
            status = status if state.outcome is None else state.outcome
            self.metrics.requests.labels(route, str(status)).inc()
            self.metrics.request_seconds.labels(route, "success" if status < 400 else "error").observe(seconds)
            self.metrics.in_flight.dec(not probe)
            log_fields.reset(before)
            level = logging.DEBUG if probe else logging.WARNING if status >= 500 else logging.INFO
            fields |= {"route": route, "status": status, "milliseconds": round(seconds * 1000, 1)}
            if state.caller.startswith("key "):
                fields["key"] = state.caller.removeprefix("key ")
            message = "%(method)s %(route)s %(status)d %(milliseconds).1f ms id=%(request_id)s"
            logger.log(level, message, fields, extra={"fields": fields})
