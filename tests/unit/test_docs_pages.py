"""The generated parts of the docs: what is stale, unknown or not described is named."""

from pathlib import Path

import pytest
import typer
from prometheus_client import Gauge
from pydantic import Field

from app.errors import ServiceError
from app.observability.metrics import Metrics
from app.settings import Settings
from scripts.docs_pages import __main__ as pages
from scripts.docs_pages import command_line, errors, metrics, settings
from scripts.docs_pages.tables import Incomplete, table, values


@pytest.fixture
def docs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one page, whose part is stale."""
    monkeypatch.setattr(pages, "PARTS", {"one": lambda: "fresh"})
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "page.md").write_text("# Page\n\n<!-- generated: one -->\nstale\n<!-- end of one -->\n\nRest\n")
    return folder


class TestUpdate:
    def test_check_stale_page_is_named_and_not_changed(self, docs: Path) -> None:
        before = (docs / "page.md").read_text()
        assert pages.update(docs, check=True) == ["docs/page.md is stale: run scripts/docs and commit what it writes."]
        assert (docs / "page.md").read_text() == before

    def test_write_stale_page_is_fresh_afterwards(self, docs: Path) -> None:
        assert pages.update(docs, check=False) == []
        text = "# Page\n\n<!-- generated: one -->\n\nfresh\n\n<!-- end of one -->\n\nRest\n"
        assert (docs / "page.md").read_text() == text
        assert pages.update(docs, check=True) == []

    def test_update_unknown_unfinished_and_unused_parts_are_named(self, docs: Path) -> None:
        (docs / "page.md").write_text("<!-- generated: two -->\n<!-- end of two -->\n<!-- generated: three -->\n")
        assert pages.update(docs, check=True) == [
            "docs/page.md: there is no generated part 'two'.",
            "docs/page.md: the line <!-- end of three --> is missing.",
            "No page of docs/ has the generated part 'one'.",
        ]


class TestMain:
    def test_missing_description_is_said_and_ends_with_1(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def incomplete() -> str:
            raise Incomplete("The field 'colour' has no description.")

        monkeypatch.setattr(pages, "PARTS", {"settings": incomplete})
        assert pages.main(["--check"]) == 1
        assert capsys.readouterr().err == "The field 'colour' has no description.\n"


class TestMissingDescriptions:
    def test_setting_without_description_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Forgotten(Settings):
            colour: str = Field("red")

        monkeypatch.setattr(settings, "Settings", Forgotten)
        with pytest.raises(Incomplete, match=r"The field 'colour' of Settings in app/settings.py has no description\."):
            settings.settings()

    def test_error_without_docstring_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Forgotten(ServiceError):
            pass

        # Of another module, as those of other tests.
        assert Forgotten not in errors.classes()
        monkeypatch.setattr(errors, "classes", lambda: [Forgotten])
        with pytest.raises(Incomplete, match=r"The error class 'Forgotten' in app/errors.py has no description\."):
            errors.errors()

    def test_command_without_help_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        forgotten = typer.Typer()
        forgotten.callback()(lambda: None)
        forgotten.command("paint")(lambda: None)
        monkeypatch.setattr(command_line, "app", forgotten)
        with pytest.raises(Incomplete, match=r"The command 'paint' in app/cli/app.py has no description\."):
            command_line.commands()

    def test_metric_without_help_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Forgotten(Metrics):
            def __init__(self) -> None:
                super().__init__()
                Gauge("img2img_colour", "", registry=self.registry)

        monkeypatch.setattr(metrics, "Metrics", Forgotten)
        with pytest.raises(Incomplete, match=r"The metric 'img2img_colour' in .* has no description\."):
            metrics.metrics()


class TestTables:
    def test_table_bar_and_line_break_do_not_end_a_cell(self) -> None:
        assert table(("a", "b"), [("x|y", "two\nlines")]) == "| a | b |\n| --- | --- |\n| x\\|y | two lines |"

    @pytest.mark.parametrize(
        ("schema", "words"),
        [
            ({"type": "integer", "minimum": 1, "maximum": 64}, "integer, 1 to 64"),
            ({"type": "number", "exclusiveMinimum": 0.0, "maximum": 1.0}, "number, above 0, up to 1"),
            ({"type": "string", "maxLength": 10}, "text, up to 10 characters"),
            ({"anyOf": [{"type": "integer", "minimum": 0}, {"type": "null"}]}, "integer, at least 0"),
            ({"oneOf": [{"type": "integer"}, {"const": "auto", "type": "string"}]}, "integer or `auto`"),
            ({"enum": ["a", "b"]}, "`a`, `b`"),
            ({"type": "array", "items": {"$ref": "#/$defs/Part"}}, "list of `x`, `y`"),
        ],
    )
    def test_values_schema_is_in_words(self, schema: dict[str, object], words: str) -> None:
        assert values(schema, {"Part": {"enum": ["x", "y"]}}) == words
