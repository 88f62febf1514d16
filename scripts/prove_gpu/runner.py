"""Runs the stages one after the other, each in a process of its own with a limit of time."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal, NoReturn

from scripts.prove_gpu import page, record
from scripts.prove_gpu.stages import GRACE_SECONDS, LIMIT_SECONDS, NEED_WEIGHTS, ROOT, Context


def run(stages: Sequence[str], out: Path, work: Path, size: Literal["full", "tiny"]) -> int:
    """Run stages, and write the report and the page after each; returns 1 if one failed or did not finish."""
    signal.signal(signal.SIGTERM, _end)
    out.mkdir(parents=True, exist_ok=True)
    context = Context(out, work, size, float("inf"))
    if NEED_WEIGHTS & set(stages) and "checkpoint" not in stages and not context.weights_file.exists():
        stages = ["checkpoint", *stages]
    codes = [_stage(stage, context) for stage in stages]
    print(page.summary(record.read(out / record.FILE)), end="")
    print(f"{out / record.FILE} and {out / page.FILE} are written.")
    return 1 if any(codes) else 0


def environment() -> dict[str, str]:
    """The variables of all stages: those of this process without settings, except where the weights are. No network."""
    kept = {
        name: value for name, value in os.environ.items() if not re.match(r"IMG2IMG_(?!HUB_CACHE$)|PORT$|AIP_", name)
    }
    return {**kept, "IMG2IMG_OFFLINE": "1", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}


def _stage(name: str, context: Context) -> int:
    print(f"== {name}", flush=True)
    out = context.out
    record.drop(out / record.FILE, name)
    start, log = time.monotonic(), out / f"{name}.log"
    arguments = [name, str(out), str(context.work), context.size, str(start + LIMIT_SECONDS - GRACE_SECONDS)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "scripts.prove_gpu.stage", *arguments],
            cwd=ROOT,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            code = _ended(process)
        finally:
            _stop(process)
    report = record.read(out / record.FILE)
    part = report["stages"].setdefault(name, dict(record.EMPTY))
    if part["ended"] == "running":
        # It died before it could say why.
        part |= {"ended": f"failed: {_last_line(log) or f'it ended with {code}'}", "seconds": time.monotonic() - start}
        record.write(out / record.FILE, report)
    (out / page.FILE).write_text(page.write(report))
    print(f"   {part['ended']}, after {part['seconds']:.0f} s", flush=True)
    return code


def _ended(process: "subprocess.Popen[bytes]") -> int:
    """The exit code; a stage that has not ended by itself in time is ended."""
    with suppress(subprocess.TimeoutExpired):
        return process.wait(LIMIT_SECONDS)
    return _stop(process)


def _end(*_: object) -> NoReturn:
    """On the first SIGTERM: leave by all `finally`, which end the running stage. A second one is ignored."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


def _stop(process: "subprocess.Popen[bytes]") -> int:
    """End a stage if it still runs, and first let it end its own processes; returns its exit code."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        return process.wait(GRACE_SECONDS)
    process.kill()
    # With a limit: a signal that came in the middle of `wait` may have left its lock taken.
    with suppress(subprocess.TimeoutExpired):
        return process.wait(GRACE_SECONDS)
    return 1


def _last_line(log: Path) -> str:
    written = log.read_text(errors="replace").strip().splitlines()
    return written[-1] if written else ""
