"""The commands serve, health and download."""

import json
import logging
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from app.cli.console import own_url
from app.model.hub import PINS
from app.model.sources import EMBEDDED, FP16_VAE
from app.settings import Settings
from tests.support.canned import Answer, canned
from tests.support.cli import run_cli
from tests.support.http import free_port


class TestServe:
    def test_each_invalid_setting_is_reported_in_a_sentence(self) -> None:
        environment = {"IMG2IMG_MAX_BATCH": "0", "IMG2IMG_DEVICES": "gpu", "IMG2IMG_PORT": "1"}
        result = run_cli("serve", "--port", "77777", "--log-level", "loud", env=environment)
        assert result.exit_code == 2
        assert sorted(result.stderr.split("\n")) == [
            "",
            "img2img: --log-level cannot be 'loud': input should be 'debug', 'info', 'warning' or 'error'.",
            "img2img: --port cannot be '77777': input should be less than or equal to 65535.",
            "img2img: IMG2IMG_DEVICES cannot be 'gpu': give `auto` (the first CUDA device, or the CPU where "
            "there is no GPU) or a list like `cuda:0,cuda:1`: one worker for each.",
            "img2img: IMG2IMG_MAX_BATCH cannot be '0': give `auto` (1, 2 or 4, measured at start; 1 for a large model "
            "on the CPU) or a number from 1 to 64: the jobs on a device that share a UNet call.",
        ]

    @pytest.mark.parametrize(
        ("variables", "said"),
        [
            ({"PORT": "abc"}, "PORT cannot be 'abc': input should be a valid integer"),
            ({"AIP_HTTP_PORT": "0x1", "PORT": "abc"}, "AIP_HTTP_PORT cannot be '0x1': "),
            ({"AIP_HEALTH_ROUTE": "x"}, "AIP_HEALTH_ROUTE cannot be 'x': give One more path, like `/healthz`, that"),
            ({"IMG2IMG_PREDICT_ROUTE": "x"}, "IMG2IMG_PREDICT_ROUTE cannot be 'x': give A path, like `/predict`, that"),
            ({"IMG2IMG_DEVICES": "cuda,cuda:0"}, "IMG2IMG_DEVICES cannot be 'cuda,cuda:0': must name each GPU once"),
            ({"IMG2IMG_TICK_TIMEOUT_SECONDS": "1e-9"}, "IMG2IMG_TICK_TIMEOUT_SECONDS cannot be '1e-9': input should"),
        ],
    )
    def test_error_names_the_variable_that_is_set(self, variables: dict[str, str], said: str) -> None:
        result = run_cli("serve", env=variables)
        assert result.exit_code == 2
        assert result.stderr.startswith(f"img2img: {said}")

    def test_serve_listens_on_its_address_and_stops_while_loading(self) -> None:
        port = str(free_port())
        command = [sys.executable, "-m", "app", "serve", "--host", "127.0.0.1", "--port", port, "--device", "cpu"]
        with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
            try:
                while "still loading" not in (reason := run_cli("health", env={"PORT": port}).stderr):
                    assert "No service answers" in reason
                    assert process.poll() is None
                    time.sleep(0.05)
            finally:
                process.send_signal(signal.SIGTERM)
                _, log = process.communicate(timeout=60)
        assert process.returncode == 0, log.decode()


class TestHealth:
    def test_health_finds_a_ready_service_by_its_settings(self, server: str) -> None:
        environment = {"IMG2IMG_PORT": server.rpartition(":")[2], "IMG2IMG_HOST": "0.0.0.0"}
        result = run_cli("health", env=environment)
        assert (result.exit_code, result.stdout, result.stderr) == (0, "", "Ready: fake on cpu.\n")

    def test_health_fails_while_the_service_loads(
        self, start_server: Callable[..., AbstractContextManager[str]]
    ) -> None:
        with start_server(model="slow", wait=False) as url:
            result = run_cli("health", "--url", url)
        assert result.exit_code == 1
        assert result.stderr == f"img2img: The service at {url} is still loading its model, or another worker.\n"

    def test_health_fails_without_a_service(self) -> None:
        result = run_cli("health", env={"PORT": str(free_port())})
        assert result.exit_code == 1
        assert len(result.stderr.strip().split("\n")) == 1

    def test_health_fails_for_another_program(self) -> None:
        with canned(Answer(200, b'{"status": "ready"}')) as server:
            result = run_cli("health", "--url", server.url)
        assert (result.exit_code, result.stdout) == (1, "")
        assert "another program" in result.stderr

    def test_health_of_an_invalid_url_is_wrong_usage(self) -> None:
        assert run_cli("health", "--url", "localhost").exit_code == 2

    @pytest.mark.parametrize(
        ("host", "url"),
        [
            ("0.0.0.0", "http://127.0.0.1:8000"),
            ("127.0.0.2", "http://127.0.0.2:8000"),
            ("::", "http://[::1]:8000"),
            ("fd00::1", "http://[fd00::1]:8000"),
            ("localhost", "http://localhost:8000"),
        ],
    )
    def test_health_asks_on_loopback_for_a_service_on_all_addresses(self, host: str, url: str) -> None:
        assert own_url(Settings(host=host)) == url


class TestDownload:
    REVISION = "0123456789abcdef0123456789abcdef01234567"

    @pytest.fixture(autouse=True)
    def same_log_afterwards(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(logging.root, "handlers", [])

    @pytest.fixture
    def cache(self, tmp_path: Path) -> Path:
        """A hub cache that holds SDXL's files, all of them empty but for the VAE's config, and the better VAE's."""
        vae = "diffusion_pytorch_model.safetensors"
        model = ["model_index.json", "scheduler/scheduler_config.json", "unet/config.json", f"unet/{vae}"]
        for number in ("", "_2"):
            model += [f"tokenizer{number}/tokenizer.json", f"text_encoder{number}/config.json"]
            model += [f"text_encoder{number}/model.safetensors"]
        self.snapshot(tmp_path, "owner/name", self.REVISION, model)
        config = {"scaling_factor": 0.13025, "block_out_channels": [128, 256, 512, 512]}
        folder = self.snapshot(tmp_path, "owner/name", self.REVISION, ["vae/config.json"])
        (folder / "vae/config.json").write_text(json.dumps(config))
        (folder / "model_index.json").write_text('{"scheduler": ["diffusers", "EulerDiscreteScheduler"]}')
        self.snapshot(tmp_path, FP16_VAE, PINS[FP16_VAE], ["config.json", vae])
        return tmp_path

    @staticmethod
    def snapshot(cache: Path, hub_id: str, revision: str, names: list[str]) -> Path:
        folder = cache / f"models--{hub_id.replace('/', '--')}" / "snapshots" / revision
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).touch()
        return folder

    def test_download_fetches_the_cuda_weights_and_prints_the_folder(self, cache: Path) -> None:
        environment = {"IMG2IMG_HUB_CACHE": str(cache), "IMG2IMG_OFFLINE": "true"}
        model = f"owner/name@{self.REVISION}"
        folder = str(cache / "models--owner--name/snapshots" / self.REVISION)
        assert run_cli("download", "--model", model, env=environment).stdout == f"{folder}\n"
        facts = json.loads(run_cli("download", "--model", model, "--json", env=environment).stdout)
        assert facts == {
            "folder": folder,
            "vae_folder": str(cache / "models--madebyollin--sdxl-vae-fp16-fix/snapshots" / PINS[FP16_VAE]),
            "model": "owner/name",
            "revision": self.REVISION,
            "vae": FP16_VAE,
        }

    @pytest.mark.parametrize("arguments", [["--model", "embedded"], ["--model", str(EMBEDDED)], []])
    def test_download_of_a_local_model_fetches_nothing(self, arguments: list[str]) -> None:
        result = run_cli("download", *arguments, env={"IMG2IMG_DEVICES": "cpu"})
        assert (result.exit_code, result.stdout) == (0, f"{EMBEDDED}\n")
        assert "there is nothing to download" in result.stderr

    def test_download_of_an_unknown_model_is_reported(self) -> None:
        result = run_cli("download", "--model", "nope")
        assert (result.exit_code, result.stdout) == (1, "")
        assert "img2img: IMG2IMG_MODEL=nope is not a folder" in result.stderr
