"""A small real HTTP server that sends given responses, for clients that must cope with them."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

from app.client import Edited, Progress


@dataclass(frozen=True)
class Answer:
    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Asked:
    path: str
    headers: Message
    body: bytes


class Server(ThreadingHTTPServer):
    """Gives each answer once, and the last one for ever; keeps what was asked."""

    def __init__(self, answers: Sequence[Answer]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers = list(answers)
        self.asked: list[Asked] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        self.server.asked.append(Asked(self.path, self.headers, body))
        answers = self.server.answers
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        self.send_response(answer.status)
        for name, value in {**answer.headers, "Content-Length": str(len(answer.body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer.body)

    do_POST = do_GET  # noqa: N815

    def log_message(self, *arguments: object) -> None:
        """Tests have nothing to log."""


@contextmanager
def canned(*answers: Answer) -> Iterator[Server]:
    with Server(answers) as server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


PICTURE = Answer(
    body=b"picture",
    headers={
        "Content-Type": "image/png",
        "X-Seed": "3",
        "X-Steps-Run": "2",
        "X-Start-Timestep": "499",
        "X-Request-Id": "r1",
        "Server-Timing": "queue;dur=1.5, png;dur=20",
    },
)
BUSY = {"Retry-After": "0", "X-Should-Retry": "true"}


def problem(status: int, headers: dict[str, str], **members: object) -> Answer:
    return Answer(
        status, json.dumps({"status": status, "detail": "Too busy.", "code": "queue_full", **members}).encode(), headers
    )


FASTAPI = json.dumps({"detail": [{"type": "missing", "loc": ["body", "image"], "msg": "Field required"}]}).encode()
"""What any server made with FastAPI answers with 422."""


def events(*named: tuple[str, object]) -> bytes:
    return b"".join(f"event: {name}\ndata: {json.dumps(body)}\n\n".encode() for name, body in named)


def in_events(body: bytes, content_type: str = "text/event-stream") -> Answer:
    return Answer(body=body, headers={"Content-Type": content_type, "X-Request-Id": "r1"})


DEEP = b"[" * 100_000
"""JSON that no parser follows to its end."""
RESULT = {
    "image": "data:image/png;base64,cGljdHVyZQ==",
    "seed": 3,
    "steps_run": 2,
    "start_timestep": 499.0,
    "tokens_cut": 0,
    "seconds": {"queue": 0.0015},
}


def ignore(progress: Progress) -> None:
    """For tests that are not about progress."""


Ask = Callable[..., Edited]
"""`edit` of either client."""
