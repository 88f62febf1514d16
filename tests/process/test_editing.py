"""`img2img edit --local`, mostly with the torch-free model."""

import logging
from typing import Any

import pytest
import typer

from app.cli.edit import edit_here
from app.client import Edited
from app.settings import Settings
from tests.support.images import opened

LOADER = "tests.support.fakes:load"


@pytest.fixture(autouse=True)
def same_log_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.root, "handlers", [])
    monkeypatch.setattr(logging.getLogger("app"), "handlers", [])


def edit(png: bytes, fields: dict[str, Any], **knobs: Any) -> Edited:
    return edit_here(png, {"prompt": "", **fields}, Settings(devices="cpu", **knobs), LOADER)


def exit_code(png: bytes, fields: dict[str, Any], **knobs: Any) -> int:
    with pytest.raises(typer.Exit) as caught:
        edit(png, fields, **knobs)
    return int(caught.value.exit_code)


def test_local_edit_makes_an_image_without_a_service(png: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    edited = edit(png, {"seed": 7, "num_inference_steps": 2, "strength": 1, "output_format": "webp"})
    assert opened(edited.data).format == "WEBP"
    assert (edited.media_type, edited.seed, edited.steps_run, edited.tokens_cut) == ("image/webp", 7, 2, 0)
    assert list(edited.seconds)[-1] == "webp"
    assert capsys.readouterr().err == "Loading the model …\nStep 1 of 2\nStep 2 of 2\n"


def test_local_edit_logs_if_the_log_level_is_set(png: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    edit(png, {}, log_level="info")
    assert "worker on cpu is ready" in capfd.readouterr().err


def test_local_edit_shows_a_bar_on_a_terminal(
    png: bytes, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    edit(png, {"prompt": "tick=0.3"})
    assert "Drawing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("upload", "fields", "code", "sentence"),
    [
        (None, {"strength": 0.1}, 65, "at least 0.25"),
        (b"no picture", {}, 65, "PNG, JPEG"),
        (None, {"prompt": "finish=nan"}, 70, "not numbers"),
    ],
)
def test_local_edit_fails_with_the_errors_of_the_service(
    png: bytes,
    capsys: pytest.CaptureFixture[str],
    upload: bytes | None,
    fields: dict[str, Any],
    code: int,
    sentence: str,
) -> None:
    assert exit_code(upload or png, fields) == code
    assert sentence in capsys.readouterr().err


def test_local_edit_reports_a_model_that_cannot_load(png: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(png, {}, model="broken") == 1
    assert capsys.readouterr().err.split("\n")[1:] == [
        "img2img: there is no such checkpoint",
        "IMG2IMG_LOG_LEVEL=info shows what led to it.",
        "",
    ]


def test_local_edit_does_not_count_loading_to_the_deadline(png: bytes) -> None:
    assert edit(png, {"seed": 1}, model="slow", deadline_seconds=0.5).seed == 1
