"""OpenTelemetry spans of what happens to a picture; they go nowhere unless an OTLP endpoint is set.

The request's own span is FastAPI's.
"""

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
"""So long the end of the process waits for a collector to take what it has not yet."""

logger = logging.getLogger(__name__)


def config(exclude: Callable[[Any], bool]) -> TelemetryConfig:
    """FastAPI's: one span for each request, but for those whose ASGI scope is excluded.

    Not its metrics, since `/metrics` has them; not its logs, which would hold what callers sent. It does not set up
    exporting either: at its end it would wait as many times for a collector as it has batches.
    """
    return {"auto_configure": False, "metrics": False, "logs": False, "operation_spans": False, "exclude": exclude}


@asynccontextmanager
async def exporting() -> AsyncIterator[None]:
    """Within it spans go to the endpoint that the variables `OTEL_*` name, if they do."""
    endpoint = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    if not endpoint or os.environ.get("OTEL_TRACES_EXPORTER") == "none":
        yield
        return
    # Half a second of imports, for those only who want it.
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    about = {"service.version": __version__}
    told = "OTEL_SERVICE_NAME" in os.environ or "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    resource = Resource.create(about if told else {"service.name": _NAME, **about})
    try:
        provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    except Exception as error:
        # One of a dozen variables has no number in it, or one that is too large: pictures are worth more than spans.
        logger.error("no span is exported, since a variable OTEL_* is wrong: %s", error)
        yield
        return
    trace.set_tracer_provider(provider)
    logger.info("spans are exported by OTLP")
    try:
        yield
    finally:
        # A thread that nobody waits for beyond that: the process can end.
        closing = threading.Thread(target=provider.shutdown, daemon=True)
        closing.start()
        await asyncio.to_thread(closing.join, _LAST_SPANS_SECONDS)


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


def lay_out(end: float, seconds: Mapping[str, float]) -> None:
    """Spans, by name, of what ran one after the other where no span could be made.

    Args:
        end: when the last one was over, in seconds of Unix time.
        seconds: how long each took.
    """
    tracer = trace.get_tracer(__name__)
    start = end - sum(seconds.values())
    for name, length in seconds.items():
        one = tracer.start_span(name, start_time=int(start * 1e9))
        start += length
        one.end(int(start * 1e9))
