"""Builds the pretended CUDA runtime, and says which environment variables make a Python with torch's CUDA build use it.

    . <(python -m tests.pretended_cuda.build SITE_PACKAGES OUT)

SITE_PACKAGES holds torch's CUDA build with NVIDIA's packages, whose headers are used. OUT gets the libraries.
"""

import os
import shlex
import subprocess
import sys
from pathlib import Path

SOURCES = Path(__file__).parent / "runtime"
HEADERS = ("nvidia/cu13/include", "nvidia/cudnn/include", "triton/backends/nvidia/include")
"""Folders of SITE_PACKAGES. CUDA's own headers include some that only Triton carries."""

LIBRARIES = {
    "libpretended.so": ("state", "memory", "streams", "graphs", "devices", "blas", "dnn"),
    "libcuda.so.1": ("driver", "driver_nothing"),
    "libnvidia-ml.so.1": ("nvml",),
}
"""The names of the libraries, and their sources. The first stands in for libcudart, cuBLAS, cuBLASLt and cuDNN."""


def build(site: Path, out: Path) -> None:
    """Compile the libraries.

    Raises:
        FileNotFoundError: there is no g++.
        CalledProcessError: g++ fails; it has written why to stderr.
    """
    out.mkdir(parents=True, exist_ok=True)
    includes = [f"-I{SOURCES / 'headers'}", *(f"-isystem{site / folder}" for folder in HEADERS)]
    flags = [
        "-std=c++17",
        "-O2",
        "-shared",
        "-fPIC",
        "-fvisibility=hidden",
        "-Wall",
        "-Wextra",
        "-Wno-unused-parameter",
    ]
    for name, sources in LIBRARIES.items():
        # The first library is loaded before all others: the two others take their state from it.
        shared = [] if name == "libpretended.so" else ["-L", str(out), "-lpretended", f"-Wl,-rpath,{out}"]
        files = [str(SOURCES / f"{source}.cpp") for source in sources]
        command = [
            "g++",
            *flags,
            *includes,
            *files,
            *shared,
            "-Wl,-z,defs",
            f"-Wl,-soname,{name}",
            "-o",
            str(out / name),
        ]
        subprocess.run(command, check=True)


def environment(out: Path) -> dict[str, str]:
    """The variables of a process that is to see two A10Gs."""
    libraries = filter(None, (str(out), os.environ.get("LD_LIBRARY_PATH")))
    return {
        "LD_PRELOAD": str(out / "libpretended.so"),
        "LD_LIBRARY_PATH": ":".join(libraries),
        "PRETENDED_CUDA": str(out),
    }


def main() -> None:
    site, out = (Path(argument).resolve() for argument in sys.argv[1:])
    build(site, out)
    for name, value in environment(out).items():
        sys.stdout.write(f"export {name}={shlex.quote(value)}\n")


if __name__ == "__main__":
    main()
