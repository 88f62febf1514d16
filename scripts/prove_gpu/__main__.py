"""The command line of scripts/prove-gpu. Until the wheels are installed it uses the standard library only."""

import argparse
import os
import subprocess
import sys
from pathlib import Path

from scripts.prove_gpu import wheels
from scripts.prove_gpu.stages import STAGES

KEPT = wheels.ROOT / "out" / "prove-gpu"


def main() -> int:
    """Run the chosen stages; returns 1 if one failed or did not finish."""
    parser = argparse.ArgumentParser(prog="scripts/prove-gpu", description=__doc__)
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=f"by default all: {', '.join(STAGES)}")
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="of the report and the logs (default: report, in the next one)"
    )
    parser.add_argument("--work", type=Path, metavar="FOLDER", default=KEPT, help="of what the next run needs again")
    parser.add_argument("--size", choices=["full", "tiny"], default="full", help="tiny: to try the stages on a CPU")
    parser.add_argument("--wheels", type=Path, metavar="FOLDER", help="the wheels of what this Python lacks")
    parser.add_argument("--list-wheels", action="store_true", help="print the requirements of a host with torch alone")
    options = parser.parse_args()
    if options.list_wheels:
        print(*wheels.requirements(), sep="\n")
        return 0
    if unknown := [name for name in options.stages if name not in STAGES]:
        parser.error(f"there is no stage {unknown[0]}, only {', '.join(STAGES)}")
    work = options.work.absolute()
    site = _site(parser, options.wheels, work)
    # Here, and in the processes of the stages.
    sys.path[:0] = site
    os.environ["PYTHONPATH"] = os.pathsep.join([*site, str(wheels.ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    from scripts.prove_gpu import runner

    out = (options.out or work / "report").absolute()
    return runner.run(options.stages or list(STAGES), out, work / options.size, options.size)


def _site(parser: argparse.ArgumentParser, folder: Path | None, work: Path) -> list[str]:
    """The folder with the installed wheels; none without `--wheels`."""
    if folder is None:
        return []
    if not any(folder.glob("*.whl")):
        parser.error(f"--wheels {folder} is not a folder with wheels")
    site = work / "site"
    try:
        wheels.install(folder, site)
    except subprocess.CalledProcessError:
        parser.error("a wheel cannot be installed; pip says why above")
    return [str(site)]


if __name__ == "__main__":
    sys.exit(main())
