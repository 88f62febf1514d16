"""The report as a page: `gpu-report.md`, ready for the documentation."""

from collections.abc import Iterator, Sequence
from typing import Any

from scripts.prove_gpu.bars import bars, psnr
from scripts.prove_gpu.record import Row
from scripts.prove_gpu.stages import STAGES
from scripts.prove_gpu.ways import DIFFUSERS, STARTS, WAYS_TABLE

FILE = "gpu-report.md"


def write(record: dict[str, Any]) -> str:
    """The whole page."""
    return "\n".join([*_head(record), "", *_bars(record), *_stages(record)]) + "\n"


def summary(record: dict[str, Any]) -> str:
    """The bars as lines for a terminal."""
    return "".join(f"{bar.verdict:>12}  {bar.name}  {bar.found}".rstrip() + "\n" for bar in bars(record))


def _head(record: dict[str, Any]) -> Iterator[str]:
    device = record["device"]
    yield f"# {device.get('name', 'No device')}"
    yield ""
    if device and not device["gpu"]:
        yield "**This is no GPU.** The stages were tried here; the figures say nothing of a GPU."
        yield ""
    if device.get("size") == "tiny":
        yield "The model is a tiny one: the figures say nothing of SDXL-Turbo."
        yield ""
    parts = record["stages"].values()
    dates, commits = ({part[what] for part in parts} - {""} for what in ("date", "commit"))
    yield f"Measured by `scripts/prove-gpu` on {', '.join(sorted(dates))}, at commit {', '.join(sorted(commits))}."


def _bars(record: dict[str, Any]) -> Iterator[str]:
    yield from _table("Bars", [{"bar": bar.name, "found": bar.found, "verdict": bar.verdict} for bar in bars(record)])
    if not (record["device"].get("gpu") and record["device"]["size"] == "full"):
        yield from ("The other bars are for a model of full size on a GPU, and are not judged here.", "")


def _stages(record: dict[str, Any]) -> Iterator[str]:
    by_way = psnr(record)
    for name in STAGES:
        part = record["stages"].get(name)
        if part is None:
            continue
        for title, rows in part["tables"].items():
            # Speed stands beside what it costs in exactness.
            shown = _with_psnr(rows, by_way) if title in (WAYS_TABLE, DIFFUSERS) else rows
            yield from _table(f"{title}, {name}" if title in (WAYS_TABLE, STARTS) else title, shown)
        for note in part["notes"]:
            yield from (note, "")
        if part["ended"] != "done":
            yield from (f"The stage {name}: {part['ended']}.", "")


def _with_psnr(rows: Sequence[Row], by_way: dict[str, float]) -> list[Row]:
    return [{**row, "PSNR, dB": by_way.get(row["way"])} for row in rows]


def _table(title: str, rows: Sequence[Row]) -> Iterator[str]:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    yield f"## {title}"
    yield ""
    yield "| " + " | ".join(columns) + " |"
    yield "|" + "---|" * len(columns)
    for row in rows:
        yield "| " + " | ".join(_cell(row.get(name)) for name in columns) + " |"
    yield ""


def _cell(value: Any) -> str:
    """A value as text: numbers with three significant digits, and no thousands in exponents."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value).replace("|", "\\|")
