"""The command line in this process."""

from typing import Any

from typer.testing import CliRunner

from app.cli import app


def run_cli(*arguments: str, **options: Any) -> Any:
    return CliRunner().invoke(app.app, arguments, **options)
