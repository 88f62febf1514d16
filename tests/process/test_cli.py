import json
import logging
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from app import __version__
from app.cli import app
from app.cli.console import own_url
from app.model.checkpoint import EMBEDDED, FP16_VAE
from app.model.hub import PINS
from app.pixels import Fit, OutputFormat
from app.settings import Settings
from tests.support.canned import FASTAPI, PICTURE, Answer, canned, events, in_events
from tests.support.http import free_port
from tests.support.images import opened

RunEdit = Callable[..., Any]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, png: bytes) -> Path:
    """The current directory, with a picture in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.png").write_bytes(png)
    return tmp_path


@pytest.fixture
def edit(folder: Path, server: str) -> RunEdit:
    def run(*arguments: str, **options: Any) -> Any:
        return run_cli("edit", "in.png", "-p", "x", "--seed", "5", "--url", server, *arguments, **options)

    return run


def run_cli(*arguments: str, **options: Any) -> Any:
    return CliRunner().invoke(app.app, arguments, **options)


def run_program(*arguments: str, **options: Any) -> "subprocess.CompletedProcess[bytes]":
    command = [sys.executable, "-m", "app", *arguments]
    return subprocess.run(command, capture_output=True, check=False, **options)


def words(text: str) -> str:
    """Help without the frames and line breaks that rich draws around it."""
    return re.sub(r"[\s│]+", " ", text)


def test_the_version_is_shown() -> None:
    done = run_program("--version")
    assert (done.returncode, done.stdout) == (0, f"{__version__}\n".encode())


def test_importing_the_program_runs_nothing() -> None:
    done = subprocess.run([sys.executable, "-c", "import app.__main__"], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_the_help_lists_the_commands_and_the_exit_codes() -> None:
    text = words(run_cli("--help").output)
    for command in ("serve", "edit", "download", "health", "doctor"):
        assert f" {command} " in text
    assert (
        "Exit status: 0 done, 1 failed or not ready, 2 wrong usage or settings, 65 image or parameter refused, "
        "69 service unavailable, 70 internal error."
    ) in text


def test_the_choices_of_edit_are_those_of_the_service() -> None:
    text = words(run_cli("edit", "--help", env={"COLUMNS": "200"}).output)
    assert f"<{'|'.join(Fit)}>" in text
    assert f"<{'|'.join(OutputFormat)}>" in text


def test_help_and_health_load_no_model_library_and_no_web_framework(server: str) -> None:
    port = server.rpartition(":")[2]
    for arguments, environment in ((["--help"], {}), (["health"], {"IMG2IMG_PORT": port})):
        command = [sys.executable, "-X", "importtime", "-m", "app", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, check=True)
        loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.split("\n")}
        assert "typer" in loaded
        assert not loaded & {"torch", "diffusers", "transformers", "fastapi", "starlette", "PIL"}


class TestEdit:
    def test_the_picture_goes_where_it_is_said_to_go(self, edit: RunEdit, folder: Path) -> None:
        result = edit("-o", "out.png")
        assert (result.exit_code, result.stdout) == (0, "")
        assert result.stderr.endswith("s\n")
        assert "out.png: seed 5, 3 steps, " in result.stderr
        assert opened((folder / "out.png").read_bytes()).size == (512, 512)

    @pytest.mark.parametrize(
        ("arguments", "names"),
        [
            ([], ["in-5.png", "in-5-2.png", "in-5-3.png"]),
            (["-o", "pictures"], ["pictures/in-5.png", "pictures/in-5-2.png", "pictures/in-5-3.png"]),
            (["--format", "webp"], ["in-5.webp", "in-5-2.webp", "in-5-3.webp"]),
        ],
    )
    def test_a_name_that_nobody_chose_holds_the_seed_and_takes_no_files_place(
        self, edit: RunEdit, folder: Path, arguments: list[str], names: list[str]
    ) -> None:
        (folder / "pictures").mkdir()
        for name in names:
            assert edit(*arguments).exit_code == 0
            assert opened((folder / name).read_bytes()).format in ("PNG", "WEBP")

    @pytest.mark.parametrize(
        ("arguments", "name", "expected"),
        [
            (["-o", "out.jpg"], "out.jpg", "JPEG"),
            (["-o", "out.JPEG"], "out.JPEG", "JPEG"),
            (["-o", "out.webp"], "out.webp", "WEBP"),
            (["-o", "out.picture", "--format", "jpeg"], "out.picture", "JPEG"),
            (["-o", "out.png", "--format", "webp"], "out.png", "WEBP"),
        ],
    )
    def test_the_format_is_the_one_asked_for_or_that_of_the_files_ending(
        self, edit: RunEdit, folder: Path, arguments: list[str], name: str, expected: str
    ) -> None:
        assert edit(*arguments).exit_code == 0
        assert opened((folder / name).read_bytes()).format == expected

    def test_every_option_reaches_the_service(self, folder: Path, server: str) -> None:
        options = "--negative-prompt y --steps 10 --strength 0.5 --guidance-scale 2 --seed 7 --fit pad --format webp"
        result = run_cli("edit", "in.png", "--prompt", "x", "--url", server, "--json", *options.split())
        facts = json.loads(result.stdout)
        assert facts["path"] == "in-7.webp"
        assert (facts["seed"], facts["steps_run"], facts["media_type"]) == (7, 5, "image/webp")
        assert facts["seconds"]["denoise"] == pytest.approx(0.003)
        assert set(facts) == {
            *("path", "media_type", "seed", "steps_run", "start_timestep", "tokens_cut", "request_id", "seconds"),
        }

    def test_a_pipe_may_be_read_and_written(self, server: str, png: bytes) -> None:
        done = run_program("edit", "-", "-p", "x", "-o", "-", "--url", server, input=png)
        assert done.returncode == 0
        assert opened(done.stdout).format == "PNG"
        assert b"Standard output: seed " in done.stderr

    def test_a_picture_from_a_pipe_gets_a_name_too(self, folder: Path, server: str, png: bytes) -> None:
        result = run_cli("edit", "-", "-p", "x", "--seed", "5", "--url", server, input=png)
        assert (result.exit_code, opened((folder / "img2img-5.png").read_bytes()).format) == (0, "PNG")

    def test_a_single_step_is_no_plural(self, edit: RunEdit) -> None:
        assert ": seed 5, 1 step, " in edit("--steps", "1", "--strength", "1").stderr

    def test_a_prompt_that_was_cut_is_told(self, edit: RunEdit) -> None:
        assert "The prompt's last 5 tokens have no effect" in edit("-p", "word " * 80).stderr

    @pytest.mark.parametrize(
        ("arguments", "sentence"),
        [
            (["-o", "in.png"], "in.png is the input image: name another file with -o."),
            (["-o", "../{name}/in.png"], "is the input image"),
            (["-o", "out.gif"], "out.gif has none of the extensions .png, .webp, .jpg, .jpeg: add one, or --format."),
            (["-o", "out"], "out has none of the extensions"),
            (["-o", "nowhere/out.png"], "There is no folder nowhere to save into."),
            (["-o", "-", "--json"], "--json and -o - both want standard output"),
            (["--model", "embedded"], "--model and --devices need --local"),
            (["--devices", "cpu"], "--model and --devices need --local"),
            (["--url", "localhost"], "localhost is not an http:// or https:// URL."),
        ],
    )
    def test_wrong_usage_is_told_before_any_work(
        self, edit: RunEdit, folder: Path, arguments: list[str], sentence: str
    ) -> None:
        result = edit(*(argument.replace("{name}", folder.name) for argument in arguments))
        assert (result.exit_code, result.stdout) == (2, "")
        assert sentence in result.stderr
        assert [path.name for path in folder.iterdir()] == ["in.png"]

    @pytest.mark.parametrize("output", ["out.png", "here.png"])
    def test_a_picture_that_is_not_there_cannot_be_read(self, folder: Path, output: str) -> None:
        (folder / "here.png").touch()
        result = run_cli("edit", "missing.png", "-p", "x", "-o", output)
        assert result.exit_code == 2
        assert "missing.png cannot be read: No such file or directory." in result.stderr

    def test_a_full_disk_is_told(self, edit: RunEdit) -> None:
        result = edit("-o", "/dev/full", "--format", "png")
        assert result.exit_code == 1
        assert "The image cannot be saved: [Errno 28]" in result.stderr

    def test_a_terminal_is_neither_read_nor_written(self, tmp_path: Path, server: str) -> None:
        ours, theirs = pty.openpty()
        try:
            command = [sys.executable, "-m", "app", "edit", "-p", "x", "--url", server]
            to_terminal = subprocess.run(
                [*command, str(tmp_path / "in.png"), "-o", "-"], stdout=theirs, stderr=subprocess.PIPE, check=False
            )
            from_terminal = subprocess.run([*command, "-"], stdin=theirs, stderr=subprocess.PIPE, check=False)
        finally:
            os.close(ours)
            os.close(theirs)
        assert (to_terminal.returncode, from_terminal.returncode) == (2, 2)
        assert b"A terminal cannot show an image" in to_terminal.stderr
        assert b"Standard input is a terminal" in from_terminal.stderr

    def test_a_terminal_sees_progress_and_a_pipe_a_plain_line(
        self, edit: RunEdit, server: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert edit().stderr.startswith(f"Waiting for {server} …\n")
        monkeypatch.setenv("TTY_COMPATIBLE", "1")
        seen = edit("-p", "tick=0.1").stderr
        assert "Waiting for" in seen
        assert "\x1b[" in seen

    @pytest.mark.parametrize(
        ("arguments", "code", "sentence"),
        [
            (["--strength", "0.1"], 65, "for 4 steps send a strength of at least 0.25"),
            (["-p", "finish=nan"], 70, "values that are not numbers"),
        ],
    )
    def test_the_exit_code_says_whose_fault_it_was(
        self, edit: RunEdit, arguments: list[str], code: int, sentence: str
    ) -> None:
        result = edit(*arguments)
        assert (result.exit_code, result.stdout) == (code, "")
        assert sentence in result.stderr

    def test_a_service_that_is_busy_or_not_there_is_unavailable(self, edit: RunEdit) -> None:
        with canned(Answer(503)) as server:
            assert edit("--url", server.url).exit_code == 69
        result = edit("--url", f"http://127.0.0.1:{free_port()}")
        assert result.exit_code == 69
        assert "start one with `img2img serve`" in result.stderr

    @pytest.mark.parametrize(
        ("answer", "code", "sentence"),
        [
            (Answer(422, FASTAPI), 65, "answered 422 Unprocessable"),
            (Answer(200, b"<h1>It works!</h1>"), 69, "another program"),
            (Answer(404, b'{"code": "not_found"}'), 69, "without a path"),
            (Answer(200, b"", {**PICTURE.headers, "X-Seed": "abc"}), 69, "another program"),
            (in_events(b"event: picture\ndata: no JSON\n\n"), 69, "another program"),
            (in_events(events(("waiting", {"ahead": 1}))), 69, "ended before the image"),
        ],
    )
    def test_a_server_of_another_kind_is_told_in_one_sentence(
        self, edit: RunEdit, answer: Answer, code: int, sentence: str
    ) -> None:
        with canned(answer) as server:
            result = edit("--url", server.url)
        assert (result.exit_code, result.stdout) == (code, "")
        said = result.stderr.splitlines()
        assert said[0] == f"Waiting for {server.url} …"
        assert len(said) == 2
        assert sentence in said[1]

    @pytest.mark.parametrize("variable", ["IMG2IMG_URL", "IMG2IMG_PORT"])
    def test_the_environment_says_where_the_service_is(self, folder: Path, server: str, variable: str) -> None:
        value = server if variable == "IMG2IMG_URL" else server.rpartition(":")[2]
        assert run_cli("edit", "in.png", "-p", "x", env={variable: value}).exit_code == 0


class TestServe:
    def test_every_wrong_setting_is_told_in_a_sentence(self) -> None:
        environment = {"IMG2IMG_MAX_BATCH": "0", "IMG2IMG_DEVICES": "gpu", "IMG2IMG_PORT": "1"}
        result = run_cli("serve", "--port", "77777", "--log-level", "loud", env=environment)
        assert result.exit_code == 2
        assert sorted(result.stderr.split("\n")) == [
            "",
            "img2img: --log-level cannot be 'loud': input should be 'debug', 'info', 'warning' or 'error'.",
            "img2img: --port cannot be '77777': input should be less than or equal to 65535.",
            "img2img: IMG2IMG_DEVICES cannot be 'gpu': give `auto` (the first CUDA device, or the CPU where "
            "there is no GPU) or a list like `cuda:0,cuda:1`: one worker for each.",
            "img2img: IMG2IMG_MAX_BATCH cannot be '0': give `auto` (4, but 1 for a large model on the CPU) or a "
            "number from 1 to 64: the jobs on a device that share a UNet call.",
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
    def test_the_variable_that_was_set_is_named(self, variables: dict[str, str], said: str) -> None:
        result = run_cli("serve", env=variables)
        assert result.exit_code == 2
        assert result.stderr.startswith(f"img2img: {said}")

    def test_a_service_listens_where_it_is_told_and_stops_cleanly_even_while_it_loads(self) -> None:
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
    def test_a_ready_service_is_found_by_the_servers_own_settings(self, server: str) -> None:
        environment = {"IMG2IMG_PORT": server.rpartition(":")[2], "IMG2IMG_HOST": "0.0.0.0"}
        result = run_cli("health", env=environment)
        assert (result.exit_code, result.stdout, result.stderr) == (0, "", "Ready: fake on cpu.\n")

    def test_a_service_that_loads_is_not_ready(self, start_server: Callable[..., AbstractContextManager[str]]) -> None:
        with start_server(model="slow", wait=False) as url:
            result = run_cli("health", "--url", url)
        assert result.exit_code == 1
        assert result.stderr == f"img2img: The service at {url} is still loading its model, or another worker.\n"

    def test_no_service_is_not_ready(self) -> None:
        result = run_cli("health", env={"PORT": str(free_port())})
        assert result.exit_code == 1
        assert len(result.stderr.strip().split("\n")) == 1

    def test_another_program_is_not_ready(self) -> None:
        with canned(Answer(200, b'{"status": "ready"}')) as server:
            result = run_cli("health", "--url", server.url)
        assert (result.exit_code, result.stdout) == (1, "")
        assert "another program" in result.stderr

    def test_a_url_that_is_none_is_wrong_usage(self) -> None:
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
    def test_a_server_on_all_addresses_is_asked_on_loopback(self, host: str, url: str) -> None:
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

    def test_what_a_cuda_host_loads_is_fetched_and_its_folder_printed(self, cache: Path) -> None:
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
    def test_a_model_that_is_here_needs_no_download(self, arguments: list[str]) -> None:
        result = run_cli("download", *arguments, env={"IMG2IMG_DEVICES": "cpu"})
        assert (result.exit_code, result.stdout) == (0, f"{EMBEDDED}\n")
        assert "there is nothing to download" in result.stderr

    def test_a_model_that_cannot_be_had_is_told(self) -> None:
        result = run_cli("download", "--model", "nope")
        assert (result.exit_code, result.stdout) == (1, "")
        assert "img2img: IMG2IMG_MODEL=nope is no folder here" in result.stderr
