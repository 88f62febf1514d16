"""The built package: what is in it, and what the client alone needs."""

import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterator
from email import message_from_string
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.support.paths import ROOT

PROGRAM = """
import sys
from pathlib import Path

from img2img import Edited, Img2Img


def edit(url: str) -> Edited:
    with Img2Img(url) as client:
        return client.edit(Path("dog.png"), "dog wizard", seed=42)


edited = edit(sys.argv[1])
edited.save("wizard.png")
print(edited.seed, *sorted({name.partition(".")[0] for name in sys.modules} & {"app", "torch", "pydantic", "fastapi"}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "app", source / "app", ignore=shutil.ignore_patterns("__pycache__"))
    options = ("--no-deps", "--no-build-isolation", "--disable-pip-version-check", "--quiet")
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", folder, source], check=True)
    (built,) = folder.glob("*.whl")
    return built


def closure(name: str) -> Iterator[str]:
    """A distribution and all that it needs."""
    yield name
    for line in distribution(name).requires or ():
        needed = Requirement(line)
        if needed.marker is None or needed.marker.evaluate({"extra": ""}):
            yield from closure(needed.name)


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that has the package, and what it needs without any extra."""
    environment = tmp_path_factory.mktemp("environment")
    venv.create(environment, symlinks=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages)
    (metadata,) = packages.glob("*.dist-info/METADATA")
    needed = message_from_string(metadata.read_text()).get_all("Requires-Dist", [])
    names = {Requirement(line).name for line in needed if "extra ==" not in line}
    for name in {each for direct in names for each in closure(direct)}:
        for file in distribution(name).files or ():
            top = file.parts[0]
            if top != ".." and not (packages / top).exists():
                (packages / top).symlink_to(Path(str(distribution(name).locate_file(top))).resolve())
    return environment / "bin" / "python"


def test_package_holds_every_file_of_the_app_and_the_client_twice(wheel: Path) -> None:
    folder = ROOT / "app"
    files = {path.relative_to(ROOT) for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    client = {Path("img2img", path.relative_to("app/client")) for path in files if path.is_relative_to("app/client")}
    with zipfile.ZipFile(wheel) as archive:
        held = {Path(name) for name in archive.namelist() if ".dist-info/" not in name}
    missing = sorted(map(str, (files | client) - held))
    assert held == files | client, f"add to [tool.setuptools] in pyproject.toml what holds these files: {missing}"


def test_client_runs_beside_another_app_and_without_the_service_s_packages(
    python: Path, server: str, tmp_path: Path
) -> None:
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "__init__.py").write_text("raise SystemExit('this is another app')")
    (tmp_path / "program.py").write_text(PROGRAM)
    shutil.copy(ROOT / "scripts" / "demo.png", tmp_path / "dog.png")
    done = subprocess.run([python, "program.py", server], cwd=tmp_path, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("42\n", "")
    assert (tmp_path / "wizard.png").read_bytes().startswith(b"\x89PNG")


def test_client_is_typed_for_programs_that_import_it(python: Path, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    mypy: list[str | Path] = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--python-executable",
        python,
        "--config-file",
        "",
        program,
    ]
    program.write_text(PROGRAM)
    done = subprocess.run(mypy, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.startswith("Success"), done.stdout
    program.write_text(PROGRAM.replace("seed=42", "seed='42'"))
    done = subprocess.run(mypy, cwd=tmp_path, capture_output=True, text=True)
    assert "[arg-type]" in done.stdout


def test_command_without_the_service_says_what_to_install(python: Path, tmp_path: Path) -> None:
    done = subprocess.run([python, "-m", "app"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == (
        "The command img2img needs the module typer, which is not installed. "
        "Install this package again with the extra server, in its checkout: pip install '.[server]'\n"
    )
