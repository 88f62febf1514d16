"""The tests of `tests/gpu`."""

import re
import subprocess
import sys
import threading

from scripts.benchmarks.report import ROOT, Goal
from scripts.prove_gpu import device
from scripts.prove_gpu.children import OutOfTime
from scripts.prove_gpu.record import Part
from scripts.prove_gpu.stages import Context, StageFailed

_RESULT = re.compile(r"^(tests/\S+::.*) (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b")


def run(context: Context, part: Part) -> None:
    """Run the tests, and count their results as they come; the log has the rest."""
    command = [sys.executable, "-m", "pytest", "-v", "--color=no", "-p", "no:cacheprovider", "-W", "default"]
    process = subprocess.Popen([*command, "tests/gpu"], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    timer = threading.Timer(context.left(), process.kill)
    timer.start()
    row = part.row("tests/gpu", passed=0, failed=0, skipped=0)
    failed = []
    try:
        for line in process.stdout or ():
            print(line, end="")
            if found := _RESULT.match(line):
                kind = {"PASSED": "passed", "SKIPPED": "skipped", "XFAIL": "skipped"}.get(found[2], "failed")
                row[kind] += 1
                if kind == "failed":
                    failed.append(found[1])
                part.save()
        code = process.wait()
    finally:
        timer.cancel()
        process.kill()
        process.communicate()
    if failed:
        part.note(f"Failed: {', '.join(failed)}.")
    if context.left() <= 0:
        raise OutOfTime("the tests were not finished")
    if code not in (0, 1):
        raise StageFailed(f"pytest ended with {code}")
    part.goals.append(Goal("count", "tests of tests/gpu that fail", row["failed"], at_most=0))
    if device.name() == "cuda":
        part.goals.append(Goal("count", "tests of tests/gpu that pass", row["passed"], at_least=1))
