"""Checks OpenTelemetry's variables. Does not import it: some values break it on import."""

from collections.abc import MutableMapping
from urllib.parse import urlsplit

from app.errors import Misconfigured

_KNOWN = {
    "OTEL_PROPAGATORS": ("tracecontext", "baggage"),
    "OTEL_TRACES_EXPORTER": ("otlp", "none"),
    "OTEL_EXPORTER_OTLP_PROTOCOL": ("http/protobuf",),
    "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": ("http/protobuf",),
    "OTEL_PYTHON_CONTEXT": ("contextvars_context",),
}


def validate_otel_env(environment: MutableMapping[str, str]) -> None:
    """Remove the variables that are empty, as the specification says, and refuse values without support.

    Raises:
        Misconfigured: names the variable and what it can be.
    """
    for name in [name for name, value in environment.items() if name.startswith("OTEL_") and not value.strip()]:
        del environment[name]
    for name, known in _KNOWN.items():
        if {word.strip() for word in environment.get(name, known[0]).split(",")} - set(known):
            raise Misconfigured(f"{name} can be {' or '.join(known)} here. Set it to that, or leave it out.")
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        if name in environment and not _is_address(environment[name]):
            raise Misconfigured(f"{name} must be an address like http://collector:4318.")


def _is_address(text: str) -> bool:
    try:
        address = urlsplit(text)
    except ValueError:
        return False
    return address.scheme in ("http", "https") and bool(address.hostname)
