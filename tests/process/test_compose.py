"""The compose file as Compose reads it."""

import os
import re
import shutil
import subprocess
from typing import Any

import pytest
import yaml

from app.settings import Settings
from tests.support.paths import ROOT

VARIABLES = {f"IMG2IMG_{name.upper()}" for name in Settings.model_fields}


FIXED_BY_THE_IMAGE = {"IMG2IMG_HOST", "IMG2IMG_PORT", "IMG2IMG_HUB_CACHE", "IMG2IMG_COMPILE_CACHE"}


def compose_service(name: str) -> dict[str, Any]:
    services: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    service: dict[str, Any] = services[name]
    return service


@pytest.fixture(params=[["docker-compose"], ["docker", "compose"]], ids=" ".join)
def compose(request: pytest.FixtureRequest) -> list[str]:
    command: list[str] = request.param
    if not shutil.which(command[0]) or subprocess.run([*command, "version"], capture_output=True).returncode:
        pytest.skip(f"`{' '.join(command)}` is not installed")
    return command


def config(compose: list[str], *arguments: str, profiles: str | None = None, **variables: str) -> str:
    """What Compose makes of the file with these profiles; by default with those of the file .env."""
    environment = {name: value for name, value in os.environ.items() if name != "COMPOSE_PROFILES"} | variables
    if profiles is not None:
        environment["COMPOSE_PROFILES"] = profiles
    done = subprocess.run(
        [*compose, "config", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def resolved(compose: list[str], name: str, profile: str, **variables: str) -> dict[str, Any]:
    """A service as Compose understands it."""
    service: dict[str, Any] = yaml.safe_load(config(compose, profiles=profile, **variables))["services"][name]
    return service


def seconds(duration: str) -> int:
    """Of a duration as Compose prints it, such as 45s or 30m0s."""
    units = {"h": 3600, "m": 60, "s": 1}
    return sum(int(number) * units[unit] for number, unit in re.findall(r"(\d+)([hms])", duration))


class TestCompose:
    """What does not need a container. `tests/container` starts the `cpu` service, and sees what it may do."""

    def test_gpu_service_asks_for_cuda_by_default(self, compose: list[str]) -> None:
        assert resolved(compose, "img2img", "gpu")["environment"]["IMG2IMG_DEVICES"] == "cuda"

    def test_number_of_gpus_is_a_variable(self, compose: list[str]) -> None:
        service = resolved(compose, "img2img", "gpu", GPU_COUNT="2")
        (device,) = service["deploy"]["resources"]["reservations"]["devices"]
        assert str(device["count"]) == "2"

    def test_build_of_torch_is_chosen_by_variables(self, compose: list[str]) -> None:
        chosen = resolved(compose, "img2img", "gpu", TORCH_INDEX_URL="https://example.org/cu126", CUDA="12")
        arguments = chosen["build"]["args"]
        assert (arguments["TORCH_INDEX_URL"], arguments["CUDA"]) == ("https://example.org/cu126", "12")
        arguments = resolved(compose, "img2img", "gpu")["build"]["args"]
        assert (arguments["TORCH_INDEX_URL"], arguments["CUDA"]) == ("", "13")

    @pytest.mark.parametrize("profiles", ["gpu", "cpu", "gpu,edge,observability"])
    def test_compose_file_is_valid_with_each_set_of_profiles(self, compose: list[str], profiles: str) -> None:
        config(compose, "--quiet", profiles=profiles)

    def test_gpu_service_differs_from_cpu_service_in_model_and_device_only(self, compose: list[str]) -> None:
        on_gpu, on_cpu = resolved(compose, "img2img", "gpu"), resolved(compose, "img2img-cpu", "cpu")
        (device,) = on_gpu.pop("deploy")["resources"]["reservations"]["devices"]
        assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])
        # Compose 2 writes -1. docker-compose 1.29 fails for a text other than this, as which it takes any variable.
        assert device["count"] in ("all", -1)
        environments = [{**service.pop("environment")} for service in (on_gpu, on_cpu)]
        assert environments[0].pop("NVIDIA_DRIVER_CAPABILITIES") == "compute,utility"
        for environment in environments:
            del environment["IMG2IMG_MODEL"], environment["IMG2IMG_DEVICES"]
        assert environments[0] == environments[1]
        assert (on_gpu.pop("profiles"), on_cpu.pop("profiles")) == (["gpu"], ["cpu"])
        assert on_gpu == on_cpu

    def test_default_profile_is_that_of_the_gpu_service(self) -> None:
        lines = (ROOT / ".env").read_text().splitlines()
        chosen = [line.partition("=")[2] for line in lines if line.startswith("COMPOSE_PROFILES=")]
        assert chosen == compose_service("img2img")["profiles"]

    def test_health_check_waits_for_the_first_download(self, compose: list[str]) -> None:
        check = resolved(compose, "img2img", "gpu")["healthcheck"]
        assert seconds(check["timeout"]) < seconds(check["interval"])
        assert seconds(check["start_period"]) >= 1800

    def test_stop_grace_period_exceeds_the_time_for_running_requests(self, compose: list[str]) -> None:
        service = resolved(compose, "img2img", "gpu")
        drain = float(service["environment"]["IMG2IMG_DRAIN_SECONDS"])
        assert drain == Settings.model_fields["drain_seconds"].default
        assert seconds(service["stop_grace_period"]) >= drain + 10

    @pytest.mark.parametrize("name", ["img2img", "img2img-cpu"])
    def test_every_setting_can_be_given_from_outside_and_none_is_unknown(self, name: str) -> None:
        given = {variable for variable in compose_service(name)["environment"] if variable.startswith("IMG2IMG_")}
        assert given == VARIABLES - FIXED_BY_THE_IMAGE
