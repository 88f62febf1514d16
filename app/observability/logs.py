"""Logging of the API process and of the workers."""

import json
import logging
import os
import sys
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

log_fields: ContextVar[dict[str, Any] | None] = ContextVar("log_fields", default=None)
"""Further fields of the current request's log line; None outside a request. Never a prompt or an image."""


def add_log_fields(**fields: Any) -> None:
    """Add fields to the current request's log line. Does nothing outside a request."""
    if (current := log_fields.get()) is not None:
        current |= fields


_CONSOLE = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"


class JsonLines(logging.Formatter):
    """Each record as one line of JSON: `time`, `level`, `logger`, `message`, and the fields in its `fields`."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def configure(level: str, log_format: str = "console") -> None:
    """Send all log lines of `level` and above to standard error.

    Libraries log their errors only: their other messages may hold a prompt, parts of a form, or a collector's key.

    Args:
        level: the lowest level that is logged.
        log_format: `console`, `json`, or `auto`: JSON unless standard error is a terminal.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    if sys.stderr is None:
        # It was closed. The next socket must not get its number: child processes would write into that.
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115  open as long as the process
        os.set_inheritable(sys.stderr.fileno(), True)
    handler = logging.StreamHandler(sys.stderr)
    in_json = log_format == "json" or (log_format == "auto" and not sys.stderr.isatty())
    handler.setFormatter(JsonLines() if in_json else logging.Formatter(_CONSOLE))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # Warnings and uncaught exceptions are log lines, too.
    logging.captureWarnings(True)
    sys.excepthook = _log_uncaught
    for noisy in ("diffusers", "transformers", "httpx2", "httpcore2", "PIL", "python_multipart", "opentelemetry.util"):
        logging.getLogger(noisy).setLevel(logging.ERROR)


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    logging.getLogger(__name__).critical("uncaught exception", exc_info=(kind, error, trace))
