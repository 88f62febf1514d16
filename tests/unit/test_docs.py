"""README and docs: links resolve, and what is written by hand agrees with the code."""

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from fastapi.routing import APIRoute

from app.cli import app
from app.cli.console import ExitCode
from app.main import create_app
from app.request import steps_run
from app.routes import DIALECTS
from app.settings import Settings
from app.web.openapi import EXPOSED_HEADERS
from scripts import demo
from tests.support.guards import fail_with
from tests.support.pages import PAGES, anchors, code_spans, links, read, section, shell_commands, tables
from tests.support.paths import ROOT

TEXT = "\n".join(page.read_text(encoding="utf-8") for page in PAGES if page.name != "CHANGELOG.md")


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def resolves(page: Path, link: str) -> bool:
    """Whether a relative link leads to a file, and to one of its headings if it names one."""
    path, _, anchor = link.partition("#")
    target = (page.parent / path).resolve() if path else page
    return target.exists() and (not anchor or anchor in anchors(target))


class TestPages:
    def test_readme_has_at_most_200_lines(self) -> None:
        assert len(read("README.md").splitlines()) <= 200

    @pytest.mark.parametrize("page", PAGES, ids=name_of)
    def test_page_links_lead_to_files_and_headings(self, page: Path) -> None:
        fail_with(f"{name_of(page)}: {link} leads nowhere." for link in links(page) if not resolves(page, link))

    def test_links_that_lead_nowhere_are_found(self) -> None:
        page = ROOT / "README.md"
        assert resolves(page, "#licences")
        assert resolves(page, "docs/models.md#licences")
        assert not resolves(page, "docs/none.md")
        assert not resolves(page, "docs/models.md#none")

    def test_readme_map_names_every_page_for_users_and_operators(self) -> None:
        linked = {(ROOT / link.partition("#")[0]).resolve() for link in links(ROOT / "README.md")}
        folders = ("", "clients", "install", "observability")
        pages = [page for folder in folders for page in (ROOT / "docs" / folder).glob("*.md")]
        assert [name_of(page) for page in pages if page not in linked] == ["docs/index.md", "docs/changelog.md"]

    def test_every_example_is_shown_on_a_page(self) -> None:
        shown = set(re.findall(r'^--8<-- "examples/(.+)"$', TEXT, re.MULTILINE))
        files = {path.name for path in (ROOT / "examples").iterdir()} - {"README.md"}
        fail_with(
            [f"No page shows examples/{name}." for name in sorted(files - shown)]
            + [f"A page shows examples/{name}, which does not exist." for name in sorted(shown - files)]
        )

    def test_paths_that_are_named_exist(self) -> None:
        pattern = r"(?:\.ci|app|scripts|tests|deploy|docs|examples)/[\w./-]*|[\w-]+\.(?:yml|toml|lock)|Dockerfile|\.env"
        named = {words[0] for span in code_spans(TEXT) if re.fullmatch(pattern, (words := span.split())[0])}
        named |= {word for words in shell_commands(TEXT) for word in words if re.match(r"(scripts|tests)/", word)}
        assert len(named) > 50
        fail_with(f"A page names {path}, which does not exist." for path in sorted(named) if not (ROOT / path).exists())

    def test_variables_that_are_named_exist(self) -> None:
        known = {f"IMG2IMG_{name.upper()}" for name in Settings.model_fields} | {"IMG2IMG_URL", "IMG2IMG_API_KEY"}
        named = set(re.findall(r"IMG2IMG_(?!TEST_)[A-Z]\w*", TEXT))
        fail_with(f"A page names {name}, but there is no such setting." for name in sorted(named - known))


class TestTables:
    def test_routes_table_has_every_route(self) -> None:
        served = {f"GET {route.path}" for route in create_app().routes if hasattr(route, "path")}
        own = [route for dialect in DIALECTS for route in dialect.router.routes]
        served |= {f"{method} {r.path}" for r in own if isinstance(r, APIRoute) for method in r.methods or ()}
        rows = " ".join(row[0] for row in tables(read("docs/reference/http.md"))[0])
        named = re.findall(r"`((?:GET|POST|PUT) /\S*)`", rows)
        fail_with(
            [f"docs/reference/http.md has no row for {route}." for route in sorted(served - set(named))]
            + [f"docs/reference/http.md names {route}: there is none." for route in sorted(set(named) - served)]
        )
        assert len(named) == len(set(named))

    def test_figures_of_the_readme_are_those_of_the_benchmarks_page(self) -> None:
        (figures,) = tables(section(read("README.md"), "## Performance"))
        assert figures == tables(section(read("docs/benchmarks/index.md"), "## Beside others"))[0]

    def test_exposed_headers_are_all_described(self) -> None:
        spans = code_spans(section(read("docs/reference/headers.md"), "# Headers"))
        fail_with(
            f"docs/reference/headers.md does not describe {header}."
            for header in EXPOSED_HEADERS
            if header not in spans
        )

    def test_strength_table_agrees_with_steps_run(self) -> None:
        refused, *rows = tables(section(read("docs/parameters.md"), "## Steps and strength"))[0]
        assert (refused[:2], steps_run(4, 0.2499)) == (["below 0.25", "refused"], 0)
        for strengths, calls, start in rows:
            assert {steps_run(4, float(strength)) for strength in re.findall(r"[\d.]+", strengths)} == {int(calls)}
            assert int(start) == 999 - 250 * (4 - int(calls))
        assert [row[1] for row in rows] == ["1", "2", "3", "4"]

    def test_limits_are_the_defaults_of_the_settings(self) -> None:
        settings = Settings()
        assert [row[1].partition(";")[0] for row in tables(read("docs/limits.md"))[0] if row[3]] == [
            f"{settings.max_body_bytes / 2**20:g} MiB",
            f"{settings.body_timeout_seconds:g} s",
            f"{settings.max_image_pixels / 1e6:g} megapixels",
            str(settings.queue_size),
            f"{settings.deadline_seconds:g} s",
        ]

    def test_exit_codes_are_all_explained(self) -> None:
        rows = tables(section(read("docs/cli.md"), "## Exit codes"))[0]
        assert [int(row[0]) for row in rows] == list(ExitCode)


class TestCommands:
    def test_img2img_commands_take_their_options(self) -> None:
        commands: Any = typer.main.get_command(app.app)
        text = TEXT.replace("IMG2IMG_", "\n#IMG2IMG_")
        named = [words for words in shell_commands(text) if words[0].endswith("img2img") and len(words) > 1]
        named += [span.split() for span in code_spans(TEXT) if re.match(r"img2img [a-z]", span)]
        assert {words[1] for words in named} == set(commands.commands)
        for _, name, *arguments in named:
            if name != "edit" or "-p" in arguments:
                commands.commands[name].make_context(name, arguments)

    def test_demo_commands_take_their_options(self, monkeypatch: pytest.MonkeyPatch) -> None:
        demos = [words for words in shell_commands(TEXT) if words[0] == "scripts/demo"]
        assert len(demos) >= 3
        for words in demos:
            monkeypatch.setattr(sys, "argv", words)
            demo.parse_arguments()
