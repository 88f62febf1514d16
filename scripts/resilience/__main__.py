"""The command line of scripts/chaos."""

import argparse
import sys
from collections.abc import Callable

from rich.console import Console

from app.engine.engine import LOADER
from scripts.benchmarks import report
from scripts.resilience import deaths, disconnects, faults, overload


def main() -> int:
    """Run the chosen cases; returns 1 if a goal was missed."""
    parser = argparse.ArgumentParser(
        prog="scripts/chaos", description="Inject faults into the service and check its answers."
    )
    parser.add_argument(
        "--case",
        action="append",
        choices=["faults", "deaths", "embedded", "overload", "fairness", "disconnects"],
        help="default: all; embedded: signals to the worker, with the embedded model",
    )
    parser.add_argument("--requests", type=int, default=1000, help="requests for each fault (default: 1000)")
    parser.add_argument("--seconds", type=float, default=60, help="duration of the overload (default: 60)")
    parser.add_argument("--cuts", type=int, default=10_000, help="requests to cut off (default: 10000)")
    options = parser.parse_args()
    for name in ("requests", "seconds", "cuts"):
        if getattr(options, name) <= 0:
            parser.error(f"--{name} must be more than 0")
    cases: dict[str, Callable[[], report.Outcome]] = {
        "faults": lambda: faults.case(options.requests),
        "deaths": lambda: deaths.case(options.requests),
        "embedded": lambda: faults.case(
            max(1, options.requests // 10),
            10,
            LOADER,
            model="embedded",
            max_batch=1,
            tick_timeout_seconds=4,
            load_timeout_seconds=60,
        ),
        "overload": lambda: overload.overload(options.seconds),
        "fairness": lambda: overload.fairness(options.seconds / 3),
        "disconnects": lambda: disconnects.case(options.cuts),
    }
    console, outcomes = Console(), []
    for name in options.case or cases:
        outcomes.append(cases[name]())
        report.show(outcomes[-1], console)
    print(report.line(outcomes))
    return 0 if all(goal.met for one in outcomes for goal in one.goals) else 1


if __name__ == "__main__":
    sys.exit(main())
