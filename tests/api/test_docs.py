"""What the README and the docs show is what a real server does."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest

from tests.support.images import opened
from tests.support.pages import blocks, read, section
from tests.support.paths import ROOT

URL = "http://127.0.0.1:8000"
CALLING = section(read("README.md"), "## Calling it")


def test_example_of_an_error_is_what_the_service_answers(server: str, png: bytes) -> None:
    (example,) = blocks("json", read("docs/reference/errors.md"))
    answer = httpx2.post(f"{server}/img2img", data={"prompt": "", "strength": "0.2"}, files={"image": png})
    one, other = ({**document, "request_id": ""} for document in (json.loads(example), answer.json()))
    assert one == other


@pytest.mark.parametrize(
    ("language", "index"),
    [
        pytest.param("sh", 0, marks=pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")),
        ("python", 0),
        ("python", 1),
    ],
    ids=["curl", "client", "openai"],
)
def test_readme_snippet_makes_an_image(language: str, index: int, server: str, tmp_path: Path) -> None:
    snippet = blocks(language, CALLING)[index]
    assert URL in snippet
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts/demo.png", tmp_path / "scripts")
    program = ["sh", "-ec"] if language == "sh" else [sys.executable, "-W", "error", "-c"]
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    environment["PYTHONPATH"] = str(ROOT)
    command = [*program, snippet.replace(URL, server)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    image = opened((tmp_path / "wizard.png").read_bytes())
    assert (image.size, image.format) == ((512, 512), "PNG")


def test_readme_calling_section_has_no_other_snippet() -> None:
    assert [len(blocks(language, CALLING)) for language in ("sh", "python")] == [1, 2]
