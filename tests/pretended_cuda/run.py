"""Runs tests on the pretended CUDA runtime, with torch's CUDA build in an environment of its own.

    python -m tests.pretended_cuda.run [ARGUMENTS OF PYTEST]
    python -m tests.pretended_cuda.run --speed

The environment is in out/pretended-gpu (5.5 GB); PRETENDED_GPU_VENV names another one that has all dependencies.
Exit code 77 means that this machine cannot do it.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from subprocess import CalledProcessError
from typing import NoReturn

from tests.pretended_cuda.build import build, environment

ROOT = Path(__file__).parents[2]
OUT = ROOT / "out" / "pretended-gpu"
CANNOT = 77
FACTS = "import sysconfig, torch; print(torch.version.cuda or '', sysconfig.get_path('purelib'), sep='\\n')"


def cannot(reason: str) -> NoReturn:
    sys.stderr.write(f"scripts/test --pretended-gpu: {reason}\n")
    sys.exit(CANNOT)


def make_venv(folder: Path) -> None:
    """A virtual environment with the locked packages, as an index has them; kept while the locks are the same."""
    locks = b"".join(path.read_bytes() for path in sorted(ROOT.glob("requirements*.lock")))
    state, stamp = hashlib.sha256(locks).hexdigest(), folder / ".state"
    if stamp.is_file() and stamp.read_text() == state:
        return
    sys.stderr.write("Setting up torch's CUDA build, about 5.5 GB.\n")
    venv.create(folder, clear=True, with_pip=True)
    # A machine without a GPU may be configured to take torch's CPU build from a folder of wheels.
    chosen = {name: value for name, value in os.environ.items() if name not in ("PIP_FIND_LINKS", "PIP_CONSTRAINT")}
    pip = [str(folder / "bin/python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    try:
        subprocess.run(
            [*pip, "-c", str(ROOT / "requirements-cuda.lock"), "-r", str(ROOT / "requirements-dev.lock")],
            check=True,
            env={**chosen, "PIP_CONFIG_FILE": os.devnull},
        )
    except CalledProcessError:
        cannot("the packages of requirements-dev.lock cannot be installed. The reason stands above.")
    stamp.write_text(state)


def main() -> None:
    if not shutil.which("g++"):
        cannot("there is no g++, which builds the pretended runtime.")
    named = os.environ.get("PRETENDED_GPU_VENV")
    folder = Path(named).absolute() if named else OUT / "venv"
    if not named:
        make_venv(folder)
    python = str(folder / "bin/python")
    facts = subprocess.run([python, "-c", FACTS], capture_output=True, text=True, check=True).stdout
    cuda, site = facts.splitlines()
    if not cuda:
        cannot(f"{folder} has torch without CUDA.")
    if int(cuda.partition(".")[0]) != 13:
        cannot(f"torch is built for CUDA {cuda}. The pretended runtime stands in for CUDA 13.")
    build(Path(site), OUT / "runtime")
    variables = {**os.environ, **environment(OUT / "runtime"), "PYTHONPATH": str(ROOT)}
    if sys.argv[1:] == ["--speed"]:
        os.execve(python, [python, "-m", "tests.pretended_cuda.speed"], variables)
    os.execve(python, [python, "-m", "pytest", *(sys.argv[1:] or ["-m", "pretended_gpu"])], variables)


if __name__ == "__main__":
    main()
