"""The command line of the benchmarks."""

import argparse
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from rich.console import Console

from app.model.sources import EMBEDDED
from scripts.benchmarks import batch, codecs, counted, full, growth, int8, load, report, single

_SERVERS = ("litserve", "bentoml", "ray")
"""The peers of the case load."""

_FULL_SIZE = ("full", "int8")
"""The cases that need a full-size model."""


def main() -> int:
    """Run the chosen cases; returns 1 if a goal was missed."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument(
        "--case",
        action="append",
        choices=["flops", "png", "decode", "request", "load", "batch", *_FULL_SIZE],
        help="default: all but full and int8, which need a full-size --model, 24 and 16 GB, and ten minutes each",
    )
    parser.add_argument(
        "--model",
        type=Path,
        default=EMBEDDED,
        help="the checkpoint's folder, relative to the project's folder (default: the embedded one)",
    )
    parser.add_argument(
        "--peer",
        action="append",
        default=[],
        choices=[*_SERVERS, *full.PEERS],
        help="another server for the case load, or another way for the case full (openvino); each gets its own "
        "environment",
    )
    parser.add_argument(
        "--policy",
        type=int,
        action="append",
        default=[],
        metavar="JOBS",
        help="for the case load: also our service with at most this many jobs in a UNet call",
    )
    parser.add_argument(
        "--plot",
        type=Path,
        metavar="FILE",
        help="measure cost against load and batch size, and draw it into this file, relative to the project's folder",
    )
    parser.add_argument("--log", action="store_true", help="append to docs/benchmarks/log.md")
    options = parser.parse_args()
    _check(parser, options)
    cases: dict[str, Callable[[], report.Outcome]] = {
        "flops": counted.case,
        "png": codecs.png,
        "decode": codecs.decode,
        "request": lambda: single.case(options.model),
        "load": lambda: load.case(options.model, _of(_SERVERS, options.peer), options.policy),
        "batch": lambda: batch.case(options.model),
        "full": lambda: full.case(options.model, _of(full.PEERS, options.peer)),
        "int8": lambda: int8.case(options.model),
    }
    console, outcomes = Console(), []
    for name in options.case or ([] if options.plot else [name for name in cases if name not in _FULL_SIZE]):
        outcomes.append(cases[name]())
        report.show(outcomes[-1], console)
    if options.plot:
        drawn = growth.case(options.model)
        for outcome in drawn:
            report.show(outcome, console)
        outcomes += drawn
    if options.log:
        report.keep(outcomes)
    print(report.line(outcomes))
    if options.plot:
        growth.draw(drawn, options.plot)
    return 0 if all(goal.met for one in outcomes for goal in one.goals) else 1


def _of(known: Iterable[str], names: list[str]) -> list[str]:
    return [name for name in names if name in known]


def _check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Check the options now, instead of failing after minutes of measuring."""
    cases = options.case or []
    if not options.model.is_dir():
        parser.error(f"--model {options.model} is not a folder")
    for case in set(cases).intersection(_FULL_SIZE):
        if options.model == EMBEDDED:
            parser.error(f"--case {case} needs a --model, written by scripts/make_checkpoint --size full")
    loads = "load" in cases if cases else not options.plot
    if (set(options.peer).intersection(_SERVERS) or options.policy) and not loads:
        parser.error("--policy and the peers litserve, bentoml and ray go with --case load")
    if set(options.peer).intersection(full.PEERS) and "full" not in cases:
        parser.error("the peer openvino goes with --case full")
    if options.plot:
        from matplotlib.backend_bases import FigureCanvasBase

        known = FigureCanvasBase.get_supported_filetypes()
        if not options.plot.absolute().parent.is_dir() or options.plot.suffix.removeprefix(".") not in known:
            parser.error(f"--plot takes a file in an existing folder, ending in one of: {', '.join(sorted(known))}")


if __name__ == "__main__":
    sys.exit(main())
