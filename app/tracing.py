"""OpenTelemetry spans of what happens to a picture; they go nowhere unless an OTLP endpoint is set.

The request's own span is FastAPI's, which is also what reads the variables `OTEL_*` and exports.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from fastapi.telemetry import TelemetryConfig
from opentelemetry import trace
from opentelemetry.trace import Span, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

SERVICE_NAME = "sdxl-turbo-img2img"


def config(exclude: Callable[[Any], bool]) -> TelemetryConfig:
    """FastAPI's: one span for each request, but for those whose ASGI scope is excluded.

    Not its metrics, since `/metrics` has them; not its logs, which would hold what callers sent.
    """
    return {"auto_configure": True, "metrics": False, "logs": False, "operation_spans": False, "exclude": exclude}


def name_service() -> None:
    """Give the spans of this process a service's name, unless the environment does."""
    if "service.name=" not in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", ""):
        os.environ.setdefault("OTEL_SERVICE_NAME", SERVICE_NAME)


def begin(headers: Mapping[str, str], request_id: str, query: bool) -> str | None:
    """Note a request's id in its span, and that it has a query, which a caller may have put anything into.

    Returns:
        Its trace, as 32 hexadecimal digits: of the span, else of the W3C `traceparent` in its headers, if that is one.
    """
    span = trace.get_current_span()
    span.set_attribute("img2img.request_id", request_id)
    if query:
        span.set_attribute("url.query", "REDACTED")
    context = span.get_span_context()
    if not context.is_valid:
        theirs = TraceContextTextMapPropagator().extract(dict(headers))
        context = trace.get_current_span(theirs).get_span_context()
    return trace.format_trace_id(context.trace_id) if context.is_valid else None


@contextmanager
def span(name: str) -> Iterator[Span]:
    """A span of what runs within it.

    An error is told by its code or its class, never in its own words: those may quote a request.
    """
    tracer = trace.get_tracer(__name__)
    with tracer.start_as_current_span(name, record_exception=False, set_status_on_exception=False) as one:
        try:
            yield one
        except BaseException as error:
            one.set_attribute("error.type", str(getattr(error, "code", type(error).__name__)))
            one.set_status(StatusCode.ERROR)
            raise


@contextmanager
def stage(name: str, seconds: dict[str, float]) -> Iterator[None]:
    """A span of what runs within it; how long that took is put into `seconds`, by its name."""
    start = time.perf_counter()
    with span(name):
        yield
    seconds[name] = time.perf_counter() - start


def lay_out(start: float, seconds: Mapping[str, float]) -> None:
    """Spans, by name, of what ran one after the other where no span could be made.

    Args:
        start: when the first one began, in seconds of Unix time.
        seconds: how long each took.
    """
    tracer = trace.get_tracer(__name__)
    for name, length in seconds.items():
        one = tracer.start_span(name, start_time=int(start * 1e9))
        start += length
        one.end(int(start * 1e9))
