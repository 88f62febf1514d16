"""The command line of the benchmarks."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console

from app.model.sources import EMBEDDED
from scripts.benchmarks import batch, codecs, counted, full, gpu, growth, load, report, single


def main() -> int:
    """Returns 1 if a goal was missed."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument(
        "--case",
        action="append",
        choices=["flops", "png", "decode", "request", "load", "batch", "full", "gpu"],
        help="by default all but the last two: full needs a --model of full size, 24 GB of memory and ten minutes, "
        "gpu a CUDA device",
    )
    parser.add_argument(
        "--model",
        type=Path,
        default=EMBEDDED,
        help="a checkpoint's folder, from the project's own; by default the embedded one",
    )
    parser.add_argument(
        "--peer",
        action="append",
        default=[],
        choices=["litserve", "bentoml", "ray"],
        help="for load, beside the reference; each gets an environment of its own, of 1.5 GB",
    )
    parser.add_argument(
        "--policy",
        type=int,
        action="append",
        default=[],
        metavar="JOBS",
        help="for load: also ours with at most so many jobs in a UNet call",
    )
    parser.add_argument(
        "--plot",
        type=Path,
        metavar="FILE",
        help="measure how cost grows with load and batch size, and draw that into this file, from the project's folder",
    )
    parser.add_argument("--log", action="store_true", help="append to docs/benchmarks/log.md")
    options = parser.parse_args()
    _check(parser, options)
    cases: dict[str, Callable[[], report.Outcome]] = {
        "flops": counted.case,
        "png": codecs.png,
        "decode": codecs.decode,
        "request": lambda: single.case(options.model),
        "load": lambda: load.case(options.model, options.peer, options.policy),
        "batch": lambda: batch.case(options.model),
        "full": lambda: full.case(options.model),
        "gpu": lambda: gpu.case(options.model),
    }
    console, outcomes = Console(), []
    for name in options.case or ([] if options.plot else [name for name in cases if name not in ("full", "gpu")]):
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


def _check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Refuse now what would else fail after minutes of measuring."""
    cases = options.case or []
    if not options.model.is_dir() and set(cases) != {"gpu"}:
        parser.error(f"--model {options.model} is no folder")
    if "full" in cases and options.model == EMBEDDED:
        parser.error("--case full needs a --model, as scripts/make_checkpoint --size full writes it")
    if "gpu" in cases and not torch.cuda.is_available():
        parser.error("--case gpu needs a CUDA device")
    if (options.peer or options.policy) and (options.plot if not cases else "load" not in cases):
        parser.error("--peer and --policy go with --case load")
    if options.plot:
        from matplotlib.backend_bases import FigureCanvasBase

        known = FigureCanvasBase.get_supported_filetypes()
        if not options.plot.absolute().parent.is_dir() or options.plot.suffix.removeprefix(".") not in known:
            parser.error(f"--plot takes a file in a folder that is there, ending in one of: {', '.join(sorted(known))}")


if __name__ == "__main__":
    sys.exit(main())
