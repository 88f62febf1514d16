"""Results of benchmarks: as a table, as a line of JSON, and as an entry in the log."""

import datetime
import json
import os
import platform
import re
import subprocess
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parent.parent.parent
LOG = Path(__file__).parents[2] / "docs/benchmarks/log.md"


@dataclass(frozen=True)
class Goal:
    """A figure with an upper or a lower bound.

    Attributes:
        kind: what is measured. A count is the same on any machine. A time, a rate or the memory of a process depends
            on the load of the machine, so tests assert counts only.
    """

    kind: Literal["count", "time", "memory"]
    name: str
    value: float
    at_most: float | None = None
    at_least: float | None = None

    @property
    def met(self) -> bool:
        return (self.at_most is None or self.value <= self.at_most) and (
            self.at_least is None or self.value >= self.at_least
        )

    def __str__(self) -> str:
        bound = f"at most {self.at_most:g}" if self.at_most is not None else f"at least {self.at_least:g}"
        return f"{self.name}: {self.value:.3g} ({bound}: {'met' if self.met else 'MISSED'})"


@dataclass(frozen=True)
class Outcome:
    """The result of one case. `rows` hold numbers and text, one value for each of `columns`."""

    case: str
    title: str
    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]
    goals: list[Goal] = field(default_factory=list)

    def cells(self) -> list[tuple[str, ...]]:
        """The rows as text, numbers with three significant digits."""
        return [tuple(f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row) for row in self.rows]


def machine() -> dict[str, str]:
    """Date, commit, processor, cores, memory and Python version."""
    model = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return {
        "date": datetime.date.today().isoformat(),
        "commit": commit.stdout.strip() or "unknown",
        "processor": model[1] if model else platform.processor(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{memory:.0f} GiB",
        "python": platform.python_version(),
    }


def show(outcome: Outcome, console: Console) -> None:
    """Print one case as a table."""
    table = Table(*outcome.columns, title=outcome.title, title_justify="left")
    for row in outcome.cells():
        table.add_row(*row)
    console.print(table)
    for goal in outcome.goals:
        console.print(str(goal), markup=False, highlight=False)


def line(outcomes: list[Outcome]) -> str:
    """All cases as one line of JSON."""
    return json.dumps({"machine": machine(), "cases": {one.case: asdict(one) for one in outcomes}})


def keep(outcomes: list[Outcome]) -> None:
    """Append the cases to docs/benchmarks/log.md."""
    facts = machine()
    text = [f"\n## {facts.pop('date')}: {', '.join(one.case for one in outcomes)}\n"]
    text.append(", ".join(f"{name} {value}" for name, value in facts.items()) + ".\n")
    for one in outcomes:
        text.append(f"\n{one.title}\n")
        text.append("| " + " | ".join(one.columns) + " |")
        text.append("|" + "---|" * len(one.columns))
        text += ["| " + " | ".join(row) + " |" for row in one.cells()]
        text += ["", *(f"- {goal}" for goal in one.goals)]
    with LOG.open("a") as log:
        log.write("\n".join(text) + "\n")
