"""Programs that print lines of JSON, read while they run and ended when their time is over."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from app.engine.process import environment as worker_environment
from scripts.benchmarks.report import ROOT
from scripts.prove_gpu.stages import StageFailed


class OutOfTime(Exception):
    """The time of a stage is over; the message says what was not finished."""


def lines(
    module: str, arguments: Sequence[str], log: Path, seconds: float, environment: Mapping[str, str]
) -> Iterator[dict[str, Any]]:
    """Run a module of this project, and yield each JSON object that it prints on a line, as it comes.

    Args:
        module: its name.
        arguments: its command line.
        log: the file that its standard error is appended to.
        seconds: the time after which it is killed, with all of its processes.
        environment: variables on top of those that this process would give to a worker.

    Raises:
        OutOfTime: it was killed.
        StageFailed: it ended with another code than 0; the message is the last line of its standard error.
    """
    if seconds <= 0:
        raise OutOfTime(f"{log.stem} was not begun")
    with log.open("ab") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=ROOT,
            env={**worker_environment(), **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
        )
    end = time.monotonic() + seconds
    timer = threading.Timer(seconds, _kill, [process])
    timer.start()
    try:
        for line in process.stdout or ():
            if line.startswith(b"{"):
                yield json.loads(line)
        process.wait()
    finally:
        timer.cancel()
        # Compilers and their like are left behind otherwise, and are in the way of the next measurement.
        _kill(process)
        process.communicate()
    if process.returncode == -signal.SIGKILL and time.monotonic() >= end:
        raise OutOfTime(f"{log.stem} was not finished")
    if process.returncode:
        raise StageFailed(_reason(log, process.returncode))


def _kill(process: "subprocess.Popen[bytes]") -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _reason(log: Path, code: int) -> str:
    written = log.read_text(errors="replace").strip().splitlines()
    return written[-1] if written and code > 0 else f"it was ended by signal {-code}"
