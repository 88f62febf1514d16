"""What `torch.compile` needs of the machine: compilers, Python's headers, and a folder that code can run from."""

import logging
import mmap
import os
import shutil
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

from app.errors import CheckpointError

logger = logging.getLogger(__name__)


def missing_tools(*, on_cuda: bool) -> str:
    """A sentence on what is not installed, and how to get it; empty if all is there.

    On the CPU, Inductor calls a C++ compiler. On CUDA, Triton builds a C extension of Python at its first use.
    """
    missing = []
    if not on_cuda and not _found(os.environ.get("CXX", "g++"), "g++", "clang++"):
        missing.append("a C++ compiler")
    if on_cuda and not _found(os.environ.get("CC", "gcc"), "gcc", "clang"):
        missing.append("a C compiler")
    if on_cuda and not (_headers() / "Python.h").is_file():
        missing.append("Python.h (Debian: python3-dev)")
    if not missing:
        return ""
    return f"needs {' and '.join(missing)}: install g++ (docker build --build-arg COMPILER=g++), or set it to off."


def use_cache(setting: Path | None) -> None:
    """Have Inductor and Triton keep code in the folder of the setting, or in a temporary one if that cannot be used.

    Set here and not at start, because torch creates the folder when it is imported. Triton needs its variable from the
    first call on; otherwise it keeps its own libraries in the home folder, which may not be writable.

    Raises:
        CheckpointError: code can be run from neither folder.
    """
    problems = []
    for folder in _folders(setting):
        problem = folder_problem(folder)
        if problem:
            problems.append(problem)
            continue
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)
        os.environ["TRITON_CACHE_DIR"] = str(folder / "triton")
        if problems:
            logger.warning("compiled code is kept in %s, and the next start may compile again: %s", folder, *problems)
        return
    raise CheckpointError(
        f"There is no folder for compiled code: {'; '.join(problems)}. Set IMG2IMG_COMPILE_CACHE to a folder that can "
        "be written to and is not mounted noexec, or IMG2IMG_COMPILE to off."
    )


def folder_problem(folder: Path) -> str:
    """Why compiled code cannot be kept in a folder and run from there; empty if it can. Creates the folder.

    Mode bits do not tell (read-only mounts, capabilities, noexec), so a file is written and mapped as code.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(mmap.PAGESIZE))
            file.flush()
            mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_EXEC).close()
    except OSError as error:
        return f"{folder} is read-only, full or mounted noexec ({error.strerror})"
    return ""


def _folders(setting: Path | None) -> Iterator[Path]:
    if setting:
        yield setting
    given = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    yield Path(given) if given else Path(tempfile.gettempdir()) / f"torchinductor_{os.getuid()}"


def _found(*names: str) -> bool:
    return any(map(shutil.which, names))


def _headers() -> Path:
    scheme = sysconfig.get_default_scheme()
    # Triton does the same: Debian's scheme for local packages names a folder without headers.
    return Path(sysconfig.get_path("include", "posix_prefix" if scheme == "posix_local" else scheme))
