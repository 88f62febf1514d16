"""The operator's files that are read again when they change: API keys, certificates."""

import time
from pathlib import Path

from app.errors import Misconfigured

_RECHECK_SECONDS = 1.0


class Watched:
    """Detects changes of files, with at most one look a second. Create it before they are first read."""

    def __init__(self, *files: Path) -> None:
        self._files = files
        self._seen = self._stamps()
        self._looked = time.monotonic()

    def changed(self, again: bool) -> bool:
        """Whether to read the files: they have changed since the last look, or `again` asks for it.

        False within a second of the last look.
        """
        now = time.monotonic()
        if now - self._looked < _RECHECK_SECONDS:
            return False
        self._looked = now
        # Before they are read, so that a change in between is seen at the next look.
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
