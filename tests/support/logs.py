"""The log of a server in a process of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.support.fakes import FAKE
from tests.support.http import eventually, free_port
from tests.support.servers import is_ready

CODE = """
import sys
from app.cli.serve import serve
from app.settings import Settings
sys.exit(serve(Settings(devices="cpu", port=int(sys.argv[1])), sys.argv[2]))
"""


@contextmanager
def logged(**knobs: str) -> Iterator[tuple[str, list[str]]]:
    """A server of its own; its log is there when it has ended."""
    port = free_port()
    lines: list[str] = []
    environment = {**os.environ, **{f"IMG2IMG_{name.upper()}": value for name, value in knobs.items()}}
    process = subprocess.Popen(
        [sys.executable, "-c", CODE, str(port), FAKE], stderr=subprocess.PIPE, text=True, env=environment
    )
    url = f"http://127.0.0.1:{port}"
    try:
        eventually(lambda: is_ready(url))
        yield url, lines
    finally:
        process.terminate()
        lines += process.communicate(timeout=30)[1].splitlines()


def requests(lines: list[str]) -> list[dict[str, Any]]:
    return [line for line in map(json.loads, lines) if line["logger"] == "app.web.request_context"]
