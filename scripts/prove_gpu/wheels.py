"""The packages that a host with torch alone lacks, installed from a folder. Uses the standard library only."""

import hashlib
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
OF_THE_HOST = re.compile(r"(torch|triton|nvidia-.*|cuda-.*)$")
"""What comes with the host's own torch, whatever its release and its CUDA."""

OF_THE_TESTS = ("iniconfig", "pluggy", "pytest", "pytest-timeout")
"""What `tests/gpu` needs of the packages for development."""


def requirements() -> list[str]:
    """The pinned requirements of the service and of `tests/gpu`, without torch and its CUDA packages."""
    runtime = [line for name, line in _pins("requirements.lock") if not OF_THE_HOST.match(name)]
    return sorted(
        {*runtime, *(line for name, line in _pins("requirements-dev.lock") if name in OF_THE_TESTS)}, key=str.lower
    )


def _pins(lock: str) -> Iterator[tuple[str, str]]:
    """Each package's normalised name, and its line in the lock file."""
    for line in (ROOT / lock).read_text().splitlines():
        if found := re.match(r"[A-Za-z0-9._-]+(?===)", line):
            yield re.sub(r"[-_.]+", "-", found[0]).lower(), line


def install(wheels: Path, site: Path) -> None:
    """Install all wheels of a folder into `site`, unless it has them already. Reaches no network.

    Raises:
        subprocess.CalledProcessError: pip cannot install one of them.
    """
    files = sorted(wheels.glob("*.whl"))
    state = hashlib.sha256("\n".join([sys.version, *(file.name for file in files)]).encode()).hexdigest()
    stamp = site / ".wheels"
    if stamp.is_file() and stamp.read_text() == state:
        return
    shutil.rmtree(site, ignore_errors=True)
    pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    # Without their dependencies: the folder has them, or the host does.
    options = ["--no-index", "--no-deps", "--no-compile", "--no-cache-dir", "--target", str(site)]
    subprocess.run([*pip, *options, *map(str, files)], check=True)
    stamp.write_text(state)
