"""What is in the image, what is not, and what a change of the application rebuilds."""

import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest

from tests.container.docker import IMAGE, docker, image_facts, needs_image, run
from tests.support.paths import ROOT

pytestmark = needs_image


@pytest.fixture(scope="module")
def paths() -> set[PurePosixPath]:
    """Every file of the final stage."""
    container = docker("create", IMAGE)
    try:
        listed = run(["sh", "-c", f'"$DOCKER" export {container} | tar -t'])
    finally:
        docker("rm", "--volumes", container)
    return {PurePosixPath("/") / path for path in listed.splitlines()}


def test_image_has_no_compiler_and_no_build_tool(paths: set[PurePosixPath]) -> None:
    tools = {"gcc", "g++", "cc", "c++", "cc1", "clang", "ld", "as", "make", "cmake", "ninja", "nvcc", "git", "cargo"}
    folders = {"/bin", "/usr/bin", "/usr/local/bin", "/opt/venv/bin", "/usr/libexec"}
    assert {path for path in paths if path.name in tools and str(path.parent) in folders} == set()


def test_image_has_no_build_or_test_dependency(paths: set[PurePosixPath]) -> None:
    own = {path for path in paths if path.is_relative_to("/opt/venv")}
    assert {
        path for path in own if path.name in ("pip", "pytest", "mypy", "ruff", "coverage", "test", "tests")
    } == set()
    assert {path for path in paths if path.name == ".git" or path.suffix == ".whl"} == set()
    assert {path for path in paths if path.parts[:3] == ("/", "root", ".cache")} == set()
    assert {path for path in paths if path.parts[:2] in (("/", "src"), ("/", "tmp")) and len(path.parts) > 2} == set()


def test_image_has_the_application_and_its_licences(paths: set[PurePosixPath]) -> None:
    (package,) = (path for path in paths if path.match("site-packages/app"))
    shipped = {path.relative_to(ROOT / "app").as_posix() for path in (ROOT / "app").rglob("*") if path.is_file()}
    found = {path.relative_to(package).as_posix() for path in paths if path.is_relative_to(package)}
    assert {path for path in shipped if "__pycache__" not in path} - found == set()


@pytest.fixture
def changed_checkout(tmp_path: Path) -> Path:
    """A copy of what a build is sent, with one line more in the application."""
    for name in (
        "Dockerfile",
        ".dockerignore",
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "requirements.lock",
        "requirements-c2pa.lock",
        "requirements-cuda.lock",
        "scripts/container/packages",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "app", tmp_path / "app", ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / "app/__init__.py").open("a") as file:
        file.write("# One more line.\n")
    return tmp_path


@pytest.fixture
def rebuilt(changed_checkout: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[str]:
    name, start = f"{IMAGE}-changed", time.monotonic()
    run([sys.executable, "scripts/container/build.py", "--tag", name, str(changed_checkout)])
    with capsys.disabled():
        sys.stdout.write(f"\nRebuilt after a change of one line in {time.monotonic() - start:.0f} s.\n")
    yield name
    docker("image", "rm", name)


def test_changed_application_makes_only_a_new_last_layer(rebuilt: str) -> None:
    *before, last = image_facts(IMAGE)["RootFS"]["Layers"]
    *after, changed = image_facts(rebuilt)["RootFS"]["Layers"]
    assert before == after
    assert last != changed
