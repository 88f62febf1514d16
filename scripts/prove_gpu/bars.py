"""What is demanded of a GPU, by the parts of the report."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from scripts.benchmarks.report import Goal
from scripts.prove_gpu.record import Row
from scripts.prove_gpu.ways import COMPILED, DIFFUSERS, EXACT, IMAGES, PEERS, PLAIN, SERVED, STARTS, WAYS_TABLE


class Bar(NamedTuple):
    """One demand: what is measured, and the goal; None while a stage that it needs has not been run."""

    name: str
    goal: Goal | None

    @property
    def verdict(self) -> str:
        if self.goal is None:
            return "not measured"
        return "met" if self.goal.met else "MISSED"

    @property
    def found(self) -> str:
        """The figure and its bound."""
        if self.goal is None:
            return ""
        bound = f"at least {self.goal.at_least:g}" if self.goal.at_most is None else f"at most {self.goal.at_most:g}"
        return f"{self.goal.value:.3g} ({bound})"


def bars(record: dict[str, Any]) -> list[Bar]:
    """All bars. Those of the tests are for a GPU, and those of speed for a model of full size on it."""
    device = record["device"]
    tests = [_missed(record, "tests")] if device.get("gpu") else []
    speed = _speed(record) if device.get("gpu") and device["size"] == "full" else ()
    return [*tests, *speed, _missed(record, "chaos"), _missed(record, "soak")]


def rows(record: dict[str, Any], stage: str, table: str) -> list[Row]:
    """The rows of a stage's table; none if it has not been run."""
    found: list[Row] = record["stages"].get(stage, {}).get("tables", {}).get(table, [])
    return found


def _missed(record: dict[str, Any], stage: str) -> Bar:
    """The goals of a stage's own, which are counts and memory."""
    goals = [Goal(**goal) for goal in record["stages"].get(stage, {}).get("goals", ())]
    name = f"goals of the stage {stage} that are missed"
    return Bar(name, Goal("count", name, sum(not goal.met for goal in goals), at_most=0) if goals else None)


def _speed(record: dict[str, Any]) -> Iterator[Bar]:
    ways = [*rows(record, "bench", WAYS_TABLE), *rows(record, "bench-max", WAYS_TABLE)]
    single = {row["way"]: row["s an image"] for row in ways if row["jobs"] == 1}
    ours = {way.name: single[way.name] for way in EXACT if way.name in single}
    name = "an image, of diffusers compiled with max-autotune"
    compiled = _value(rows(record, "reference", DIFFUSERS), "ms an image", way=PEERS["max-autotune"])
    best = min(ours, key=lambda way: ours[way], default="")
    ratio = 1000 * ours[best] / compiled if best and compiled else None
    yield Bar(f"{name} ({best})", _goal(f"{name} ({best})", ratio, at_most=0.9)) if best else Bar(name, None)

    served = rows(record, "serve", SERVED)
    name = "an image by one client, beside the model, ms"
    yield Bar(name, _goal(name, _value(served, "beside the model, ms", server="ours", clients=1), at_most=12))
    name = "images/s with 16 clients, of the reference's"
    images = [_value(served, "images/s", server=server, clients=16) for server in ("ours", "reference")]
    yield Bar(name, _goal(name, images[0] / images[1] if images[0] and images[1] else None, at_least=1.5))

    starts = rows(record, "bench", STARTS)
    name = "a compiled start from the kept cache, of one without compiling"
    plain = _value(starts, "s to ready", way=PLAIN.name)
    kept = _value(starts, "s to ready from the kept cache", way=COMPILED.name)
    yield Bar(name, _goal(name, kept / plain if kept and plain else None, at_most=1.5))


def _value(found: list[Row], column: str, **where: Any) -> float | None:
    """The value of the row whose other columns are as given."""
    for row in found:
        if all(row.get(name) == value for name, value in where.items()):
            value: float | None = row.get(column)
            return value
    return None


def _goal(name: str, value: float | None, at_most: float | None = None, at_least: float | None = None) -> Goal | None:
    return None if value is None else Goal("time", name, value, at_most, at_least)


def psnr(record: dict[str, Any]) -> dict[str, float]:
    """The mean PSNR of each way's images, in dB."""
    return {row["way"]: row["PSNR, dB"] for row in rows(record, "quality", IMAGES)}
