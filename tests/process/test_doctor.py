import json
import logging
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from app.cli import app, doctor
from app.cli.doctor import Facts
from app.model.describe import Cuda, Description, Files, Gpu, Model
from tests.support.drivers import OLD_DRIVER, OLD_VERSION

CUDA = Cuda(
    torch="2.13.0",
    build="13.0",
    architectures=("sm_75", "sm_86"),
    driver="580.1",
    gpus=(Gpu("NVIDIA A10G", 20_000_000_000, 24_000_000_000, "8.6"), Gpu(reason="CUDA error")),
)
MODEL = Description(
    device="cuda:0",
    dtype="float16",
    dtype_reason="dtype is auto, on CUDA",
    max_batch=4,
    model=Model("stabilityai/sdxl-turbo", "model is auto"),
    files=Files("/cache/snapshot", "fixed"),
)
GOOD = Facts(
    vae_setting="auto",
    devices_setting="auto",
    compile_setting="default",
    missing_tools="",
    cuda=CUDA,
    model=MODEL,
    problems=(),
    unknown=(),
    driver="NVIDIA A10G, 580.1, 24 GB",
    visible_devices="all",
    cores=8,
    memory=32_000_000_000,
    cache="/cache",
    cache_writable=True,
    cache_free=90_000_000_000,
)
CPU_MODEL = replace(MODEL, device="cpu", dtype="float32")
CPU = replace(GOOD, model=CPU_MODEL)
DAMAGED = replace(GOOD, model=replace(MODEL, files=Files(reason="config.json cannot be read", downloadable=True)))
AWAY = replace(GOOD, model=replace(MODEL, files=Files(reason="Run `img2img download` first.", downloadable=True)))


@pytest.fixture(autouse=True)
def same_log_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.root, "handlers", [])


def run_doctor(*arguments: str, **environment: str) -> Any:
    return CliRunner().invoke(app.app, ["doctor", *arguments], env={"IMG2IMG_DEVICES": "cpu", **environment})


def fake_driver(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program = folder / "nvidia-smi"
    program.write_text(script)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_report_has_device_model_disk_and_memory(tmp_path: Path) -> None:
    result = run_doctor(IMG2IMG_MODEL="embedded", IMG2IMG_HUB_CACHE=str(tmp_path / "not" / "yet"))
    assert result.exit_code == 0
    for fact in ("torch ", "device ", "dtype ", "embedded (model is embedded)", "CPU cores", " GB", f"{tmp_path}/not"):
        assert fact in result.stdout
    assert "\n- The embedded model is small" in result.stdout


@pytest.mark.parametrize(
    ("setting", "expected"),
    [("auto", "measured when the model is loaded"), ("8", "8 (IMG2IMG_MAX_BATCH is set)")],
)
def test_report_has_the_batch_limit_and_its_reason(setting: str, expected: str) -> None:
    assert expected in run_doctor(IMG2IMG_MODEL="embedded", IMG2IMG_MAX_BATCH=setting).stdout


def test_report_as_json_has_facts_and_advice() -> None:
    facts = json.loads(run_doctor("--json", IMG2IMG_MODEL="embedded").stdout)
    assert facts["problems"] == facts["unknown"] == []
    assert facts["model"]["device"] == "cpu"
    assert facts["cores"] >= 1
    assert facts["memory"] > 0
    assert len(facts["advice"]) >= 1


def test_unknown_model_is_reported_and_fails() -> None:
    result = run_doctor(IMG2IMG_MODEL="nope")
    assert result.exit_code == 1
    assert "\n- IMG2IMG_MODEL=nope is not a folder" in result.stdout


def test_missing_files_are_a_problem_where_nothing_may_be_downloaded(tmp_path: Path) -> None:
    model = {"IMG2IMG_MODEL": "example/turbo", "IMG2IMG_HUB_CACHE": str(tmp_path)}
    online, offline = run_doctor(**model), run_doctor(**model, IMG2IMG_OFFLINE="1")
    assert online.exit_code == 0
    assert "The first start downloads the model" in online.stdout
    assert offline.exit_code == 1
    assert "\n- example/turbo is not completely on this disk" in offline.stdout
    assert "The first start downloads" not in offline.stdout


@pytest.mark.parametrize("devices", ["auto", "cuda:0"])
@pytest.mark.usefixtures("old_driver")
def test_old_driver_is_reported_with_the_message_of_torch_and_fails(devices: str) -> None:
    result = run_doctor(IMG2IMG_DEVICES=devices)
    assert (result.exit_code, result.exception.__class__) == (1, SystemExit)
    assert OLD_DRIVER in result.stdout
    assert f"needs driver 580 or later; the driver is {OLD_VERSION}" in result.stdout
    assert re.search(r"^CUDA build +13\.0$", result.stdout, re.MULTILINE)


def test_old_driver_gets_its_reason_and_no_guess() -> None:
    facts = replace(GOOD, model=None, problems=("torch cannot use cuda:0: why",))
    assert doctor.advise(facts) == ["torch cannot use cuda:0: why"]


def test_device_after_the_first_that_does_not_exist_is_reported() -> None:
    result = run_doctor(IMG2IMG_DEVICES="cpu,cuda:7", IMG2IMG_MODEL="embedded")
    assert result.exit_code == 1
    assert "\n- torch cannot use cuda:7: " in result.stdout


@pytest.mark.usefixtures("old_driver")
def test_old_driver_is_no_problem_for_the_cpu() -> None:
    result = run_doctor(IMG2IMG_DEVICES="cpu", IMG2IMG_MODEL="embedded")
    assert result.exit_code == 0
    assert "device " in result.stdout


def test_folder_without_a_checkpoint_is_reported(tmp_path: Path) -> None:
    result = run_doctor(IMG2IMG_MODEL=str(tmp_path))
    assert f"\n- IMG2IMG_MODEL={tmp_path} is not a checkpoint in diffusers format" in result.stdout
    assert "download" not in result.stdout
    assert result.exit_code == 1


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"API_KEYS_FILE": "/nowhere"}, "IMG2IMG_API_KEYS_FILE: /nowhere cannot be read"),
        ({"C2PA_CERTIFICATE": "/nowhere"}, "IMG2IMG_C2PA_CERTIFICATE and IMG2IMG_C2PA_KEY belong together"),
        ({"PREDICT_ROUTE": "/img2img"}, "IMG2IMG_PREDICT_ROUTE: /img2img is the path of something else"),
        ({"HOST": "no.such.host.invalid"}, "Nothing can listen on no.such.host.invalid"),
    ],
)
def test_setting_that_prevents_a_start_is_reported(variables: dict[str, str], expected: str) -> None:
    environment = {f"IMG2IMG_{name}": value for name, value in variables.items()}
    result = run_doctor(IMG2IMG_MODEL="embedded", **environment)
    assert (result.exit_code, f"\n- {expected}" in result.stdout) == (1, True)


def test_invalid_trace_exporter_is_reported() -> None:
    result = run_doctor(IMG2IMG_MODEL="embedded", OTEL_TRACES_EXPORTER="zipkin")
    assert (result.exit_code, "\n- OTEL_TRACES_EXPORTER can be" in result.stdout) == (1, True)


def test_unknown_variable_is_reported() -> None:
    result = run_doctor(IMG2IMG_MODEL="embedded", IMG2IMG_QEUE_SIZE="3", IMG2IMG_COLOUR="red")
    assert "\n- IMG2IMG_QEUE_SIZE is not a setting, and has no effect: is IMG2IMG_QUEUE_SIZE meant?" in result.stdout
    assert "\n- IMG2IMG_COLOUR is not a setting, and has no effect.\n" in result.stdout
    assert result.exit_code == 0


def test_cache_that_is_a_file_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = run_doctor(IMG2IMG_MODEL="owner/name", IMG2IMG_HUB_CACHE=str(tmp_path / "file"))
    assert f"{tmp_path / 'file'} cannot be written to: set IMG2IMG_HUB_CACHE to a folder that can" in result.stdout
    assert "IMG2IMG_OFFLINE" not in result.stdout


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("#!/bin/sh\necho 'NVIDIA A10G, 580.1, 24 GB'\necho 'NVIDIA L4, 580.1, 24 GB'", "NVIDIA A10G, 580.1, 24 GB; N"),
        ("#!/bin/sh\necho 'No driver is loaded.' >&2\nexit 9", "nvidia-smi failed: No driver is loaded."),
        ("", "nvidia-smi failed: [Errno 8] Exec format error"),
    ],
)
def test_driver_line_is_the_output_of_nvidia_smi(
    tmp_path: Path, script: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_driver(tmp_path, script, monkeypatch)
    assert str(doctor.driver()).startswith(expected)


def test_driver_without_nvidia_smi_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert doctor.driver() is None


def test_memory_is_the_machine_s_or_the_container_limit(tmp_path: Path) -> None:
    machine = doctor.memory([tmp_path / "missing"])
    (tmp_path / "unlimited").write_text("max\n")
    (tmp_path / "huge").write_text(f"{2**63}\n")
    assert doctor.memory([tmp_path / "unlimited", tmp_path / "huge"]) == machine
    (tmp_path / "limit").write_text("1000000\n")
    assert doctor.memory([tmp_path / "unlimited", tmp_path / "limit"]) == 1_000_000


def test_good_machine_gets_no_advice() -> None:
    assert doctor.advise(GOOD) == []
    report = doctor.render(GOOD, [])
    assert "All is well." in report
    for name, value in (
        ("CUDA build", "13.0 (sm_75, sm_86)"),
        ("cuda:0", "NVIDIA A10G, compute capability 8.6, 20.0 of 24.0 GB free"),
        ("cuda:1", "cannot be used: CUDA error"),
        ("batch", "4 (IMG2IMG_MAX_BATCH is set)"),
        ("model", "stabilityai/sdxl-turbo (model is auto)"),
        ("VAE", "fixed"),
        ("files", "/cache/snapshot"),
    ):
        assert re.search(rf"^{re.escape(name)} +{re.escape(value)}$", report, re.MULTILINE)


def test_report_says_which_files_are_missing() -> None:
    assert re.search(
        r"^files +not all here yet: Run `img2img download` first\.$", doctor.render(AWAY, []), re.MULTILINE
    )


@pytest.mark.parametrize(
    ("facts", "sentence"),
    [
        (replace(CPU, visible_devices="void"), "start it with --gpus all"),
        (replace(CPU, driver=None), "The host has NVIDIA driver 580.1: start this container with --gpus all"),
        (replace(CPU, driver=None, cuda=replace(CUDA, driver="")), "no NVIDIA driver here"),
        (replace(CPU, devices_setting="cpu"), "auto takes the GPU"),
        (replace(CPU, cuda=replace(CUDA, build="none")), "built without CUDA"),
        (CPU, "torch finds no GPU"),
        (CPU, "most of a minute for each image"),
        (replace(CPU, memory=8_000_000_000), "8.0 GB of memory may be too little"),
        (replace(CPU, model=replace(MODEL, device="cpu")), "float16 on the CPU is slow"),
        (
            replace(CPU, model=replace(CPU_MODEL, model=Model("embedded", "why"))),
            "IMG2IMG_MODEL=stabilityai/sdxl-turbo",
        ),
        (replace(GOOD, model=replace(MODEL, dtype="float32")), "twice the memory and time"),
        (replace(GOOD, vae_setting="checkpoint"), "own VAE has to run in float32"),
        (replace(GOOD, compile_setting="off"), "IMG2IMG_COMPILE=default fuses kernels"),
        (replace(GOOD, missing_tools="needs Python.h"), "IMG2IMG_COMPILE=default needs Python.h"),
        (CPU, "IMG2IMG_COMPILE gains little on the CPU"),
        (AWAY, "`img2img download` does it ahead"),
        (DAMAGED, "config.json cannot be read"),
        (replace(AWAY, cache_writable=False), "/cache cannot be written to: set IMG2IMG_HUB_CACHE"),
        (replace(AWAY, cache_free=1_000_000_000), "1.0 GB are free for /cache"),
    ],
)
def test_slow_or_failing_setup_gets_advice(facts: Facts, sentence: str) -> None:
    assert any(sentence in advice for advice in doctor.advise(facts))


def test_read_only_cache_is_reported(tmp_path: Path) -> None:
    facts = replace(GOOD, cache_writable=False, driver=None, visible_devices=None, cuda=replace(CUDA, driver=""))
    report = doctor.render(facts, [])
    assert "/cache, 90.0 GB free, read-only" in report
    assert "none (no nvidia-smi)" in report
    assert "580.1 (no nvidia-smi)" in doctor.render(replace(GOOD, driver=None), [])
    assert "not set" in report
