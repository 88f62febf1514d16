"""Shared by the commands: exit codes, messages, errors of settings in sentences, and progress."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import TYPE_CHECKING, Any, NoReturn

import typer

if TYPE_CHECKING:
    from app.settings import Settings


class ExitCode(IntEnum):
    """The exit statuses; those above 2 are from BSD's `sysexits.h`."""

    OK = 0
    FAILED = 1
    USAGE = 2
    REFUSED = 65
    UNAVAILABLE = 69
    INTERNAL = 70

    @classmethod
    def of_status(cls, status: int) -> "ExitCode":
        """The exit status for an HTTP status of 400 or more."""
        if status in (429, 503):
            return cls.UNAVAILABLE
        return cls.REFUSED if status < 500 else cls.INTERNAL


def say(message: str) -> None:
    """Print one line on standard error."""
    typer.echo(message, err=True)


def fail(message: str, code: ExitCode) -> NoReturn:
    """End the program with a message on standard error."""
    say(f"img2img: {message}")
    raise typer.Exit(code)


def read_settings(**options: Any) -> "Settings":
    """The settings of the environment, overridden by the given options; ends the program if any is invalid."""
    from pydantic import ValidationError

    from app.settings import Settings

    given = {name: value for name, value in options.items() if value is not None}
    try:
        return Settings(**given)
    except ValidationError as error:
        for problem in error.errors(include_url=False):
            name = str(problem["loc"][0]).removeprefix("IMG2IMG_").lower()
            # Some settings have several names: the first one that is set is at fault.
            names = getattr(Settings.model_fields[name].validation_alias, "choices", [f"IMG2IMG_{name.upper()}"])
            variable = next(filter(os.environ.get, names), names[0])
            if name in given:
                variable = f"--{name.replace('_', '-')}"
            advice = problem["msg"][0].lower() + problem["msg"][1:]
            if problem["type"] == "string_pattern_mismatch" or len(problem["loc"]) > 1:
                advice = f"give {Settings.model_fields[name].description}"
            what = "" if name == "api_keys" else f" {str(problem['input'])!r}"
            say(f"img2img: {variable} cannot be{what}: {advice.rstrip('.')}.")
        raise typer.Exit(ExitCode.USAGE) from None


def own_url(settings: "Settings") -> str:
    """The URL of `img2img serve` on this machine; loopback if it listens on all addresses."""
    host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)  # noqa: S104
    return f"http://[{host}]:{settings.port}" if ":" in host else f"http://{host}:{settings.port}"


@contextmanager
def progress(text: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar on a terminal, or plain lines elsewhere, on standard error; yields the function that moves it."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        say(f"{text} …")
        yield lambda step, steps: say(f"Step {step} of {steps}")
        return
    words = TextColumn("{task.description}", markup=False)
    with Progress(SpinnerColumn(), words, BarColumn(), TimeElapsedColumn(), console=console, transient=True) as bar:
        task = bar.add_task(text, total=None)
        yield lambda step, steps: bar.update(task, description="Drawing", completed=step, total=steps)
