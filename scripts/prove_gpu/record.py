"""The file `gpu-report.json`: a part for each stage, saved whenever the part grows."""

import datetime
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from scripts.benchmarks.report import Goal

FILE = "gpu-report.json"
EMPTY = {"tables": {}, "goals": [], "notes": [], "date": "", "commit": "", "seconds": 0.0, "ended": "running"}
"""The part of a stage that has written nothing."""

Row = dict[str, Any]
"""Values by the names of their columns: numbers, text or None."""


@dataclass
class Part:
    """What one stage has found.

    Attributes:
        file: the report that it is saved into.
        stage: its name.
        tables: rows by the title of their table.
        goals: bars that concern this stage alone.
        notes: sentences for the reader.
        ended: `running`, `done`, `out of time`, or `failed: ` and why.
    """

    file: Path
    stage: str
    commit: str
    tables: dict[str, list[Row]] = field(default_factory=dict)
    goals: list[Goal] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    date: str = field(default_factory=lambda: datetime.date.today().isoformat())
    seconds: float = 0.0
    ended: str = "running"

    def row(self, table: str, **values: Any) -> Row:
        """Add a row, and save. A caller that changes the row later saves again."""
        row = dict(values)
        self.tables.setdefault(table, []).append(row)
        self.save()
        return row

    def note(self, sentence: str) -> None:
        """Add a sentence, print it, and save."""
        print(sentence, flush=True)
        self.notes.append(sentence)
        self.save()

    def save(self) -> None:
        """Write the part into the report, beside those of other stages."""
        record = read(self.file)
        values = {name: value for name, value in vars(self).items() if name not in ("file", "stage", "goals")}
        record["stages"][self.stage] = {**values, "goals": [asdict(goal) for goal in self.goals]}
        write(self.file, record)


def read(file: Path) -> dict[str, Any]:
    """The report; without stages if there is none yet."""
    try:
        record: dict[str, Any] = json.loads(file.read_text())
    except FileNotFoundError:
        return {"device": {}, "stages": {}}
    return record


def drop(file: Path, stage: str) -> None:
    """Forget what an earlier run of a stage has found."""
    record = read(file)
    record["stages"].pop(stage, None)
    write(file, record)


def write(file: Path, record: dict[str, Any]) -> None:
    """Replace the report as a whole, so that a run that is cut short leaves a complete file."""
    new = file.with_suffix(".new")
    new.write_text(json.dumps(record, indent=1) + "\n")
    new.rename(file)


def begin(file: Path, device: dict[str, Any]) -> list[str]:
    """Say which device the report is of, and drop the parts of another device or other weights.

    Returns:
        The stages that were dropped.
    """
    record = read(file)
    dropped = list(record["stages"]) if record["device"] not in ({}, device) else []
    if dropped:
        record["stages"] = {}
    record["device"] = device
    write(file, record)
    return dropped
