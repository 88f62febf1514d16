"""Child processes that run a module of this project, each at the other end of a socket pair."""

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

BUFFER_BYTES = 2**20
"""More than the pixels of a 512x512 image: a message that does not fit wakes both processes once for each piece."""


def enlarge_buffer(end: socket.socket) -> None:
    """Have the kernel hold a whole image for one end of a socket pair, as far as it allows."""
    end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)


class ChildProcess:
    """A fresh Python interpreter: neither memory nor signals of this process reach it.

    `socket` is this process's end of the pair. Its owner closes it.
    """

    def __init__(self, process: "subprocess.Popen[bytes]", ours: socket.socket) -> None:
        self.socket = ours
        self._process = process

    @classmethod
    def start(
        cls,
        module: str,
        *arguments: str,
        environment: Mapping[str, str],
        stdout: int | None = None,
        options: Sequence[str] = (),
    ) -> "ChildProcess":
        """Run `python -m module FD *arguments`, where FD is its end of the socket pair. Blocks for milliseconds.

        Args:
            module: the dotted name of the module to run.
            arguments: further arguments.
            environment: all its variables but `PYTHONPATH`, which gives it the modules of this process.
            stdout: as of `subprocess.Popen`.
            options: further options of the interpreter.

        Raises:
            OSError: the system cannot start another process.
        """
        ours, theirs = socket.socketpair()
        with theirs, contextlib.ExitStack() as unless_started:
            unless_started.callback(ours.close)
            for end in (ours, theirs):
                enlarge_buffer(end)
            ours.setblocking(False)
            process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-P", *options, "-m", module, str(theirs.fileno()), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                pass_fds=(theirs.fileno(),),
                env={**environment, "PYTHONPATH": _module_path()},
                # Ctrl-C goes to the whole foreground group. The service decides when its children end.
                process_group=0,
            )
            unless_started.pop_all()
        return cls(process, ours)

    @classmethod
    async def spawn(cls, module: str, *arguments: str, **options: Any) -> "ChildProcess":
        """As `start`, on a thread. After a cancellation, no process is left.

        Raises:
            OSError: the system cannot start another process.
        """
        starting = asyncio.ensure_future(asyncio.to_thread(cls.start, module, *arguments, **options))
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            starting.add_done_callback(_discard)
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; the number of a signal, negated, if that ended it."""
        return self._process.poll()

    def kill(self) -> None:
        """End it at once; no error if it has ended."""
        self._process.kill()

    async def wait(self, seconds: float | None = None) -> int:
        """Wait for its end, for so many seconds at most; returns its exit code.

        Raises:
            TimeoutError: it still runs.
        """
        try:
            return await asyncio.to_thread(self._process.wait, seconds)
        except subprocess.TimeoutExpired:
            raise TimeoutError from None

    def close(self) -> None:
        """Close the socket, kill the process and wait for its end."""
        self.socket.close()
        self._process.kill()
        self._process.wait()


def _discard(starting: "asyncio.Future[ChildProcess]") -> None:
    """End a process that started after its task was cancelled."""
    if not starting.cancelled() and not starting.exception():
        starting.result().close()


def _module_path() -> str:
    """Where this process finds modules, and where this package lies: an editable install has it in no entry."""
    entries = [entry or str(Path.cwd()) for entry in sys.path]
    root = str(Path(__file__).parents[1])
    return os.pathsep.join(entries if root in entries else [*entries, root])
