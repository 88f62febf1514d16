"""Runs the app under uvicorn until a signal ends it, or the engine stops."""

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
"""Seconds for the last responses to be sent, once the work is done."""


class Server(uvicorn.Server):
    """Uvicorn's server, except for what a signal does.

    Uvicorn closes its listener at once, so that new connections are refused. Here new requests get 503 while old ones
    run, and the listener closes when those are done. A second SIGINT does not wait.

    Uvicorn also raises the signal again after its shutdown, so that `docker stop` would report 143 for a clean exit.
    Here the process then ends with 0.

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
            # Supervisors may send SIGTERM to the process, and again to its group; a second Ctrl-C is deliberate.
            if sig == signal.SIGINT:
                self._draining.cancel()
            return
        logger.info("received %s: draining, new requests get 503", signal.Signals(sig).name)
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
    """Serve until SIGTERM or SIGINT, then finish the running requests; a second SIGINT does not wait.

    Returns:
        The exit code: 0 after a signal, 1 if the engine gave up.

    Raises:
        Misconfigured: the address, the API keys or the certificate for signing cannot be used.
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
        # By default uvicorn trusts any proxy on this host to name the client.
        forwarded_allow_ips=os.environ.get("FORWARDED_ALLOW_IPS", ""),
        timeout_graceful_shutdown=_LAST_BYTES_SECONDS,
    )
    # Any client could make uvicorn log an advice to install a library for WebSockets.
    logging.getLogger("uvicorn.error").addFilter(lambda record: not _UPGRADES.search(str(record.msg)))
    server = Server(config, app)
    server.run()
    for failure in failures:
        # The last line of the log is where an operator looks first.
        logger.critical("ended: %s", failure)
    return 1 if failures else 0


def check_address(host: str, port: int) -> None:
    """Check that the address is free: uvicorn would find out only after the workers have started, and name no setting.

    Raises:
        Misconfigured: nothing can listen there.
    """
    try:
        addresses = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, address in addresses:
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
    """Warn about a public address without API keys."""
    keys = settings.api_keys.get_secret_value() or settings.api_keys_file
    if not keys and settings.host not in _LOOPBACK:
        logger.warning(
            "LISTENING ON %s WITHOUT AUTHENTICATION: every client that reaches port %d may use this service. "
            "Set IMG2IMG_API_KEYS or IMG2IMG_API_KEYS_FILE, unless a proxy in front of it authenticates clients.",
            settings.host or "every address",
            settings.port,
        )
    if not keys and os.environ.get("IMG2IMG_API_KEY"):
        logger.warning(
            "IMG2IMG_API_KEY is the client's key and has no effect here: the service's keys are IMG2IMG_API_KEYS."
        )
