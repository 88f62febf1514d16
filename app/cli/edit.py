"""The command `img2img edit`: from an image file, by a service or by a model on this machine, to an image file."""

import asyncio
import json
import logging
import os
import secrets
import sys
from collections.abc import Callable
from dataclasses import fields as fields_of
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from app.cli.console import ExitCode, fail, progress, say
from app.client import Edited, Img2Img, Img2ImgError, NoService
from app.observability.logs import configure

if TYPE_CHECKING:
    from app.settings import Settings

SUFFIXES = {".png": "png", ".webp": "webp", ".jpg": "jpeg", ".jpeg": "jpeg"}
"""The format for each extension of a file name."""


class Target:
    """Where the result is written. Ends the program if that is not possible: better before the work than after it.

    Args:
        image: the file that is read, or `-`.
        output: a file, a folder, or `-` for standard output; None is the current directory.
        output_format: the requested format; without one, that of the file name, if it has an extension.
        as_json: whether JSON goes to standard output.
    """

    def __init__(self, image: str, output: str | None, output_format: str | None, as_json: bool) -> None:
        self.output_format = output_format
        self._to_stdout = output == "-"
        self._path = Path(output or ".")
        self._stem = "img2img" if image == "-" else Path(image).stem
        if self._to_stdout:
            self._check_stdout(as_json)
        elif not self._path.is_dir():
            self._check_file(image)

    def _check_stdout(self, as_json: bool) -> None:
        if as_json:
            fail("--json and -o - both want standard output: name a file with -o.", ExitCode.USAGE)
        if sys.stdout.isatty():
            fail("A terminal cannot show an image: name a file with -o, or pipe into a program.", ExitCode.USAGE)

    def _check_file(self, image: str) -> None:
        path = self._path
        if not path.parent.is_dir():
            fail(f"There is no folder {path.parent} to save into.", ExitCode.USAGE)
        if image != "-" and Path(image).exists() and path.exists() and path.samefile(image):
            fail(f"{path} is the input image: name another file with -o.", ExitCode.USAGE)
        self.output_format = self.output_format or SUFFIXES.get(path.suffix.lower())
        if not self.output_format:
            fail(f"{path} has none of the extensions {', '.join(SUFFIXES)}: add one, or --format.", ExitCode.USAGE)

    def write(self, edited: Edited) -> Path | None:
        """Save the result; returns its path, or None for standard output."""
        try:
            if not self._to_stdout:
                return edited.save(self._new_file(edited) if self._path.is_dir() else self._path)
            sys.stdout.buffer.write(edited.data)
            sys.stdout.buffer.flush()
        except OSError as error:
            fail(f"The image cannot be saved: {error}.", ExitCode.FAILED)
        return None

    def _new_file(self, edited: Edited) -> Path:
        """A new file name in the folder, with the seed."""
        name, suffix = f"{self._stem}-{edited.seed}", "." + edited.media_type.removeprefix("image/")
        path, number = self._path / (name + suffix), 1
        while path.exists():
            number += 1
            path = self._path / f"{name}-{number}{suffix}"
        return path


def read_image(image: str) -> bytes:
    """Read a file, or standard input for `-`; ends the program if that fails."""
    if image == "-" and sys.stdin.isatty():
        fail("Standard input is a terminal: name an image file instead of -, or pipe one in.", ExitCode.USAGE)
    try:
        return sys.stdin.buffer.read() if image == "-" else Path(image).read_bytes()
    except OSError as error:
        fail(f"{image} cannot be read: {error.strerror}.", ExitCode.USAGE)


def edit_there(data: bytes, fields: dict[str, Any], url: str) -> Edited:
    """Edit by a running service; ends the program if that fails."""
    try:
        with Img2Img(url) as client, progress(f"Waiting for {url}") as on_step:
            return client.edit(
                data,
                **fields,
                on_progress=lambda progress: on_step(progress.step, progress.steps) if progress.steps else None,
            )
    except Img2ImgError as error:
        fail(str(error), ExitCode.of_status(error.status))
    except NoService as error:
        fail(str(error), ExitCode.UNAVAILABLE)
    except ValueError as error:
        fail(str(error), ExitCode.USAGE)


def edit_here(data: bytes, fields: dict[str, Any], settings: "Settings", loader: str | None = None) -> Edited:
    """Edit without a service, by the same code; ends the program if that fails."""
    from app.errors import EngineStopped, Misconfigured, ServiceError
    from app.observability import otel_env

    if "log_level" in settings.model_fields_set:
        configure(settings.log_level, settings.log_format)
    else:
        # The error message at the end says what went wrong; log lines would repeat it.
        logging.getLogger("app").addHandler(logging.NullHandler())
        settings = settings.model_copy(update={"log_level": "error"})
    try:
        otel_env.validate_otel_env(os.environ)
        with progress("Loading the model") as on_step:
            return asyncio.run(_run_service(data, fields, settings, on_step, loader))
    except ServiceError as error:
        fail(str(error), ExitCode.of_status(error.status))
    except Misconfigured as error:
        fail(str(error), ExitCode.USAGE)
    except EngineStopped as error:
        fail(f"{error}\nIMG2IMG_LOG_LEVEL=info shows what led to it.", ExitCode.FAILED)


async def _run_service(
    data: bytes,
    fields: dict[str, Any],
    settings: "Settings",
    on_step: Callable[[int, int], None],
    loader: str | None,
) -> Edited:
    from app.edits import Queued, RequestInfo, Upload
    from app.engine.engine import LOADER
    from app.errors import EngineStopped
    from app.imaging.c2pa import signer
    from app.main import open_service
    from app.observability.metrics import Metrics
    from app.request import parse_request

    request, request_id = parse_request(fields), secrets.token_hex(16)
    failures: list[EngineStopped] = []
    signs = signer(settings)
    async with open_service(settings, Metrics(), loader or LOADER, failures.append, signs) as service:
        # Loading may take far longer than a request's deadline, which starts to count when it is admitted.
        while service.status != "ready":
            if failures:
                raise failures[0]
            await asyncio.sleep(0.02)
        image = await service.edit(
            Upload(data),
            request,
            RequestInfo(request_id),
            lambda progress: None if isinstance(progress, Queued) else on_step(progress.step, progress.steps),
        )
    return Edited(
        data=image.data,
        media_type=image.output_format.media_type,
        seed=image.seed,
        steps_run=image.steps_run,
        start_timestep=image.start_timestep,
        tokens_cut=image.tokens_cut,
        request_id=request_id,
        seconds=image.seconds,
    )


def report(edited: Edited, path: Path | None, as_json: bool) -> None:
    """Print a summary on standard error and, for programs, JSON on standard output."""
    if edited.tokens_cut:
        say(f"The prompt's last {edited.tokens_cut} tokens have no effect: CLIP reads 77.")
    steps = f"{edited.steps_run} step{'s' if edited.steps_run > 1 else ''}"
    say(f"{path or 'Standard output'}: seed {edited.seed}, {steps}, {sum(edited.seconds.values()):.2f} s")
    if as_json:
        facts = {field.name: getattr(edited, field.name) for field in fields_of(edited) if field.name != "data"}
        typer.echo(json.dumps({"path": str(path), **facts}))
