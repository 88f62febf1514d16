"""One stage in a process of its own: `python -m scripts.prove_gpu.stage NAME OUT WORK SIZE END`.

END is the reading of `time.monotonic()`, the same in every process, at which it has to be over.

Ends with 0 when the stage is done, with 1 when it failed, with 2 when its time ran out.
"""

import importlib
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Literal, NoReturn, cast

from scripts.benchmarks.report import machine
from scripts.prove_gpu import record
from scripts.prove_gpu.children import OutOfTime
from scripts.prove_gpu.device import describe
from scripts.prove_gpu.stages import STAGES, Context, StageFailed

DONE, FAILED, OUT_OF_TIME = 0, 1, 2


def main(name: str, out: Path, work: Path, size: Literal["full", "tiny"], end: float) -> int:
    """Run a stage, and write into its part how it ended."""
    start = time.monotonic()
    file = out / record.FILE
    try:
        device = {**describe(size), "size": size}
    except StageFailed as error:
        sys.exit(str(error))
    dropped = record.begin(file, device)
    if dropped:
        print(f"the report was of another device: dropped {', '.join(dropped)}", flush=True)
    part = record.Part(file, name, machine()["commit"])
    part.save()
    code = _run(name, Context(out, work, size, end), part)
    part.seconds = time.monotonic() - start
    part.save()
    return code


def _run(name: str, context: Context, part: record.Part) -> int:
    module, _, function = STAGES[name].partition(":")
    try:
        getattr(importlib.import_module(module), function)(context, part)
    except OutOfTime as error:
        part.ended = f"out of time: {error}"
        return OUT_OF_TIME
    except SystemExit:
        part.ended = "out of time: it was ended"
        return OUT_OF_TIME
    except Exception as error:
        traceback.print_exc()
        part.ended = f"failed: {error or type(error).__name__}"
        return FAILED
    missed = [goal for goal in part.goals if not goal.met]
    part.ended = f"failed: {missed[0]}" if missed else "done"
    return FAILED if missed else DONE


def _end(*_: object) -> NoReturn:
    """On the first SIGTERM: leave by all `finally`, which end the processes of the stage."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise SystemExit(OUT_OF_TIME)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _end)
    _, NAME, OUT, WORK, SIZE, END = sys.argv
    sys.exit(main(NAME, Path(OUT), Path(WORK), cast(Literal["full", "tiny"], SIZE), float(END)))
