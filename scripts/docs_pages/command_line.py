"""The command line, by Typer's own generator."""

from html import unescape

import typer
import typer.cli

from app.cli.app import app
from scripts.docs_pages.tables import required


def commands() -> str:
    """Usage, arguments and options of each command of `img2img`."""
    command = typer.main.get_command(app)
    for name, one in command.commands.items():  # type: ignore[attr-defined]
        required(one.help, f"The command '{name}' in app/cli/app.py")
        for parameter in one.params:
            text = getattr(parameter, "help", None)
            required(text, f"The parameter '{parameter.name}' of the command '{name}' in app/cli/app.py")
    context = typer.Context(command, info_name="img2img")
    text = typer.cli.get_docs_for_click(obj=command, ctx=context, name="img2img")
    # The page has a title, and what Markdown cannot tell from HTML is in backticks already.
    _, _, body = unescape(text).partition("\n")
    return body.strip()
