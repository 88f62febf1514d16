"""The demo, from end to end, with the real embedded model."""

import re
from pathlib import Path

from tests.support.demo import demo
from tests.support.images import opened


def test_demo_makes_an_image_and_reports_each_stage(tmp_path: Path) -> None:
    options = ["--output", "new/out.png", "--seed", "9", "--steps", "2", "--strength", "1", "--model", "embedded"]
    with demo(tmp_path, *options) as process:
        output, failed = process.communicate(timeout=300)
    assert process.returncode == 0, failed
    assert opened((tmp_path / "new/out.png").read_bytes()).size == (512, 512)
    assert "Saved new/out.png\nSeed 9, 2 steps, by embedded on cpu in float32.\n" in output
    assert output.count("The embedded model is small") == 1
    for stage in ("start-up", "queue", "decode", "encode_prompt", "encode_image", "denoise", "vae", "png", "request"):
        assert re.search(rf"{stage}.* \d+\.\d\d\d ", output), stage
    assert re.search(r"Peak memory of the worker: [\d,]+ MB", output)
