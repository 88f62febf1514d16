"""`scripts/prove-gpu` on a CPU: the wheels of a bare host, the order of stages, and what a limit of time leaves."""

import importlib
import importlib.metadata
import os
import re
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from scripts.prove_gpu import bench, images, record, stage, wheels
from scripts.prove_gpu.children import OutOfTime, lines
from scripts.prove_gpu.measuring import union
from scripts.prove_gpu.stages import STAGES, Context, StageFailed
from scripts.prove_gpu.ways import COMPILED
from scripts.resilience import faults
from tests.support.paths import ROOT

PROGRAM = """
import json, sys, time
for number in range(3):
    print(json.dumps({"number": number}), flush=True)
    print("not JSON", flush=True)
print("why it failed", file=sys.stderr)
{end}
"""


def prove(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    command = [ROOT / "scripts" / "prove-gpu", *arguments]
    environment = {**os.environ, "PYTHON": sys.executable}
    return subprocess.run(command, env=environment, capture_output=True, text=True, cwd="/")


class TestWheels:
    def test_requirements_are_the_pins_without_torch_and_cuda(self) -> None:
        found = wheels.requirements()
        pinned = (ROOT / "requirements.lock").read_text() + (ROOT / "requirements-dev.lock").read_text()
        assert set(found) <= set(pinned.splitlines())
        names = {canonicalize_name(re.split(r"[=;]", line)[0]) for line in found}
        assert {"cachetools", "diffusers", "fastapi", "pytest", "pytest-timeout"} <= names
        assert not [name for name in names if re.match(r"(torch|triton|nvidia|cuda)", name)]

    def test_tests_need_nothing_that_is_not_required(self) -> None:
        names = {canonicalize_name(re.split(r"[=;]", line)[0]) for line in wheels.requirements()}
        for package in wheels.OF_THE_TESTS:
            needed = map(Requirement, importlib.metadata.requires(package) or [])
            here = {
                canonicalize_name(one.name) for one in needed if not one.marker or one.marker.evaluate({"extra": ""})
            }
            assert here <= names

    def test_requirements_are_printed_by_a_python_without_packages(self) -> None:
        command = [sys.executable, "-S", "-m", "scripts.prove_gpu", "--list-wheels"]
        printed = subprocess.run(command, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
        assert (printed.stdout.splitlines(), printed.stderr) == (wheels.requirements(), "")

    def test_wheels_are_installed_once_into_a_folder_of_their_own(self, tmp_path: Path) -> None:
        folder, site = tmp_path / "wheels", tmp_path / "site"
        folder.mkdir()
        write_wheel(folder, "one")
        wheels.install(folder, site)
        assert (site / "one.py").is_file()
        (site / "one.py").unlink()
        wheels.install(folder, site)
        assert not (site / "one.py").exists()
        write_wheel(folder, "two")
        wheels.install(folder, site)
        assert (site / "one.py").is_file()
        assert (site / "two.py").is_file()

    def test_folder_without_wheels_is_refused(self, tmp_path: Path) -> None:
        refused = prove("--wheels", tmp_path, "facts")
        assert refused.returncode == 2
        assert f"--wheels {tmp_path} is not a folder with wheels" in refused.stderr


def write_wheel(folder: Path, name: str) -> None:
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
        info = f"{name}-1.0.dist-info"
        wheel.writestr(f"{name}.py", "")
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


class TestChildren:
    @pytest.fixture
    def run(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> "Run":
        return Run(tmp_path)

    def test_lines_of_json_are_yielded(self, run: "Run") -> None:
        assert list(run("sys.exit(0)")) == [{"number": 0}, {"number": 1}, {"number": 2}]

    def test_failure_has_the_last_line_of_the_log(self, run: "Run") -> None:
        found = run("sys.exit(3)")
        assert [next(found) for _ in range(3)]
        with pytest.raises(StageFailed, match=r"^why it failed$"):
            next(found)

    def test_program_that_takes_too_long_leaves_what_it_printed(self, run: "Run") -> None:
        found = run("time.sleep(600)", seconds=5)
        assert [next(found) for _ in range(3)] == [{"number": 0}, {"number": 1}, {"number": 2}]
        with pytest.raises(OutOfTime, match="program was not finished"):
            next(found)

    def test_program_that_dies_of_a_signal_is_a_failure(self, run: "Run") -> None:
        found = run("import os; os.kill(os.getpid(), 11)")
        assert [next(found) for _ in range(3)]
        with pytest.raises(StageFailed, match="it was ended by signal 11"):
            next(found)

    def test_nothing_is_begun_without_time(self, run: "Run") -> None:
        with pytest.raises(OutOfTime, match="program was not begun"):
            next(run("sys.exit(0)", seconds=0))


class Run:
    """Runs a program that prints three numbers and then ends in a given way."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, end: str, seconds: float = 60) -> Iterator[dict[str, int]]:
        (self.folder / "three_numbers.py").write_text(PROGRAM.replace("{end}", end))
        return lines("three_numbers", (), self.folder / "program.log", seconds, {"PYTHONPATH": str(self.folder)})


class TestStages:
    @pytest.mark.parametrize("name", STAGES)
    def test_stage_names_a_function(self, name: str) -> None:
        module, _, function = STAGES[name].partition(":")
        assert callable(getattr(importlib.import_module(module), function))

    def test_stage_that_fails_does_not_stop_the_next_and_is_in_the_exit_code(self, tmp_path: Path) -> None:
        where = ("--size", "tiny", "--out", tmp_path / "out", "--work", tmp_path / "work")
        # There are no images that could be compared. The weights are made because this stage needs them.
        done = prove(*where, "quality", "facts")
        assert done.returncode == 1, done.stderr
        parts = record.read(tmp_path / "out" / record.FILE)["stages"]
        assert {name: part["ended"] for name, part in parts.items()} == {
            "checkpoint": "done",
            "quality": "failed: there are no images to compare yet: run the stage bench first",
            "facts": "done",
        }
        assert "**This is no GPU.**" in (tmp_path / "out" / "gpu-report.md").read_text()
        # Another stage without time: its end is recorded, and the others stay.
        context = Context(tmp_path / "out", tmp_path / "work" / "tiny", "tiny", time.monotonic())
        assert stage.main("bench", context.out, context.work, "tiny", context.end) == stage.OUT_OF_TIME
        parts = record.read(tmp_path / "out" / record.FILE)["stages"]
        assert parts["bench"]["ended"] == "out of time: CUDA graphs was not begun"
        assert set(parts) == {"checkpoint", "quality", "facts", "bench"}

    def test_full_size_without_a_gpu_is_refused_with_a_sentence(self, tmp_path: Path) -> None:
        done = prove("--out", tmp_path / "out", "--work", tmp_path / "work", "facts")
        assert done.returncode == 1
        ended = record.read(tmp_path / "out" / record.FILE)["stages"]["facts"]["ended"]
        assert re.fullmatch(r"failed: torch \S+ finds no GPU that it can use; --size tiny tries .*", ended)

    def test_unknown_stage_is_refused(self) -> None:
        refused = prove("facts", "fax")
        assert refused.returncode == 2
        assert "there is no stage fax, only facts, checkpoint" in refused.stderr


class TestCompiledCode:
    """The folder of compiled code of a way, before its first start."""

    def folder(self, tmp_path: Path) -> tuple[Path, list[str]]:
        context = Context(tmp_path, tmp_path / "tiny", "tiny", float("inf"))
        part = record.Part(tmp_path / record.FILE, "bench", "abc1234")
        return bench._cache(context, part, COMPILED), part.notes

    def test_code_of_a_finished_run_is_removed(self, tmp_path: Path) -> None:
        folder, _ = self.folder(tmp_path)
        folder.mkdir(parents=True)
        (folder / bench.FINISHED).touch()
        assert self.folder(tmp_path) == (folder, [])
        assert not folder.exists()

    def test_code_of_a_run_without_an_end_is_kept_and_told(self, tmp_path: Path) -> None:
        folder, _ = self.folder(tmp_path)
        folder.mkdir(parents=True)
        _, notes = self.folder(tmp_path)
        assert folder.exists()
        assert notes == [
            f"{COMPILED.name}: its start goes on from what an earlier run has compiled without coming to an end."
        ]


class TestMeasures:
    def test_run_without_a_fault_has_no_silence(self) -> None:
        assert faults.Run(done=[1.0, 2.0]).silences() == []
        assert faults.Run(done=[1.0, 4.0], faults=[2.0]).silences() == [2.0]

    def test_union_of_spans_counts_each_moment_once(self) -> None:
        assert union([(0, 4), (1, 2), (3, 6), (8, 9)]) == 7

    def test_psnr_of_images(self) -> None:
        black = np.zeros((2, 4, 4, 3), np.uint8)
        other = black.copy()
        other[1] += 255
        assert images.psnr(black, black) == [images.IDENTICAL_DB] * 2
        assert images.psnr(black, other) == [images.IDENTICAL_DB, 0.0]
        other[1] = 1
        assert images.psnr(black, other)[1] == pytest.approx(48.13, abs=0.01)
