"""What deployment rests on: the image's recipe, the compose file, the lock files and the scripts."""

import ast
import importlib.metadata
import itertools
import os
import re
import shutil
import stat
import subprocess
import tomllib
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from app.settings import Settings
from tests.support.guards import fail_with
from tests.support.paths import ROOT

SCRIPTS = [
    ROOT / ".ci/run",
    *sorted(path for path in (ROOT / "scripts").rglob("*") if path.is_file() and not path.suffix),
]
LOCK_FILES = ("requirements.lock", "requirements-c2pa.lock", "requirements-dev.lock")
CUDA_LOCK = "requirements-cuda.lock"
VARIABLES = {f"IMG2IMG_{name.upper()}" for name in Settings.model_fields}
PLATFORM_PACKAGES = ("nvidia-", "cuda-", "triton")
RECORDING_PYTHON = """#!/bin/sh
# Prints what it is asked to install, and makes a .venv of itself.
case "$*" in
    -V) echo Python 3.11 ;;
    "-m venv "*) mkdir -p .venv/bin && cp "$0" .venv/bin/python && cp "$0" .venv/bin/img2img ;;
    "-m pip install "*) echo "$*" >> said ;;
esac
"""


def pins(name: str) -> dict[str, str]:
    requirements = [line for line in (ROOT / name).read_text().splitlines() if not line.startswith(("#", "-r"))]
    return {
        canonicalize_name(package): version for package, _, version in (line.partition("==") for line in requirements)
    }


def header(script: Path) -> str:
    """The comment that a script begins with."""
    lines = itertools.takewhile(lambda line: line.startswith("# "), script.read_text().splitlines()[1:])
    return "".join(f"{line[2:]}\n" for line in lines)


def program_of(script: Path) -> Path | None:
    """The Python program that a script ends in, if it reads the script's options."""
    found = re.search(r'^exec \S+python"? (?:-m (scripts\S+)|"\$root/(\S+)") "\$@"$', script.read_text(), re.MULTILINE)
    if found is None:
        return None
    path = ROOT / (found[2] or found[1].replace(".", "/"))
    return path / "__main__.py" if path.is_dir() else path.with_suffix(".py")


def declared(lock: str) -> list[Requirement]:
    """What a lock file pins, as `pyproject.toml` declares it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    groups, extras = project["dependency-groups"], project["project"]["optional-dependencies"]
    texts = {
        "requirements.lock": project["project"]["dependencies"] + extras["server"],
        "requirements-c2pa.lock": extras["c2pa"],
        "requirements-dev.lock": groups["dev"] + groups["docs"],
    }
    return [Requirement(text) for text in texts[lock]]


def needed_by(requirements: list[Requirement]) -> set[str]:
    """Returns the names of all installed packages that these requirements bring with them here."""
    names: set[str] = set()
    waiting = [(requirement.name, extra) for requirement in requirements for extra in ("", *requirement.extras)]
    done: set[tuple[str, str]] = set()
    while waiting:
        name, extra = waiting.pop()
        name = canonicalize_name(name)
        if name.startswith(PLATFORM_PACKAGES) or (name, extra) in done:
            continue
        done.add((name, extra))
        names.add(name)
        for child in map(Requirement, importlib.metadata.requires(name) or []):
            if child.marker is None or child.marker.evaluate({"extra": extra}):
                waiting += [(child.name, wanted) for wanted in ("", *child.extras)]
    return names


class TestImage:
    """What a build does not show. `tests/container` looks at the image itself."""

    def test_every_variable_set_in_the_image_is_a_setting(self) -> None:
        used = set(re.findall(r"\bIMG2IMG_\w+", (ROOT / "Dockerfile").read_text()))
        assert "IMG2IMG_HOST" in used
        assert used <= VARIABLES

    def test_required_cuda_is_that_of_the_chosen_build(self) -> None:
        recipe = (ROOT / "Dockerfile").read_text()
        assert recipe.count("ARG CUDA=13\n") == 2
        assert 'ENV NVIDIA_REQUIRE_CUDA="cuda>=${CUDA}.0"' in recipe

    def test_build_context_holds_only_what_the_image_copies(self) -> None:
        lines = (ROOT / ".dockerignore").read_text().splitlines()
        assert "*" in lines
        copied = re.findall(r"^COPY (?!--from)(.*) \S+$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
        assert {line[1:] for line in lines if line.startswith("!")} == {name for one in copied for name in one.split()}


class TestLockFiles:
    @pytest.mark.parametrize("name", LOCK_FILES)
    def test_lock_file_has_exact_pins_and_names_no_index(self, name: str) -> None:
        lines = [line for line in (ROOT / name).read_text().splitlines() if not line.startswith("#")]
        if name == "requirements-dev.lock":
            assert [lines.pop(0), lines.pop(0)] == ["-r requirements.lock", "-r requirements-c2pa.lock"]
        pin = re.compile(r"[A-Za-z0-9._-]+==[0-9][0-9a-z.]*")
        fail_with(f"{name}: '{line}' is no exact pin." for line in lines if not pin.fullmatch(line))

    def test_torch_pin_is_the_tested_release_for_any_platform(self) -> None:
        assert pins("requirements.lock")["torch"] == "2.13.0"
        assert not [name for name in pins("requirements.lock") if name.startswith(PLATFORM_PACKAGES)]

    def test_cuda_packages_of_torch_have_exact_pins_of_their_own(self) -> None:
        lines = [line for line in (ROOT / CUDA_LOCK).read_text().splitlines() if not line.startswith("#")]
        pin = re.compile(r"(nvidia-|cuda-|triton)[a-z0-9-]*==[0-9][0-9.]*")
        fail_with(
            f"{CUDA_LOCK}: '{line}' is no exact pin of a CUDA package." for line in lines if not pin.fullmatch(line)
        )
        assert {"triton", "cuda-bindings", "nvidia-cudnn-cu13"} <= set(pins(CUDA_LOCK))

    def test_every_cuda_package_that_torch_needs_is_pinned(self) -> None:
        if torch.version.cuda is None:
            pytest.skip("torch is built without CUDA here")
        installed = {canonicalize_name(package.name): package.version for package in importlib.metadata.distributions()}
        found = {name: version for name, version in installed.items() if name.startswith(PLATFORM_PACKAGES)}
        assert found == pins(CUDA_LOCK)

    def test_every_declared_dependency_is_pinned_within_its_bounds(self) -> None:
        pinned: dict[str, str] = {}
        for name in LOCK_FILES:
            pinned |= pins(name)
            for requirement in declared(name):
                assert pinned[canonicalize_name(requirement.name)] in requirement.specifier

    def test_every_indirect_dependency_is_pinned(self) -> None:
        pinned: set[str] = set()
        for name in LOCK_FILES:
            pinned |= set(pins(name))
            assert needed_by(declared(name)) - pinned == set()

    def test_runtime_lock_has_no_test_dependency(self) -> None:
        assert {"pytest", "mypy", "ruff", "coverage"} & set(pins("requirements.lock")) == set()
        pinned = [name for file in LOCK_FILES for name in pins(file)]
        assert len(pinned) == len(set(pinned))


class TestScripts:
    @pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
    def test_script_is_executable_and_described(self, path: Path) -> None:
        first, second, *_ = path.read_text().splitlines()
        assert path.stat().st_mode & stat.S_IXUSR
        assert first.startswith("#!")
        assert second.startswith(("# ", '"""'))

    @pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
    def test_script_has_no_syntax_error(self, path: Path) -> None:
        interpreter = path.read_text().splitlines()[0].rpartition("/")[2].removeprefix("env ")
        if interpreter.startswith("python"):
            ast.parse(path.read_text())
        else:
            checked = subprocess.run([interpreter, "-n", str(path)], capture_output=True, text=True)
            assert (checked.returncode, checked.stderr) == (0, "")

    @pytest.mark.parametrize("path", SCRIPTS[1:], ids=lambda path: path.name)
    def test_help_is_shown_at_once_from_any_directory(self, path: Path, tmp_path: Path) -> None:
        environment = {"PATH": os.defpath}
        shown = subprocess.run([path, "--help"], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert (shown.returncode, shown.stdout, shown.stderr) == (0, header(path), "")

    def test_help_names_every_option_of_the_program(self) -> None:
        programs = {path: program for path in SCRIPTS[1:] if (program := program_of(path))}
        assert len(programs) >= 8
        fail_with(
            f"scripts/{path.name} --help does not name {option} of {program.relative_to(ROOT)}."
            for path, program in programs.items()
            for option in re.findall(r'add_argument\(\s*"(--[\w-]+)"', program.read_text())
            if f"{option} " not in header(path)
        )

    def test_setup_installs_once_and_again_when_a_lock_file_changes(self, tmp_path: Path) -> None:
        (tmp_path / "scripts").mkdir()
        for name in ("scripts/setup", *LOCK_FILES, CUDA_LOCK, "pyproject.toml"):
            shutil.copy(ROOT / name, tmp_path / name)
        python = tmp_path / "python"
        python.write_text(RECORDING_PYTHON)
        python.chmod(0o755)

        def installed(*option: str) -> list[str]:
            (tmp_path / "said").write_text("")
            env = {"PATH": os.defpath, "PYTHON": str(python)}
            subprocess.run([tmp_path / "scripts/setup", *option], env=env, capture_output=True, check=True)
            *locks, project = (tmp_path / "said").read_text().splitlines() or [""]
            assert all(f" -c {CUDA_LOCK} -r " in words for words in locks)
            return [words.rpartition(" ")[2] for words in (*locks, project) if words]

        assert installed("--runtime") == ["requirements.lock", "."]
        assert installed("--runtime") == []
        assert installed() == ["requirements-dev.lock", "."]
        assert installed() == installed("--runtime") == []
        with (tmp_path / "requirements-dev.lock").open("a") as lock:
            lock.write("one-more==1\n")
        assert installed("--runtime") == []
        assert installed() == ["requirements-dev.lock", "."]
        with (tmp_path / "requirements.lock").open("a") as lock:
            lock.write("one-more==1\n")
        assert installed("--runtime") == ["requirements.lock", "."]
        assert installed() == ["requirements-dev.lock", "."]
        with (tmp_path / CUDA_LOCK).open("a") as lock:
            lock.write("one-more==1\n")
        assert installed("--runtime") == ["requirements.lock", "."]
        assert installed() == ["requirements-dev.lock", "."]

    @pytest.mark.parametrize("name", ["setup", "check", "docs", "fix", "lock", "audit", "sbom", "fuzz"])
    def test_unknown_option_is_refused(self, name: str) -> None:
        refused = subprocess.run([ROOT / "scripts" / name, "--dev"], capture_output=True, text=True)
        assert (refused.returncode, refused.stdout) == (2, "")
        assert refused.stderr == f"scripts/{name}: there is no option --dev; see scripts/{name} --help.\n"

    def test_setup_refuses_a_missing_python_with_a_sentence(self, tmp_path: Path) -> None:
        (tmp_path / "scripts").mkdir()
        for name in ("scripts/setup", *LOCK_FILES, CUDA_LOCK, "pyproject.toml"):
            shutil.copy(ROOT / name, tmp_path / name)
        env = {"PATH": os.defpath, "PYTHON": "no-such-python"}
        refused = subprocess.run([tmp_path / "scripts/setup"], env=env, capture_output=True, text=True)
        assert refused.returncode == 1
        assert "no-such-python is not Python 3.11 or newer" in refused.stderr
        assert not (tmp_path / ".venv").exists()
