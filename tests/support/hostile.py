"""A server that hostile requests are sent to, and forms made by hand."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scripts.resilience.target import Target, serving
from tests.support.images import FILES


@contextmanager
def unharmed(folder: Path) -> Iterator[Target]:
    """A server in a process of its own; afterwards it still runs, and no request was its fault."""
    with serving(folder) as target:
        yield target
        assert target.process.poll() is None
        assert "Traceback" not in target.log.read_text()
        assert target.metric("img2img_decoder_deaths_total") == 0
        assert target.metric('img2img_requests_total{code="500",route="/img2img"}') == 0


def form(*parts: bytes, boundary: bytes = b"x", close: bool = True) -> bytes:
    body = b"".join(b"--" + boundary + b"\r\n" + part + b"\r\n" for part in parts)
    return body + (b"--" + boundary + b"--\r\n" if close else b"")


def part(name: str, value: bytes, *headers: str, filename: str | None = None) -> bytes:
    disposition = f'Content-Disposition: form-data; name="{name}"' + (f'; filename="{filename}"' if filename else "")
    return "\r\n".join((disposition, *headers)).encode() + b"\r\n\r\n" + value


IMAGE = part("image", FILES["PNG"], filename="a.png")
PROMPT = part("prompt", b"dog")
