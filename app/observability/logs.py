"""How log lines look, in the API process and in the workers alike."""

import json
import logging
import os
import sys
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

facts: ContextVar[dict[str, Any] | None] = ContextVar("facts", default=None)
"""What the line of the request at hand is to say besides; None outside of one. Never a prompt or a picture."""


def note(**said: Any) -> None:
    """Have the line of the request at hand say more; nothing outside of one."""
    if (told := facts.get()) is not None:
        told |= said


_CONSOLE = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"


class JsonLines(logging.Formatter):
    """Each record as one line of JSON: `time`, `level`, `logger`, `message`, and its `facts` beside them."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "facts", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def configure(level: str, log_format: str = "console") -> None:
    """Send all log lines of `level` and above to standard error.

    Libraries are kept to their errors: they would put the caller's prompt, pieces of a form, or the key to a collector
    into the log.

    Args:
        level: the least that is said.
        log_format: `console`, `json`, or `auto`: JSON unless standard error is a terminal.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    if sys.stderr is None:
        # It was closed. Its number must not go to the next socket: child processes would talk into that.
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115  for as long as there is this process
        os.set_inheritable(sys.stderr.fileno(), True)
    handler = logging.StreamHandler(sys.stderr)
    in_json = log_format == "json" or (log_format == "auto" and not sys.stderr.isatty())
    handler.setFormatter(JsonLines() if in_json else logging.Formatter(_CONSOLE))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # What nobody has foreseen is to be a line like all others too.
    logging.captureWarnings(True)
    sys.excepthook = _unforeseen
    for noisy in ("diffusers", "transformers", "httpx2", "httpcore2", "PIL", "python_multipart", "opentelemetry.util"):
        logging.getLogger(noisy).setLevel(logging.ERROR)


def _unforeseen(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    logging.getLogger(__name__).critical("ended by an error that was not foreseen", exc_info=(kind, error, trace))
