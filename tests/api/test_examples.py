"""Each file in examples/ is run against a real server, and makes images."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.guards import fail_with
from tests.support.images import opened
from tests.support.paths import ROOT

EXAMPLES = sorted(path.name for path in (ROOT / "examples").iterdir() if path.suffix != ".md")
IMAGES = {"curl.sh": ["wizard-json.png", "wizard-raw.png", "wizard.png", "wizard.webp"]}
"""What an example saves, if it is not wizard.png alone."""

NEEDS_CURL = pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with what the examples need of a checkout."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts/demo.png", tmp_path / "scripts")
    return tmp_path


def command(example: Path, folder: Path, request: pytest.FixtureRequest) -> list[str]:
    if example.suffix == ".py":
        return [sys.executable, "-W", "error", str(example)]
    if example.suffix == ".sh":
        return ["sh", str(example)]
    # Node looks for packages beside the program.
    (folder / "node_modules").symlink_to(request.getfixturevalue("node_folder") / "node_modules")
    return ["node", str(shutil.copy(example, folder))]


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=NEEDS_CURL) if name.endswith(".sh") else pytest.param(name) for name in EXAMPLES],
)
def test_example_saves_its_images(name: str, server: str, checkout: Path, request: pytest.FixtureRequest) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    environment |= {"PYTHONPATH": str(ROOT), "IMG2IMG_URL": server}
    program = command(ROOT / "examples" / name, checkout, request)
    done = subprocess.run(program, cwd=checkout, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    saved = sorted(path.name for path in checkout.glob("wizard*"))
    assert saved == IMAGES.get(name, ["wizard.png"])
    for path in map(checkout.joinpath, saved):
        image = opened(path.read_bytes())
        assert (image.size, str(image.format).lower()) == ((512, 512), path.suffix[1:])


def test_every_example_is_in_the_table_of_the_folder() -> None:
    text = (ROOT / "examples/README.md").read_text(encoding="utf-8")
    fail_with(f"examples/README.md has no row for {name}." for name in EXAMPLES if f"`{name}`" not in text)
