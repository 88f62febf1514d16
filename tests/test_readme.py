"""The README says what the code does: its tables, trees, paths and snippets are held against the real thing."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import typer
from fastapi.routing import APIRoute
from pydantic import SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from app.cli import app
from app.cli.console import ExitCode
from app.errors import ServiceError
from app.main import create_app
from app.observability.metrics import Metrics
from app.request import Img2ImgRequest, steps_run
from app.routes import DIALECTS
from app.settings import Settings
from app.web.openapi import IMAGE_HEADERS
from scripts import demo
from tests.support.images import opened

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
URL = "http://127.0.0.1:8000"


def section(title: str) -> str:
    """What stands under a heading, up to the next one of its level."""
    level, _, _ = title.partition(" ")
    found = re.search(rf"^{re.escape(title)}\n(.*?)(?=^{level} |\Z)", README, re.DOTALL | re.MULTILINE)
    assert found, f"README.md has no heading '{title}'"
    return found[1]


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def tables(title: str) -> list[list[list[str]]]:
    """The tables of a section, each as rows of cells without its head."""
    found = re.findall(r"(?:^\|.*\n)+", section(title), re.MULTILINE)
    return [[cells(row) for row in table.splitlines()[2:]] for table in found]


def cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip("|").split("|")]


def shown(default: object) -> str:
    """A default as the tables write it."""
    if isinstance(default, SecretStr):
        default = default.get_secret_value()
    if default in (None, ""):
        return "none"
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    return f"`{default:g}`" if isinstance(default, float) else f"`{default}`"


def bounds(field: FieldInfo) -> list[str]:
    names = ("gt", "ge", "lt", "le", "max_length")
    values = [getattr(constraint, name, None) for constraint in field.metadata for name in names]
    return [str(value) for value in values if value is not None]


def code_spans() -> list[str]:
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", README, flags=re.DOTALL | re.MULTILINE))


def shell_commands() -> list[list[str]]:
    """Every command of the shell blocks as its words, up to the first redirection or pipe."""
    lines = "".join(blocks("sh")).replace("\\\n", " ").splitlines()
    commands = [shlex.split(line, comments=True) for line in lines if '"$(' not in line]
    return [re.split(r"\0[<>|]\0", "\0".join(words))[0].split("\0") for words in commands if words]


class TestTables:
    def test_every_setting_has_its_row(self) -> None:
        fields = Settings.model_fields.items()
        wanted = [[f"`IMG2IMG_{name.upper()}`", shown(field.default), field.description] for name, field in fields]
        assert tables("## Settings")[0] == wanted

    def test_every_variable_that_is_named_is_there(self) -> None:
        known = {f"IMG2IMG_{name.upper()}" for name in Settings.model_fields} | {"IMG2IMG_URL", "IMG2IMG_API_KEY"}
        assert set(re.findall(r"IMG2IMG_\w+", README)) <= known

    def test_every_field_has_its_row(self) -> None:
        image, *rows = tables("## Fields of POST /img2img")[0]
        assert image[0] == "`image`"
        assert [row[0] for row in rows] == [f"`{name}`" for name in Img2ImgRequest.model_fields]
        for (name, field), (_, kind, default, meaning) in zip(Img2ImgRequest.model_fields.items(), rows, strict=True):
            numbers = re.findall(r"\d+", kind)
            assert all(bound in numbers for bound in bounds(field)), name
            assert default.startswith("required" if field.default is PydanticUndefined else shown(field.default)), name
            assert meaning == field.description

    def test_the_choices_of_a_field_are_those_of_the_code(self) -> None:
        kinds = {row[0]: row[1] for row in tables("## Fields of POST /img2img")[0]}
        schemas = Img2ImgRequest.model_json_schema()["$defs"]
        for field, schema in (("`fit`", "Fit"), ("`output_format`", "OutputFormat")):
            assert kinds[field] == ", ".join(f"`{choice}`" for choice in schemas[schema]["enum"])

    def test_every_error_has_its_row(self) -> None:
        rows = tables("## Errors")[0]
        internal = next(row for row in rows if row[1] == f"`{ServiceError.code}`")
        assert internal[0] == str(ServiceError.status)
        wanted = [[str(error.status), f"`{error.code}`", str(error.__doc__)] for error in error_classes()]
        assert sorted(row for row in rows if row is not internal) == sorted(wanted)

    def test_every_metric_has_its_row(self) -> None:
        helps = re.findall(r"^# HELP (\S+) (.*)$", Metrics().render().decode(), re.MULTILINE)
        wanted = [[f"`{name}`", text] for name, text in helps if not name.endswith("_created")]
        assert [[row[0], row[2]] for row in tables("## Metrics")[0]] == wanted

    def test_every_response_header_has_its_row(self) -> None:
        assert tables("## Response headers")[0] == [[f"`{name}`", text] for name, text in IMAGE_HEADERS.items()]

    def test_every_route_has_its_row(self) -> None:
        served = {f"GET {route.path}" for route in create_app().routes if hasattr(route, "path")}
        own = [route for dialect in DIALECTS for route in dialect.router.routes]
        served |= {
            f"{method} {route.path}" for route in own if isinstance(route, APIRoute) for method in route.methods or ()
        }
        named = re.findall(r"`((?:GET|POST|PUT) /\S*)`", section("## Routes"))
        assert sorted(named) == sorted(served)

    def test_strength_means_what_the_table_says(self) -> None:
        refused, *rows = tables("## Fields of POST /img2img")[1]
        assert (refused[:2], steps_run(4, 0.2499)) == (["below 0.25", "refused"], 0)
        for strengths, calls, start in rows:
            assert {steps_run(4, float(strength)) for strength in re.findall(r"[\d.]+", strengths)} == {int(calls)}
            assert int(start) == 999 - 250 * (4 - int(calls))
        assert [row[1] for row in rows] == ["1", "2", "3", "4"]

    def test_the_limits_are_the_settings_defaults(self) -> None:
        settings = Settings()
        assert [row[1].partition(";")[0] for row in tables("## Limits")[0] if row[3]] == [
            f"{settings.max_body_bytes / 2**20:g} MiB",
            f"{settings.body_timeout_seconds:g} s",
            f"{settings.max_image_pixels / 1e6:g} megapixels",
            str(settings.queue_size),
            f"{settings.deadline_seconds:g} s",
        ]

    def test_every_exit_code_is_explained(self) -> None:
        paragraph = next(part for part in README.split("\n\n") if part.startswith("The exit code is"))
        assert [int(number) for number in re.findall(r"\b\d+\b", paragraph)] == list(ExitCode)

    def test_the_work_is_what_is_counted(self) -> None:
        # Imports torch, which no other test here needs.
        from tests.slow.test_device_path import DECODE, ENCODE, TEXT, UNET

        said = [float(number) for number in re.findall(r"\d\.\d{3}", section("## What it costs"))]
        assert said == pytest.approx([gigaflop / 1000 for gigaflop in (UNET, ENCODE, DECODE, TEXT)], abs=6e-4)


def error_classes(parent: type[ServiceError] = ServiceError) -> Iterator[type[ServiceError]]:
    for error in parent.__subclasses__():
        if error.__module__ == ServiceError.__module__:
            yield error
            yield from error_classes(error)


def test_the_problem_document_is_what_the_service_answers(server: str, png: bytes) -> None:
    (example,) = blocks("json")
    answer = httpx2.post(f"{server}/img2img", data={"prompt": "", "strength": "0.2"}, files={"image": png})
    one, other = ({**document, "request_id": ""} for document in (json.loads(example), answer.json()))
    assert one == other


class TestPaths:
    def test_every_path_that_is_named_is_there(self) -> None:
        pattern = r"(?:\.ci|app|scripts|tests)/[\w./-]*|[\w-]+\.(?:md|yml|toml|lock)|LICENSE|Dockerfile|\.env"
        named = {words[0] for span in code_spans() if re.fullmatch(pattern, (words := span.split())[0])}
        in_blocks = set(re.findall(r"(?<![\w./-])(?:scripts|tests)/[\w./-]+", "".join(blocks("sh") + blocks("python"))))
        assert len(named) > 20
        assert [path for path in sorted(named | in_blocks) if not (ROOT / path).exists()] == []

    def test_every_link_leads_to_a_heading_or_a_file(self) -> None:
        headings = re.findall(r"^#+ (.*)$", README, re.MULTILINE)
        anchors = {"#" + re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
        links = re.findall(r"\]\(([^)]+)\)", README)
        assert [link for link in links if link not in anchors and not (ROOT / link).exists()] == []


class TestCommands:
    def test_every_img2img_command_takes_its_options(self) -> None:
        commands: Any = typer.main.get_command(app.app)
        named = [words for words in shell_commands() if words[0].endswith("img2img")]
        named += [span.split() for span in code_spans() if re.match(r"img2img \w", span)]
        assert {words[1] for words in named} == set(commands.commands)
        for _, name, *arguments in named:
            if arguments or name != "edit":
                commands.commands[name].make_context(name, arguments)

    def test_every_demo_takes_its_options(self, monkeypatch: pytest.MonkeyPatch) -> None:
        demos = [words for words in shell_commands() if words[0] == "scripts/demo"]
        assert len(demos) >= 3
        for words in demos:
            monkeypatch.setattr(sys, "argv", words)
            demo.parse_arguments()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What the snippets need of a checkout, so that what they write does not end up in the real one."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts/demo.png", tmp_path / "scripts")
    return tmp_path


def run(command: list[str], folder: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    environment["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (picture,) = folder.glob("wizard.*")
    image = opened(picture.read_bytes())
    assert (image.size, str(image.format).lower()) == ((512, 512), picture.suffix[1:])


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
@pytest.mark.parametrize("command", blocks("sh", section("### curl"))[0].split("\n\n"), ids=lambda text: text[2:8])
def test_a_curl_command_makes_a_picture(command: str, server: str, folder: Path) -> None:
    assert URL in command
    run(["sh", "-ec", command.replace(URL, server)], folder)


@pytest.mark.parametrize(
    "snippet", blocks("python"), ids=["client", "asynchronous client", "requests", "hugging face", "openai", "web UI"]
)
def test_a_python_snippet_makes_a_picture(snippet: str, server: str, folder: Path) -> None:
    assert URL in snippet
    run([sys.executable, "-W", "error", "-c", snippet.replace(URL, server)], folder)


def test_the_javascript_snippet_makes_a_picture(server: str, folder: Path, node_folder: Path) -> None:
    (snippet,) = blocks("js")
    assert URL in snippet
    (folder / "node_modules").symlink_to(node_folder / "node_modules")
    (folder / "snippet.mjs").write_text(snippet.replace(URL, server))
    run(["node", "snippet.mjs"], folder)
