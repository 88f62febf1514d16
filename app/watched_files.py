"""Files of the operator that are read again when they change: API keys, certificates."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from app.errors import Misconfigured

logger = logging.getLogger(__name__)

_RECHECK_SECONDS = 1.0


@asynccontextmanager
async def refreshing(*refresh: Callable[[], None]) -> AsyncIterator[None]:
    """Inside it, each function is called once a second on a thread, since it looks at files."""
    task = asyncio.create_task(_refresh_forever(refresh)) if refresh else None
    try:
        yield
    finally:
        if task:
            task.cancel()
            await asyncio.wait({task})


async def _refresh_forever(functions: tuple[Callable[[], None], ...]) -> None:
    while True:
        await asyncio.sleep(_RECHECK_SECONDS)
        for function in functions:
            try:
                await asyncio.to_thread(function)
            except Exception:
                logger.exception("a changed file could not be read again")


class Watched:
    """Tells when files have changed. Make it before they are first read."""

    def __init__(self, *files: Path) -> None:
        self._files = files
        self._seen = self._stamps()

    def changed(self, again: bool) -> bool:
        """Whether they have changed since the last call, or are to be read `again` in any case."""
        # Before they are read: what changes in between is seen by the next call.
        before, self._seen = self._seen, self._stamps()
        return again or self._seen != before

    def _stamps(self) -> list[tuple[int, ...]]:
        return [_stamp(file) for file in self._files]


def read(file: Path, variable: str) -> bytes:
    """Read the file that a variable names.

    Raises:
        Misconfigured: it cannot be read; the message names the variable.
    """
    try:
        if file.exists() and not file.is_file():
            # Reading a pipe would wait for its other end.
            raise OSError("it is not a regular file")
        return file.read_bytes()
    except OSError as error:
        raise Misconfigured(f"{variable}: {file} cannot be read: {error}.") from error


def _stamp(file: Path) -> tuple[int, ...]:
    """A value that changes with the file's content, also where an orchestrator replaces the target of a link."""
    try:
        status = file.stat()
    except OSError:
        return ()
    return status.st_mtime_ns, status.st_size, status.st_ino
