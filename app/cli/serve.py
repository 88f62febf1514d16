"""Runs the app under uvicorn until a signal or a dead engine ends it."""

import asyncio
import logging
import os
import re
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn
from fastapi import FastAPI

from app import malloc
from app.engine.engine import LOADER
from app.errors import EngineStopped, Misconfigured
from app.main import create_app
from app.observability.logs import configure
from app.service import Service
from app.settings import Settings, unknown_variables

logger = logging.getLogger(__name__)


_LOOPBACK = ("127.0.0.1", "localhost", "::1")

_UPGRADES = re.compile("upgrade request|WebSocket library")
_LAST_BYTES_SECONDS = 5
"""Time for answers to reach their callers, once the work is over."""


class Server(uvicorn.Server):
    """Uvicorn's server, except for what a signal does.

    Uvicorn closes its listener at once: whoever comes a moment later finds nobody. Here new requests are answered with
    503 for as long as old ones run, and the listener closes when those are done. A second SIGINT does not wait.

    And it raises the signal again after its shutdown, so that `docker stop` would report 143 for a clean exit. Here a
    signal that was obeyed in full does not end the process a second time.

    Args:
        config: uvicorn's; its app is one of `create_app`.
        app: the same.
    """

    def __init__(self, config: uvicorn.Config, app: FastAPI) -> None:
        super().__init__(config)
        self._app = app
        self._draining: asyncio.Task[None] | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        service: Service | None = getattr(self._app.state, "service", None)
        if not service or (self._draining and self.should_exit):
            self.force_exit = self.should_exit and sig == signal.SIGINT
            self.should_exit = True
            return
        if self._draining:
            # Supervisors may send SIGTERM to the process, and again to its group; who presses Ctrl-C twice means it.
            if sig == signal.SIGINT:
                self._draining.cancel()
            return
        logger.info("told to end by %s: what runs is finished, what comes is refused", signal.Signals(sig).name)
        self._draining = asyncio.get_running_loop().create_task(self._drain(service))

    async def _drain(self, service: Service) -> None:
        try:
            await service.drain()
        finally:
            self.should_exit = True

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
        Misconfigured: the address, the API keys, or the certificate that is to sign, cannot be used.
    """
    configure(settings.log_level, settings.log_format)
    check_address(settings.host, settings.port)
    for sentence in unknown_variables(os.environ):
        logger.warning(sentence)
    malloc.serving()
    failures: list[EngineStopped] = []

    def give_up(failure: EngineStopped) -> None:
        failures.append(failure)
        server.should_exit = True

    app = create_app(settings, loader or LOADER, give_up)
    warn_if_open(settings)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        # Uvicorn's own access log would hold the query, and with it the prompt.
        access_log=False,
        log_config=None,
        server_header=False,
        ws="none",
        # Uvicorn would take the word of any proxy on this host for who the caller is.
        forwarded_allow_ips=os.environ.get("FORWARDED_ALLOW_IPS", ""),
        timeout_graceful_shutdown=_LAST_BYTES_SECONDS,
    )
    # Anybody could have uvicorn advise whoever reads the log to install a library for WebSockets.
    logging.getLogger("uvicorn.error").addFilter(lambda record: not _UPGRADES.search(str(record.msg)))
    server = Server(config, app)
    server.run()
    for failure in failures:
        # Last in the log, where whoever finds the process gone looks first.
        logger.critical("ended: %s", failure)
    return 1 if failures else 0


def check_address(host: str, port: int) -> None:
    """See whether it can be listened on: uvicorn would find out when the workers are on their way, and name nothing.

    Raises:
        Misconfigured: it cannot.
    """
    try:
        places = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, address in places:
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                probe.bind(address)
    except OSError as error:
        raise Misconfigured(
            f"Nothing can listen on {host or 'any address'}, port {port}: {error.strerror}. "
            "Choose the address by IMG2IMG_HOST, and the port by IMG2IMG_PORT."
        ) from error


def warn_if_open(settings: Settings) -> None:
    """Say loudly that anybody may come in, if so it is."""
    keys = settings.api_keys.get_secret_value() or settings.api_keys_file
    if not keys and settings.host not in _LOOPBACK:
        logger.warning(
            "LISTENING ON %s WITHOUT AN API KEY: whoever reaches port %d may use this service. "
            "Set IMG2IMG_API_KEYS or IMG2IMG_API_KEYS_FILE, unless something in front of it asks who comes.",
            settings.host or "every address",
            settings.port,
        )
    if not keys and os.environ.get("IMG2IMG_API_KEY"):
        logger.warning(
            "IMG2IMG_API_KEY is the client's key, and asks nobody for one: the service's keys are IMG2IMG_API_KEYS."
        )
