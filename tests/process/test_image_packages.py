"""How the image gets its packages: `scripts/container/packages` with the real pip and package indexes in folders."""

import base64
import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.support.paths import ROOT


class Index:
    """A package index in a folder, as pip reads it by a `file:` URL."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = folder.as_uri()

    def add(self, name: str, version: str, needs: tuple[str, ...] = (), cuda: str | None = None) -> None:
        """Add a wheel. `cuda` is what its `torch/version.py` says, if it is torch."""
        package = name.replace("-", "_")
        files = {f"{package}/version.py": f"cuda: Optional[str] = {cuda!r}\n"}
        info = f"{package}-{version}.dist-info"
        lines = [
            "Metadata-Version: 2.1",
            f"Name: {name}",
            f"Version: {version}",
            *(f"Requires-Dist: {n}" for n in needs),
        ]
        files[f"{info}/METADATA"] = "\n".join([*lines, ""])
        files[f"{info}/WHEEL"] = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        files[f"{info}/RECORD"] = "".join(f"{path},{_digest(text)},{len(text)}\n" for path, text in files.items())
        place = self.folder / name
        place.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(place / f"{package}-{version}-py3-none-any.whl", "w") as wheel:
            for path, text in files.items():
                wheel.writestr(path, text)
        links = "".join(f'<a href="{path.name}">{path.name}</a>' for path in sorted(place.glob("*.whl")))
        (place / "index.html").write_text(f"<!DOCTYPE html><html><body>{links}</body></html>")


def _digest(text: str) -> str:
    return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()


@pytest.fixture
def usual(tmp_path: Path) -> Index:
    """pip's index: torch for CUDA 13, its CUDA packages in two releases, and what else is locked."""
    index = Index(tmp_path / "usual")
    index.add("torch", "2.13.0", ("filelock", "cuda-bindings<14,>=13", "triton==3.7"), cuda="13.0")
    for name, version in (("filelock", "1"), ("filelock", "2"), ("triton", "3.7"), ("peft", "1")):
        index.add(name, version)
    for version in ("13.1", "13.9"):
        index.add("cuda-bindings", version)
    return index


@pytest.fixture
def other(tmp_path: Path) -> Index:
    """The index of another build of torch, with a newer release of what is locked."""
    index = Index(tmp_path / "other")
    index.add("torch", "2.13.0+cu126", ("filelock", "cuda-bindings<13", "triton==3.7"), cuda="12.6")
    for name, version in (("filelock", "3"), ("triton", "3.7"), ("cuda-bindings", "12.9"), ("peft", "2")):
        index.add(name, version)
    return index


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """The lock files and an environment without pip, as the Dockerfile has them."""
    (tmp_path / "requirements.lock").write_text("# Pins.\nfilelock==1\npeft==1\ntorch==2.13.0\n")
    (tmp_path / "requirements-cuda.lock").write_text("cuda-bindings==13.1\ntriton==3.7\n")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    return tmp_path


def install(place: Path, index: Index, **variables: str) -> "subprocess.CompletedProcess[str]":
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.defpath}",
        "HOME": str(place),
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_INDEX_URL": index.url,
        **variables,
    }
    command = [ROOT / "scripts/container/packages", place / "venv/bin/python"]
    return subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)


def installed(place: Path) -> dict[str, str]:
    site = next((place / "venv/lib").glob("python*/site-packages"))
    names = [path.name.removesuffix(".dist-info") for path in site.glob("*.dist-info")]
    return {name.partition("-")[0]: name.partition("-")[2] for name in names}


def test_cuda_packages_of_torch_are_those_of_the_lock(place: Path, usual: Index) -> None:
    done = install(place, usual)
    assert done.returncode == 0, done.stderr
    assert installed(place) == {
        "filelock": "1",
        "peft": "1",
        "torch": "2.13.0",
        "triton": "3.7",
        "cuda_bindings": "13.1",
    }


def test_torch_without_cuda_brings_no_cuda_packages(place: Path, usual: Index, tmp_path: Path) -> None:
    mirror = Index(tmp_path / "mirror")
    mirror.add("torch", "2.13.0+cpu", ("filelock",))
    done = install(place, usual, PIP_EXTRA_INDEX_URL=mirror.url)
    assert done.returncode == 0, done.stderr
    assert installed(place) == {"filelock": "1", "peft": "1", "torch": "2.13.0+cpu"}


def test_torch_index_gives_torch_and_its_cuda_packages_alone(place: Path, usual: Index, other: Index) -> None:
    done = install(place, usual, TORCH_INDEX_URL=other.url, CUDA="12", PIP_FIND_LINKS=str(place / "nowhere"))
    assert done.returncode == 0, done.stderr
    assert installed(place) == {
        "filelock": "1",
        "peft": "1",
        "torch": "2.13.0+cu126",
        "triton": "3.7",
        "cuda_bindings": "12.9",
    }


def test_torch_for_another_cuda_than_is_named_is_refused(place: Path, usual: Index, other: Index) -> None:
    done = install(place, usual, TORCH_INDEX_URL=other.url)
    assert done.returncode == 1
    assert done.stderr.endswith("scripts/container/packages: this torch is built for CUDA 12: set CUDA=12.\n")


def test_lock_that_lacks_a_dependency_is_refused(place: Path, usual: Index) -> None:
    usual.add("peft", "5", ("missing-package",))
    lock = place / "requirements.lock"
    lock.write_text(lock.read_text().replace("peft==1", "peft==5"))
    done = install(place, usual)
    assert done.returncode == 1
    assert "peft 5 requires missing-package" in done.stdout + done.stderr
