import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app import __version__
from app.pixels import Fit, OutputFormat
from tests.support.canned import FASTAPI, PICTURE, Answer, canned, events, in_events
from tests.support.cli import run_cli
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


def run_program(*arguments: str, **options: Any) -> "subprocess.CompletedProcess[bytes]":
    command = [sys.executable, "-m", "app", *arguments]
    return subprocess.run(command, capture_output=True, check=False, **options)


def words(text: str) -> str:
    """Help without the frames and line breaks that rich draws around it."""
    return re.sub(r"[\s│]+", " ", text)


def test_version_is_shown() -> None:
    done = run_program("--version")
    assert (done.returncode, done.stdout) == (0, f"{__version__}\n".encode())


def test_import_of_the_program_runs_nothing() -> None:
    done = subprocess.run([sys.executable, "-c", "import app.__main__"], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_help_lists_commands_and_exit_codes() -> None:
    text = words(run_cli("--help").output)
    for command in ("serve", "edit", "download", "health", "doctor"):
        assert f" {command} " in text
    assert (
        "Exit status: 0 done, 1 failed or not ready, 2 wrong usage or settings, 65 image or parameter refused, "
        "69 service unavailable, 70 internal error."
    ) in text


def test_choices_of_edit_are_those_of_the_service() -> None:
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
    def test_result_is_written_to_the_named_file_or_folder(self, edit: RunEdit, folder: Path) -> None:
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
    def test_default_file_name_has_the_seed_and_overwrites_no_file(
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
    def test_format_is_the_requested_one_or_that_of_the_file_name(
        self, edit: RunEdit, folder: Path, arguments: list[str], name: str, expected: str
    ) -> None:
        assert edit(*arguments).exit_code == 0
        assert opened((folder / name).read_bytes()).format == expected

    def test_each_option_reaches_the_service(self, folder: Path, server: str) -> None:
        options = "--negative-prompt y --steps 10 --strength 0.5 --guidance-scale 2 --seed 7 --fit pad --format webp"
        result = run_cli("edit", "in.png", "--prompt", "x", "--url", server, "--json", *options.split())
        facts = json.loads(result.stdout)
        assert facts["path"] == "in-7.webp"
        assert (facts["seed"], facts["steps_run"], facts["media_type"]) == (7, 5, "image/webp")
        assert facts["seconds"]["denoise"] == pytest.approx(0.003)
        assert set(facts) == {
            *("path", "media_type", "seed", "steps_run", "start_timestep", "tokens_cut", "request_id", "seconds"),
        }

    def test_edit_reads_and_writes_pipes(self, server: str, png: bytes) -> None:
        done = run_program("edit", "-", "-p", "x", "-o", "-", "--url", server, input=png)
        assert done.returncode == 0
        assert opened(done.stdout).format == "PNG"
        assert b"Standard output: seed " in done.stderr

    def test_image_from_a_pipe_gets_a_file_name(self, folder: Path, server: str, png: bytes) -> None:
        result = run_cli("edit", "-", "-p", "x", "--seed", "5", "--url", server, input=png)
        assert (result.exit_code, opened((folder / "img2img-5.png").read_bytes()).format) == (0, "PNG")

    def test_summary_of_a_single_step_has_no_plural(self, edit: RunEdit) -> None:
        assert ": seed 5, 1 step, " in edit("--steps", "1", "--strength", "1").stderr

    def test_edit_reports_a_prompt_that_was_cut(self, edit: RunEdit) -> None:
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
    def test_wrong_usage_is_reported_before_any_work(
        self, edit: RunEdit, folder: Path, arguments: list[str], sentence: str
    ) -> None:
        result = edit(*(argument.replace("{name}", folder.name) for argument in arguments))
        assert (result.exit_code, result.stdout) == (2, "")
        assert sentence in result.stderr
        assert [path.name for path in folder.iterdir()] == ["in.png"]

    @pytest.mark.parametrize("output", ["out.png", "here.png"])
    def test_missing_input_file_is_reported(self, folder: Path, output: str) -> None:
        (folder / "here.png").touch()
        result = run_cli("edit", "missing.png", "-p", "x", "-o", output)
        assert result.exit_code == 2
        assert "missing.png cannot be read: No such file or directory." in result.stderr

    def test_full_disk_is_reported(self, edit: RunEdit) -> None:
        result = edit("-o", "/dev/full", "--format", "png")
        assert result.exit_code == 1
        assert "The image cannot be saved: [Errno 28]" in result.stderr

    def test_edit_neither_reads_nor_writes_a_terminal(self, tmp_path: Path, server: str) -> None:
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

    def test_progress_is_a_bar_on_a_terminal_and_lines_in_a_pipe(
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
    def test_exit_code_tells_refusal_from_failure(
        self, edit: RunEdit, arguments: list[str], code: int, sentence: str
    ) -> None:
        result = edit(*arguments)
        assert (result.exit_code, result.stdout) == (code, "")
        assert sentence in result.stderr

    def test_busy_or_missing_service_exits_as_unavailable(self, edit: RunEdit) -> None:
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
    def test_another_program_is_reported_in_one_sentence(
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
    def test_url_of_the_service_comes_from_the_environment(self, folder: Path, server: str, variable: str) -> None:
        value = server if variable == "IMG2IMG_URL" else server.rpartition(":")[2]
        assert run_cli("edit", "in.png", "-p", "x", env={variable: value}).exit_code == 0
