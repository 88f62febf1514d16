"""What deployment rests on: the image's recipe, the compose file, the lock files and the scripts."""

import ast
import importlib.metadata
import os
import re
import shutil
import stat
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from app.settings import Settings

ROOT = Path(__file__).parents[1]
SCRIPTS = [
    ROOT / ".ci/run",
    *sorted(path for path in (ROOT / "scripts").rglob("*") if path.is_file() and not path.suffix),
]
LOCK_FILES = ("requirements.lock", "requirements-c2pa.lock", "requirements-dev.lock")
VARIABLES = {f"IMG2IMG_{name.upper()}" for name in Settings.model_fields}
FIXED_BY_THE_IMAGE = {"IMG2IMG_HOST", "IMG2IMG_PORT", "IMG2IMG_HUB_CACHE", "IMG2IMG_COMPILE_CACHE"}
PLATFORM_PACKAGES = ("nvidia-", "cuda-", "triton")
RECORDING_PYTHON = """#!/bin/sh
# Says what it was told to install, and makes a .venv of itself.
case "$*" in
    -V) echo Python 3.11 ;;
    "-m venv "*) mkdir -p .venv/bin && cp "$0" .venv/bin/python && cp "$0" .venv/bin/img2img ;;
    "-m pip install "*) echo "$*" >> said ;;
esac
"""


def compose_service(name: str) -> dict[str, Any]:
    services: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    service: dict[str, Any] = services[name]
    return service


def seconds(duration: str) -> float:
    return float(duration.removesuffix("s"))


def dockerfile() -> dict[str, list[tuple[str, str]]]:
    """Returns each stage's instructions as (word, rest), those of the stages it is built on first."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    stages: dict[str, list[tuple[str, str]]] = {"": []}
    current = ""
    for line in filter(None, map(str.strip, text.splitlines())):
        word, _, rest = line.partition(" ")
        if word == "FROM":
            base, _, current = rest.partition(" AS ")
            stages[current] = [*stages.get(base, [("FROM", base)])]
        else:
            stages[current].append((word, re.sub(r"\s+", " ", rest.strip())))
    return stages


def instructions(stage: str, word: str) -> list[str]:
    return [rest for found, rest in dockerfile()[stage] if found == word]


def pins(name: str) -> dict[str, str]:
    requirements = [line for line in (ROOT / name).read_text().splitlines() if not line.startswith(("#", "-r"))]
    return {
        canonicalize_name(package): version for package, _, version in (line.partition("==") for line in requirements)
    }


def declared(group: str | None = None) -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    groups = {**project["dependency-groups"], **project["project"]["optional-dependencies"]}
    return [Requirement(text) for text in (groups[group] if group else project["project"]["dependencies"])]


def needed_by(requirements: list[Requirement]) -> set[str]:
    """Returns the names of all installed packages that these requirements bring with them here."""
    names: set[str] = set()
    waiting = [(requirement.name, extra) for requirement in requirements for extra in ("", *requirement.extras)]
    done: set[tuple[str, str]] = set()
    while waiting:
        name, extra = waiting.pop()
        name = canonicalize_name(name)
        if name.startswith(PLATFORM_PACKAGES) or (name, extra) in done:
            continue
        done.add((name, extra))
        names.add(name)
        for child in map(Requirement, importlib.metadata.requires(name) or []):
            if child.marker is None or child.marker.evaluate({"extra": extra}):
                waiting += [(child.name, wanted) for wanted in ("", *child.extras)]
    return names


class TestCompose:
    def test_the_gpu_service_reserves_one_nvidia_gpu_with_the_mandatory_capability(self) -> None:
        (device,) = compose_service("img2img")["deploy"]["resources"]["reservations"]["devices"]
        assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
        assert compose_service("img2img")["environment"]["NVIDIA_DRIVER_CAPABILITIES"] == "compute,utility"

    def test_gpu_service_names_cuda_unless_told_otherwise(self) -> None:
        assert compose_service("img2img")["environment"]["IMG2IMG_DEVICES"] == "${IMG2IMG_DEVICES:-cuda}"
        assert Settings(devices="cuda").devices == "cuda"

    def test_the_cpu_service_serves_the_embedded_model_and_asks_for_no_gpu(self) -> None:
        service = compose_service("img2img-cpu")
        assert "deploy" not in service
        assert "gpus" not in service
        assert service["environment"]["IMG2IMG_MODEL"] == "embedded"
        assert service["environment"]["IMG2IMG_DEVICES"] == "cpu"

    def test_one_profile_at_a_time_and_the_gpu_by_default(self) -> None:
        assert compose_service("img2img")["profiles"] == ["gpu"]
        assert compose_service("img2img-cpu")["profiles"] == ["cpu"]
        assert "COMPOSE_PROFILES=gpu" in (ROOT / ".env").read_text().splitlines()

    @pytest.mark.parametrize("name", ["img2img", "img2img-cpu"])
    def test_a_container_may_do_no_more_than_it_must(self, name: str) -> None:
        service = compose_service(name)
        assert service["user"] == "10001:10001"
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["ulimits"] == {"core": 0}
        assert service["pids_limit"] > 0
        assert service["mem_limit"]
        assert not {"privileged", "cap_add", "network_mode", "pid"} & set(service)

    @pytest.mark.parametrize("name", ["img2img", "img2img-cpu"])
    def test_only_this_host_reaches_the_port_unless_told_otherwise(self, name: str) -> None:
        assert compose_service(name)["ports"] == ["${HOST_ADDRESS:-127.0.0.1}:${HOST_PORT:-8000}:8000"]

    @pytest.mark.parametrize("name", ["img2img", "img2img-cpu"])
    def test_weights_are_kept_in_a_named_volume_and_keys_come_from_a_folder(self, name: str) -> None:
        assert compose_service(name)["volumes"] == ["models:/data", "${KEYS_FOLDER:-keys}:/keys:ro"]
        assert set(yaml.safe_load((ROOT / "docker-compose.yml").read_text())["volumes"]) >= {"models", "keys"}

    @pytest.mark.parametrize("name", ["img2img", "img2img-cpu"])
    def test_tmp_is_memory_and_bounded(self, name: str) -> None:
        assert compose_service(name)["tmpfs"] == ["/tmp:size=256m,mode=1777"]

    @pytest.mark.parametrize("name", ["img2img", "img2img-cpu"])
    def test_health_is_asked_of_the_command_line_and_waits_for_the_first_download(self, name: str) -> None:
        check = compose_service(name)["healthcheck"]
        assert check["test"] == ["CMD", "img2img", "health"]
        assert check["retries"] == 3
        assert seconds(check["timeout"]) < seconds(check["interval"])
        assert seconds(check["start_period"]) >= 1800

    @pytest.mark.parametrize("name", ["img2img", "img2img-cpu"])
    def test_running_requests_may_finish_before_docker_kills_the_container(self, name: str) -> None:
        service = compose_service(name)
        drain = float(service["environment"]["IMG2IMG_DRAIN_SECONDS"])
        assert drain == Settings.model_fields["drain_seconds"].default
        assert seconds(service["stop_grace_period"]) >= drain + 10

    @pytest.mark.parametrize("name", ["img2img", "img2img-cpu"])
    def test_a_service_that_ended_is_restarted_and_its_children_are_reaped(self, name: str) -> None:
        service = compose_service(name)
        assert service["restart"] == "unless-stopped"
        assert service["init"] is True

    @pytest.mark.parametrize("name", ["img2img", "img2img-cpu"])
    def test_every_setting_can_be_given_from_outside_and_none_is_unknown(self, name: str) -> None:
        given = {variable for variable in compose_service(name)["environment"] if variable.startswith("IMG2IMG_")}
        assert given == VARIABLES - FIXED_BY_THE_IMAGE

    @pytest.mark.parametrize("command", [["docker-compose"], ["docker", "compose"]], ids=" ".join)
    def test_docker_compose_reads_the_file_as_it_is_meant(self, command: list[str]) -> None:
        if not shutil.which(command[0]) or subprocess.run([*command, "version"], capture_output=True).returncode:
            pytest.skip(f"`{' '.join(command)}` is not installed")
        on_gpu, on_cpu = resolved(command, "gpu")["img2img"], resolved(command, "cpu")["img2img-cpu"]
        (device,) = on_gpu["deploy"]["resources"]["reservations"]["devices"]
        assert (device["driver"], device["count"], device["capabilities"]) == ("nvidia", 1, ["gpu"])
        assert on_gpu["environment"]["NVIDIA_DRIVER_CAPABILITIES"] == "compute,utility"
        assert on_gpu["environment"]["IMG2IMG_DEVICES"] == "cuda"
        for service in (on_gpu, on_cpu):
            assert (service["user"], service["read_only"], service["cap_drop"]) == ("10001:10001", True, ["ALL"])
            assert service["healthcheck"]["test"] == ["CMD", "img2img", "health"]
            assert service["environment"]["IMG2IMG_DRAIN_SECONDS"] == "30"


def resolved(command: list[str], profile: str) -> dict[str, Any]:
    """The services of a profile, as Compose understands the file."""
    environment = {**os.environ, "COMPOSE_PROFILES": profile}
    checked = subprocess.run([*command, "config"], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
    services: dict[str, Any] = yaml.safe_load(checked.stdout)["services"]
    return services


class TestDockerfile:
    def test_the_base_image_is_python_3_11_slim_and_can_be_replaced(self) -> None:
        assert instructions("", "ARG") == ["PYTHON_IMAGE=python:3.11-slim-bookworm"]
        for stage in set(dockerfile()) - {""}:
            assert instructions(stage, "FROM") == ["${PYTHON_IMAGE}"]

    def test_no_image_but_the_base_is_pulled(self) -> None:
        text = (ROOT / "Dockerfile").read_text()
        assert "syntax=" not in text
        assert all(source in dockerfile() for source in re.findall(r"--from=(\S+)", text))

    def test_the_default_target_is_the_one_that_compose_builds(self) -> None:
        assert list(dockerfile())[-1] == compose_service("img2img")["build"]["target"] == "runtime"

    @pytest.mark.parametrize("stage", ["runtime", "with-weights"])
    def test_the_image_runs_the_service_as_nobody_special(self, stage: str) -> None:
        assert instructions(stage, "USER")[-1] == compose_service("img2img")["user"]
        assert instructions(stage, "ENTRYPOINT") == ['["img2img"]']
        assert instructions(stage, "CMD") == ['["serve"]']
        assert instructions(stage, "STOPSIGNAL") == ["SIGTERM"]
        assert instructions(stage, "EXPOSE") == ["8000"]
        assert instructions(stage, "VOLUME") == ['["/data"]']

    def test_the_image_is_healthy_on_the_same_terms_as_the_compose_service(self) -> None:
        check = compose_service("img2img")["healthcheck"]
        (line,) = instructions("runtime", "HEALTHCHECK")
        options, _, command = line.partition(" CMD ")
        assert ast.literal_eval(command) == check["test"][1:]
        assert dict(option.removeprefix("--").split("=") for option in options.split()) == {
            key.replace("_", "-"): str(value) for key, value in check.items() if key != "test"
        }

    @pytest.mark.parametrize("stage", ["runtime", "with-weights"])
    def test_the_application_is_the_last_layer_and_copied_from_another_stage(self, stage: str) -> None:
        layers = [(word, rest) for word, rest in dockerfile()[stage] if word in {"RUN", "COPY", "ADD"}]
        assert layers[-1] == ("COPY", "--from=application /opt/app/ /opt/venv/")
        assert all(rest.startswith("--from=") for word, rest in layers if word == "COPY")
        # Nothing is installed in it, but for the compiler that one may ask for.
        assert not any(word == "ADD" or "pip" in rest for word, rest in layers)
        assert [rest.startswith('if [ -n "$COMPILER" ]') for word, rest in layers if "apt" in rest] == [True]

    def test_a_change_of_the_application_leaves_the_dependencies_as_they_are(self) -> None:
        assert instructions("dependencies", "COPY") == ["requirements.lock /tmp/", "requirements-c2pa.lock /tmp/"]

    @pytest.mark.parametrize("stage", ["runtime", "with-weights"])
    def test_image_requires_a_driver_for_the_cuda_of_torch(self, stage: str) -> None:
        assert 'NVIDIA_REQUIRE_CUDA="cuda>=13.0"' in instructions(stage, "ENV")

    def test_every_variable_set_in_the_image_is_a_setting(self) -> None:
        used = set(re.findall(r"\bIMG2IMG_\w+", (ROOT / "Dockerfile").read_text()))
        assert "IMG2IMG_HOST" in used
        assert used <= VARIABLES

    def test_weights_go_to_the_volume_unless_they_are_baked_in(self) -> None:
        assert "HF_HOME=/data/hf" in " ".join(instructions("runtime", "ENV"))
        assert "HF_HOME=/opt/hf" in instructions("with-weights", "ENV")[-1]
        assert not any("/opt/hf" in rest for _, rest in dockerfile()["runtime"])

    def test_the_build_is_sent_what_the_image_is_made_of_and_nothing_else(self) -> None:
        lines = (ROOT / ".dockerignore").read_text().splitlines()
        assert "*" in lines
        sent = {line[1:] for line in lines if line.startswith("!")}
        copied = [rest for stage in dockerfile() for rest in instructions(stage, "COPY") if "--from" not in rest]
        assert sent == {source for rest in copied for source in rest.split()[:-1]}


class TestLockFiles:
    @pytest.mark.parametrize("name", LOCK_FILES)
    def test_a_lock_file_is_exact_pins_and_names_no_index(self, name: str) -> None:
        lines = [line for line in (ROOT / name).read_text().splitlines() if not line.startswith("#")]
        if name == "requirements-dev.lock":
            assert [lines.pop(0), lines.pop(0)] == ["-r requirements.lock", "-r requirements-c2pa.lock"]
        assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9a-z.]*", line)] == []

    def test_torch_is_the_release_that_bit_equality_was_tested_with_and_of_no_one_platform(self) -> None:
        assert pins("requirements.lock")["torch"] == "2.13.0"
        assert not [name for name in pins("requirements.lock") if name.startswith(PLATFORM_PACKAGES)]

    def test_every_declared_dependency_is_pinned_within_its_bounds(self) -> None:
        pinned: dict[str, str] = {}
        for name, group in zip(LOCK_FILES, (None, "c2pa", "dev"), strict=True):
            pinned |= pins(name)
            for requirement in declared(group):
                assert pinned[canonicalize_name(requirement.name)] in requirement.specifier

    def test_everything_that_a_dependency_brings_with_it_is_pinned_too(self) -> None:
        pinned: set[str] = set()
        for name, group in zip(LOCK_FILES, (None, "c2pa", "dev"), strict=True):
            pinned |= set(pins(name))
            assert needed_by(declared(group)) - pinned == set()

    def test_the_image_gets_nothing_that_only_the_tests_need(self) -> None:
        assert {"pytest", "mypy", "ruff", "coverage"} & set(pins("requirements.lock")) == set()
        pinned = [name for file in LOCK_FILES for name in pins(file)]
        assert len(pinned) == len(set(pinned))


class TestScripts:
    @pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
    def test_a_script_can_be_run_and_says_what_it_is(self, path: Path) -> None:
        first, second, *_ = path.read_text().splitlines()
        assert path.stat().st_mode & stat.S_IXUSR
        assert first.startswith("#!")
        assert second.startswith(("# ", '"""'))

    @pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
    def test_a_script_has_no_syntax_error(self, path: Path) -> None:
        interpreter = path.read_text().splitlines()[0].rpartition("/")[2].removeprefix("env ")
        if interpreter.startswith("python"):
            ast.parse(path.read_text())
        else:
            checked = subprocess.run([interpreter, "-n", str(path)], capture_output=True, text=True)
            assert (checked.returncode, checked.stderr) == (0, "")

    @pytest.mark.parametrize(
        "name", ["setup", "lock", "test", "check", "fix", "test-container", "container/base-image"]
    )
    def test_help_is_shown_at_once_and_from_any_directory(self, name: str, tmp_path: Path) -> None:
        shown = subprocess.run(
            [ROOT / "scripts" / name, "--help"], cwd=tmp_path, env={"PATH": os.defpath}, capture_output=True, text=True
        )
        assert shown.returncode == 0
        assert shown.stdout.strip()
        assert shown.stderr == ""

    def test_setup_installs_what_is_asked_for_once_and_again_when_a_lock_file_has_changed(self, tmp_path: Path) -> None:
        (tmp_path / "scripts").mkdir()
        for name in ("scripts/setup", *LOCK_FILES, "pyproject.toml"):
            shutil.copy(ROOT / name, tmp_path / name)
        python = tmp_path / "python"
        python.write_text(RECORDING_PYTHON)
        python.chmod(0o755)

        def installed(*option: str) -> list[str]:
            (tmp_path / "said").write_text("")
            env = {"PATH": os.defpath, "PYTHON": str(python)}
            subprocess.run([tmp_path / "scripts/setup", *option], env=env, capture_output=True, check=True)
            return [words.rpartition(" ")[2] for words in (tmp_path / "said").read_text().splitlines()]

        assert installed("--runtime") == ["requirements.lock", "."]
        assert installed("--runtime") == []
        assert installed() == ["requirements-dev.lock", "."]
        assert installed() == installed("--runtime") == []
        with (tmp_path / "requirements-dev.lock").open("a") as lock:
            lock.write("one-more==1\n")
        assert installed("--runtime") == []
        assert installed() == ["requirements-dev.lock", "."]
        with (tmp_path / "requirements.lock").open("a") as lock:
            lock.write("one-more==1\n")
        assert installed("--runtime") == ["requirements.lock", "."]
        assert installed() == ["requirements-dev.lock", "."]

    def test_setup_refuses_an_option_that_it_does_not_have(self) -> None:
        refused = subprocess.run([ROOT / "scripts/setup", "--dev"], capture_output=True, text=True)
        assert (refused.returncode, refused.stdout) == (2, "")
        assert "there is no option --dev" in refused.stderr

    def test_setup_refuses_a_python_that_is_not_there_with_a_sentence(self, tmp_path: Path) -> None:
        (tmp_path / "scripts").mkdir()
        for name in ("scripts/setup", *LOCK_FILES, "pyproject.toml"):
            shutil.copy(ROOT / name, tmp_path / name)
        env = {"PATH": os.defpath, "PYTHON": "no-such-python"}
        refused = subprocess.run([tmp_path / "scripts/setup"], env=env, capture_output=True, text=True)
        assert refused.returncode == 1
        assert "no-such-python is not Python 3.11 or newer" in refused.stderr
        assert not (tmp_path / ".venv").exists()
