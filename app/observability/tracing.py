"""OpenTelemetry spans of the stages of an edit, exported if an OTLP endpoint is set. A request's span is FastAPI's."""

import asyncio
import logging
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from fastapi.telemetry import TelemetryConfig
from opentelemetry import trace
from opentelemetry.trace import Span, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from app import __version__

_NAME = "sdxl-turbo-img2img"

_LAST_SPANS_SECONDS = 5.0
"""At its end, the process waits for the collector to take the last spans, at most so long."""

logger = logging.getLogger(__name__)


def config(exclude: Callable[[Any], bool]) -> TelemetryConfig:
    """FastAPI's telemetry: one span for each request whose ASGI scope is not excluded.

    Without its metrics, which `/metrics` has; without its logs, which would hold parts of requests; without its set-up
    of exporters, which waits for a collector once for each batch when the process ends.
    """
    return {"auto_configure": False, "metrics": False, "logs": False, "operation_spans": False, "exclude": exclude}


@asynccontextmanager
async def exporting() -> AsyncIterator[None]:
    """Inside it, spans are exported to the endpoint of the variables `OTEL_*`, if they name one."""
    endpoint = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    if not endpoint or os.environ.get("OTEL_TRACES_EXPORTER") == "none":
        yield
        return
    # These imports take half a second.
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    about = {"service.version": __version__}
    has_name = "OTEL_SERVICE_NAME" in os.environ or "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    resource = Resource.create(about if has_name else {"service.name": _NAME, **about})
    try:
        provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    except Exception as error:
        # One of a dozen variables is no number or out of bounds. The service runs without tracing.
        logger.error("tracing disabled: invalid OTEL_* configuration: %s", error)
        yield
        return
    trace.set_tracer_provider(provider)
    logger.info("spans are exported by OTLP")
    try:
        yield
    finally:
        # A daemon thread does not keep the process from ending.
        closing = threading.Thread(target=provider.shutdown, daemon=True)
        closing.start()
        await asyncio.to_thread(closing.join, _LAST_SPANS_SECONDS)


def begin(headers: Mapping[str, str], request_id: str, query: bool) -> str | None:
    """Add a request's id to its span, and hide its query, which may hold anything.

    Returns:
        The id of its trace as 32 hexadecimal digits: that of the span, else of the W3C `traceparent` header, else None.
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
    """A span of what runs inside it.

    Of an error, it has the code or the class, and not the message, which may quote the request.
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
    """A span of what runs inside it. Its duration is put into `seconds`, by its name."""
    start = time.perf_counter()
    with span(name):
        yield
    seconds[name] = time.perf_counter() - start


def record_finished_spans(end: float, seconds: Mapping[str, float]) -> None:
    """Spans of stages that ran one after the other in another process.

    Args:
        end: the end of the last one, in seconds of Unix time.
        seconds: the duration of each, by its name.
    """
    tracer = trace.get_tracer(__name__)
    start = end - sum(seconds.values())
    for name, length in seconds.items():
        one = tracer.start_span(name, start_time=int(start * 1e9))
        start += length
        one.end(int(start * 1e9))
