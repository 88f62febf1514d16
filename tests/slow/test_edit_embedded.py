"""The command edit --local with the embedded model."""

import json
import subprocess
import sys
from pathlib import Path

from tests.support.images import opened


def test_program_makes_an_image_with_the_embedded_model(tmp_path: Path, png: bytes) -> None:
    (tmp_path / "in.png").write_bytes(png)
    options = ["--local", "--model", "embedded", "--device", "cpu", "--seed", "1", "--json"]
    command = [sys.executable, "-m", "app", "edit", str(tmp_path / "in.png"), "-p", "wizard", "-o", str(tmp_path)]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["path"] == str(tmp_path / "in-1.png")
    assert opened(Path(facts["path"]).read_bytes()).size == (512, 512)
    assert "Step 3 of 3" in done.stderr
