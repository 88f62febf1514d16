"""Errors as answers: rendered by the dialect of the path, and counted. Every error goes through here."""

from typing import Any

from starlette.responses import JSONResponse
from starlette.types import Scope

from app.errors import ServiceError
from app.observability.logs import add_log_fields
from app.observability.metrics import Metrics
from app.web.dialects import Dialects
from app.web.problems import PROBLEM_TYPE, Problem, error_headers
from app.web.request_state import request_state


class ErrorResponses:
    """Renders the errors of one app, and counts each by its code.

    Args:
        dialects: have the shapes.
        metrics: has the counter.
    """

    def __init__(self, dialects: Dialects, metrics: Metrics) -> None:
        self._dialects = dialects
        self._metrics = metrics

    def count(self, error: ServiceError) -> None:
        """Count an error that has an answer of its own kind, and add its code to the request's log line."""
        self._metrics.rejected.labels(error.code).inc()
        add_log_fields(error=error.code)

    def event(self, error: ServiceError, scope: Scope) -> tuple[int, dict[str, Any]]:
        """Count an error that ends a stream of events. Returns its status and its body."""
        self.count(error)
        status, body = self._dialects.of(scope["path"]).render_error(error, request_state(scope).request_id)
        return status, body.model_dump(exclude_unset=True)

    def response(self, error: ServiceError, scope: Scope) -> JSONResponse:
        """Count an error, and answer with it."""
        self.count(error)
        request_id = request_state(scope).request_id
        status, body = self._dialects.of(scope["path"]).render_error(error, request_id)
        return JSONResponse(
            body.model_dump(exclude_unset=True),
            status,
            headers=error_headers(error, request_id),
            media_type=PROBLEM_TYPE if isinstance(body, Problem) else None,
        )
