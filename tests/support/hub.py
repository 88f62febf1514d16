"""A model hub on loopback: what the real `huggingface_hub` client needs of one, over folders of this machine."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

from tests.support.http import free_port

HUB_PORT = free_port()
"""Where this process runs a hub, when a test wants one."""


@dataclass
class Hub:
    """Repositories by id: a commit each, and files by path. `fetched` holds what was downloaded, in order."""

    commits: dict[str, str] = field(default_factory=dict)
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    fetched: list[str] = field(default_factory=list)
    requests: int = 0

    def add(self, repository: str, commit: str, files: dict[str, bytes]) -> None:
        self.commits[repository] = commit
        self.files[repository] = files


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""

    def _answer(self, with_body: bool) -> None:
        self.hub.requests += 1
        path = unquote(urlsplit(self.path).path).lstrip("/")
        if path.startswith("api/models/"):
            self._api(path.removeprefix("api/models/"))
        else:
            repository, _, rest = path.partition("/resolve/")
            revision, _, name = rest.partition("/")
            self._file(repository, revision, name, with_body)

    def _api(self, path: str) -> None:
        owner, name, kind, revision = (path.split("/", 4) + ["main"] * 4)[:4]
        repository = f"{owner}/{name}"
        if self._missing(repository, revision):
            return
        files = self.hub.files[repository]
        if kind == "tree":
            body: object = [
                {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for path, data in files.items()
            ]
        else:
            siblings = [{"rfilename": path} for path in files]
            body = {"id": repository, "sha": self.hub.commits[repository], "siblings": siblings, "private": False}
        self._send(200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def _file(self, repository: str, revision: str, name: str, with_body: bool) -> None:
        if self._missing(repository, revision):
            return
        data = self.hub.files[repository].get(name)
        if data is None:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        if with_body:
            self.hub.fetched.append(f"{repository}/{name}")
        headers = {
            "ETag": f'"{hashlib.sha1(data).hexdigest()}"',
            "X-Repo-Commit": self.hub.commits[repository],
            "Accept-Ranges": "bytes",
        }
        self._send(200, data, headers, with_body)

    def _missing(self, repository: str, revision: str) -> bool:
        if repository not in self.hub.commits:
            self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
        elif repository in self.hub.gated:
            self._send(403, b"", {"X-Error-Code": "GatedRepo"})
        elif revision not in ("main", self.hub.commits[repository]):
            self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
        else:
            return False
        return True

    def _send(self, status: int, body: bytes, headers: dict[str, str], with_body: bool = True) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body and self.command != "HEAD":
            self.wfile.write(body)


@contextmanager
def run_hub(port: int) -> Iterator[Hub]:
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", port), type("Handler", (_Handler,), {"hub": hub}))
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
