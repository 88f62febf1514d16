"""Runs the app under uvicorn until a signal or a dead engine ends it."""

import asyncio
import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from app.errors import EngineStopped
from app.logs import configure
from app.main import create_app
from app.settings import Settings

logger = logging.getLogger(__name__)


class Server(uvicorn.Server):
    """Uvicorn's server, except that a signal which it obeyed in full does not end the process a second time.

    Uvicorn raises the signal again after its shutdown, so that `docker stop` would report 143 for a clean exit.
    """

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)


def serve(settings: Settings, loader: str | None = None) -> int:
    """Serve until SIGTERM or SIGINT, finishing what runs; a second SIGINT does not wait.

    Returns:
        The exit code: 0 after a signal, 1 if the engine gave up.

    Raises:
        SystemExit: the address cannot be listened on; uvicorn has logged why.
    """
    configure(settings.log_level)
    failures: list[EngineStopped] = []

    def give_up(failure: EngineStopped) -> None:
        failures.append(failure)
        server.should_exit = True

    arguments = {"loader": loader} if loader else {}
    config = uvicorn.Config(
        create_app(settings, on_failure=give_up, **arguments),
        host=settings.host,
        port=settings.port,
        # Uvicorn's own access log would hold the query, and with it the prompt.
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_graceful_shutdown=int(settings.drain_seconds) or 1,
    )
    server = Server(config)
    server.run()
    for failure in failures:
        # Last in the log, where whoever finds the process gone looks first.
        logger.critical("ended: %s", failure)
    return 1 if failures else 0
