"""A real server of the whole app in this process."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import httpx2
import uvicorn

from app.main import create_app
from app.settings import Settings
from tests.support.fakes import FAKE

StartServer = Callable[..., AbstractContextManager[str]]


@contextmanager
def run_server(loader: str = FAKE, wait: bool = True, **knobs: Any) -> Iterator[str]:
    """A real server of the whole app on a free loopback port; yields its base URL."""
    app = create_app(Settings(**{"devices": "cpu", **knobs}), loader, on_failure=lambda failure: None)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, lifespan="on", timeout_graceful_shutdown=5))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.01)
        url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        while wait and not is_ready(url):
            time.sleep(0.02)
        yield url
    finally:
        server.should_exit = True
        thread.join(30)


def is_ready(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/health/ready").status_code == 200
    except httpx2.TransportError:
        return False
