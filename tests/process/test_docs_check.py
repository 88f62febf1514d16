"""`scripts/docs --check` on the real pages."""

import subprocess
import sys

from tests.support.paths import ROOT


def test_generated_parts_of_the_docs_are_up_to_date() -> None:
    command = [sys.executable, "-m", "scripts.docs_pages", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
