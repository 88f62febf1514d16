"""The report of `scripts/prove-gpu`: parts, bars, and the page."""

from pathlib import Path
from typing import Any

from scripts.benchmarks.report import Goal
from scripts.prove_gpu import page, record
from scripts.prove_gpu.bars import bars
from scripts.prove_gpu.ways import COMPILED, DIFFUSERS, IMAGES, MAX, PEERS, PLAIN, SERVED, STARTS, WAYS_TABLE

GPU = {"name": "NVIDIA A10G", "gpu": True, "size": "full"}
CPU = {"name": "a CPU of 2 cores", "gpu": False, "size": "tiny"}


def part(file: Path, stage: str) -> record.Part:
    return record.Part(file, stage, "abc1234", date="2026-11-27", ended="done")


def report(tmp_path: Path, device: dict[str, Any]) -> Path:
    """A report of the stages bench, bench-max, reference, quality and serve."""
    file = tmp_path / record.FILE
    record.begin(file, device)
    bench = part(file, "bench")
    bench.row(STARTS, way=PLAIN.name, **{"s to ready": 10.0})
    bench.row(STARTS, way=COMPILED.name, **{"s to ready": 100.0, "s to ready from the kept cache": 14.0})
    for way, seconds in ((PLAIN.name, 0.2), ("tiny VAE", 0.08), (COMPILED.name, 0.15)):
        bench.row(WAYS_TABLE, way=way, jobs=1, **{"s an image": seconds})
        bench.row(WAYS_TABLE, way=way, jobs=4, **{"s an image": 0.01})
    part(file, "bench-max").row(WAYS_TABLE, way=MAX.name, jobs=1, **{"s an image": 0.16})
    part(file, "reference").row(DIFFUSERS, way=PEERS["max-autotune"], **{"ms an image": 200.0})
    part(file, "quality").row(IMAGES, way=PLAIN.name, **{"PSNR, dB": 51.25})
    serve = part(file, "serve")
    serve.row(SERVED, server="ours", clients=1, **{"images/s": 5.0, "beside the model, ms": 12.5})
    serve.row(SERVED, server="ours", clients=16, **{"images/s": 6.0})
    serve.row(SERVED, server="reference", clients=16, **{"images/s": 4.0})
    return file


def verdicts(file: Path) -> dict[str, tuple[str, str]]:
    return {bar.name: (bar.found, bar.verdict) for bar in bars(record.read(file))}


class TestParts:
    def test_part_of_another_stage_is_kept(self, tmp_path: Path) -> None:
        file = report(tmp_path, GPU)
        before = record.read(file)["stages"]
        part(file, "facts").row("Facts", fact="torch", value="2.13.0")
        assert record.read(file)["stages"] == {**before, "facts": record.read(file)["stages"]["facts"]}

    def test_every_row_is_saved_when_it_is_added(self, tmp_path: Path) -> None:
        file = tmp_path / record.FILE
        growing = part(file, "facts")
        for count in (1, 2, 3):
            growing.row("Facts", fact=count)
            assert len(record.read(file)["stages"]["facts"]["tables"]["Facts"]) == count

    def test_parts_of_another_device_are_dropped(self, tmp_path: Path) -> None:
        file = report(tmp_path, GPU)
        assert record.begin(file, GPU) == []
        assert len(record.begin(file, {**GPU, "name": "NVIDIA H100"})) == 5
        assert record.read(file)["stages"] == {}

    def test_dropped_stage_leaves_the_others(self, tmp_path: Path) -> None:
        file = report(tmp_path, GPU)
        record.drop(file, "bench")
        assert list(record.read(file)["stages"]) == ["bench-max", "reference", "quality", "serve"]


class TestBars:
    def test_bars_of_speed_are_judged_by_the_rows_of_several_stages(self, tmp_path: Path) -> None:
        found = verdicts(report(tmp_path, GPU))
        # Of the best way with the whole VAE, which is not the tiny one.
        best = f"an image, of diffusers compiled with max-autotune ({COMPILED.name})"
        assert found[best] == ("0.75 (at most 0.9)", "met")
        assert found["an image by one client, beside the model, ms"] == ("12.5 (at most 12)", "MISSED")
        assert found["images/s with 16 clients, of the reference's"] == ("1.5 (at least 1.5)", "met")
        assert found["a compiled start from the kept cache, of one without compiling"] == ("1.4 (at most 1.5)", "met")

    def test_bar_without_its_stage_is_not_measured(self, tmp_path: Path) -> None:
        file = tmp_path / record.FILE
        record.begin(file, GPU)
        assert set(verdicts(file).values()) == {("", "not measured")}
        assert len(verdicts(file)) == 7

    def test_goals_of_a_stage_are_counted(self, tmp_path: Path) -> None:
        file = tmp_path / record.FILE
        record.begin(file, CPU)
        chaos = part(file, "chaos")
        chaos.goals = [Goal("count", "wrong", 2, at_most=0), Goal("count", "lost", 0, at_most=0)]
        chaos.save()
        assert verdicts(file) == {
            "goals of the stage chaos that are missed": ("1 (at most 0)", "MISSED"),
            "goals of the stage soak that are missed": ("", "not measured"),
        }

    def test_speed_is_judged_at_full_size_on_a_gpu_alone(self, tmp_path: Path) -> None:
        tiny = {**GPU, "size": "tiny"}
        assert [bar.name.split()[-4] for bar in bars(record.read(report(tmp_path, tiny)))] == ["tests", "chaos", "soak"]
        assert [bar.name.split()[-4] for bar in bars(record.read(report(tmp_path, CPU)))] == ["chaos", "soak"]


class TestPage:
    def test_page_shows_the_card_the_bars_and_exactness_beside_speed(self, tmp_path: Path) -> None:
        lines = page.write(record.read(report(tmp_path, GPU))).splitlines()
        assert lines[0] == "# NVIDIA A10G"
        assert "Measured by `scripts/prove-gpu` on 2026-11-27, at commit abc1234." in lines
        assert f"| {PLAIN.name} | 1 | 0.2 | 51.2 |" in lines
        assert f"| {COMPILED.name} | 1 | 0.15 |  |" in lines
        assert "| images/s with 16 clients, of the reference's | 1.5 (at least 1.5) | met |" in lines
        assert not [line for line in lines if "no GPU" in line]

    def test_page_of_a_cpu_says_that_it_is_no_gpu(self, tmp_path: Path) -> None:
        text = page.write(record.read(report(tmp_path, CPU)))
        assert text.startswith("# a CPU of 2 cores\n\n**This is no GPU.**")
        assert "The model is a tiny one" in text

    def test_page_says_why_a_stage_did_not_end(self, tmp_path: Path) -> None:
        file = report(tmp_path, GPU)
        failed = part(file, "soak")
        failed.ended = "failed: the worker died"
        failed.note("One | two.")
        text = page.write(record.read(file))
        assert "One | two.\n" in text
        assert "The stage soak: failed: the worker died.\n" in text

    def test_cell_with_a_bar_does_not_end_its_column(self, tmp_path: Path) -> None:
        file = tmp_path / record.FILE
        record.begin(file, GPU)
        part(file, "facts").row("Facts", fact="a|b", value=12345.6)
        assert "| a\\|b | 12346 |" in page.write(record.read(file)).splitlines()

    def test_summary_has_a_line_for_each_bar(self, tmp_path: Path) -> None:
        file = report(tmp_path, GPU)
        assert len(page.summary(record.read(file)).splitlines()) == len(bars(record.read(file)))
