"""Builds the container image with the package sources of this machine's pip configuration, local folders included.

All arguments go to `docker build`: python scripts/container/build.py --tag sdxl-turbo-img2img .
"""

import ast
import contextlib
import functools
import http.server
import os
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

# The Dockerfile's build arguments, by the names of pip's options.
ARGUMENTS = {
    "index-url": "PIP_INDEX_URL",
    "extra-index-url": "PIP_EXTRA_INDEX_URL",
    "find-links": "PIP_FIND_LINKS",
    "trusted-host": "PIP_TRUSTED_HOST",
}


class _Folder(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
        """Log nothing."""


@contextlib.contextmanager
def reachable(place: str) -> Iterator[str]:
    """Yields an index or find-links location as the build can reach it: a local folder over HTTP on loopback."""
    is_index = place.startswith("file:")
    folder = Path(unquote(urlsplit(place).path)) if is_index else Path(place)
    if not folder.is_dir():
        yield place
        return
    # A mirror's index links to files beside it, such as ../../packages/…, so serve its parent.
    name, folder = (folder.name, folder.parent) if is_index else ("", folder)
    handler = functools.partial(_Folder, directory=folder)
    # The same port for each location, if it is free: build arguments are part of the build cache's key.
    try:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 49152 + zlib.crc32(place.encode()) % 16384), handler)
    except OSError:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/{name}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def configured() -> dict[str, str]:
    """Package sources in pip's configuration. The environment comes last and overrides the files."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    values = {}
    for line in subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines():
        name, _, value = line.partition("=")
        values[name.rpartition(".")[2]] = ast.literal_eval(value)
    return {name: values[name] for name in ARGUMENTS if name in values}


def main() -> int:
    """Runs `docker build` and returns its exit code."""
    if sys.argv[1:] in ([], ["-h"], ["--help"]):
        print(__doc__)
        return 0
    # The build uses the host's network, to reach the servers on its loopback.
    command = [os.environ.get("DOCKER", "docker"), "build", "--network", "host"]
    with contextlib.ExitStack() as servers:
        for name, places in configured().items():
            urls = [servers.enter_context(reachable(place)) for place in places.split()]
            command += ["--build-arg", f"{ARGUMENTS[name]}={' '.join(urls)}"]
        return subprocess.run([*command, *sys.argv[1:]], env={**os.environ, "DOCKER_BUILDKIT": "1"}).returncode


if __name__ == "__main__":
    sys.exit(main())
