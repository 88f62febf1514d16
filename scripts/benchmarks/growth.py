"""Growth of cost: latency against offered load, images a second and memory against the number of jobs on board."""

import asyncio
from pathlib import Path

import numpy as np

from scripts.benchmarks import batch
from scripts.benchmarks.load import CLIENTS, closed, opened, requests
from scripts.benchmarks.report import Outcome, machine
from scripts.benchmarks.servers import OURS, REFERENCE, Kind, running

JOBS = 64
FRACTIONS = (0.2, 0.4, 0.6, 0.8, 0.95)
"""Offered loads as fractions of the same server's throughput at saturation."""


def case(model: Path) -> list[Outcome]:
    """The outcomes of load and of batch size."""
    return [
        Outcome(
            "growth",
            f"Latency against offered load: Poisson arrivals, {JOBS} mixed jobs for each point",
            ("server", "arrivals/s", "p50 s", "p95 s"),
            [row for kind in (OURS, REFERENCE) for row in _curve(kind, model)],
        ),
        batch.case(model),
    ]


def _curve(kind: Kind, model: Path) -> list[tuple[str, float, float, float]]:
    """One row for each rate."""
    rows = []
    with running(kind, model) as url:
        asyncio.run(closed(url, requests(4, seed=JOBS), 1))
        capacity = asyncio.run(closed(url, requests(JOBS), CLIENTS)).throughput
        for index, fraction in enumerate(FRACTIONS):
            # New images and prompts for each point, so that no cache helps.
            todo = requests(JOBS, seed=(index + 2) * JOBS)
            found = asyncio.run(opened(url, todo, fraction * capacity, seed=index))
            rows.append((kind.name, fraction * capacity, found.percentile(50), found.percentile(95)))
    return rows


def draw(outcomes: list[Outcome], file: Path) -> None:
    """Draw three plots and a description of the machine into an image file."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot

    growth, batches = outcomes
    figure, (left, middle, right) = pyplot.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    for name, colour in ((OURS.name, "tab:blue"), (REFERENCE.name, "tab:orange")):
        _, rate, half, most = np.array([row for row in growth.rows if row[0] == name], dtype=object).T
        left.plot(rate, half, "o-", color=colour, label=f"{name}, p50")
        left.plot(rate, most, "o--", color=colour, label=f"{name}, p95")
    left.set(xlabel="arrivals a second", ylabel="latency, s", yscale="log", title="Latency against offered load")
    left.legend()
    jobs, images, _, _, memory = np.array(batches.rows).T
    for axes, values, unit in ((middle, images, "images a second"), (right, memory, "peak memory, MiB")):
        axes.plot(jobs, values, "o-")
        axes.set(xlabel="jobs on board", ylabel=unit, title=f"{unit.partition(',')[0].capitalize()} against batch size")
        axes.set_xticks(jobs)
        axes.set_ylim(bottom=0)
    for axes in (left, middle, right):
        axes.grid(alpha=0.3)
    facts = machine()
    figure.supxlabel(f"{facts['processor']}, {facts['cores']} cores, {facts['date']}", fontsize="small", color="grey")
    figure.savefig(file, dpi=80)
